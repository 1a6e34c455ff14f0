"""Features in shards, as fairseq cuts them: joined when all are there and of one making."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_features import DATA, DIM, KINDS, fail, make_features, make_manifest

from hubert_plugin.data.feature_files import FeatureFormat, feature_paths, open_feature_writer
from hubert_plugin.data.feature_shards import is_feature_shard_done, merge_feature_shards, withdraw_merged
from hubert_plugin.data.shards import shard_range
from hubert_plugin.data.stored_features import open_stored_features
from hubert_plugin.errors import ConfigError, OutputDirError
from hubert_plugin.units.dump import dump_features


def test_shards_follow_fairseq() -> None:
    for case in json.loads((DATA / "kmeans/shard_ranges.json").read_text()):
        for index, expected in enumerate(case["ranges"]):
            ours = shard_range(case["tot"], (index, case["nshard"]))

            # Where fairseq refuses an empty shard, ours is empty.
            assert [ours.start, ours.stop] == expected if expected else len(ours) == 0

    with pytest.raises(ConfigError, match="must be one of the 3 shards from 0 to 2, but is 3"):
        shard_range(10, (3, 3))


@given(st.integers(0, 10**7), st.integers(1, 64))
def test_shards_cover_everything_once(num_utterances: int, num_shards: int) -> None:
    ranges = [shard_range(num_utterances, (i, num_shards)) for i in range(num_shards)]

    assert ranges[0].start == 0 and ranges[-1].stop == num_utterances
    assert all(a.stop == b.start for a, b in pairwise(ranges))


@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_joined_when_all_are_there(tmp_path: Path, kind: FeatureFormat) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    for i in (2, 0, 1):
        assert not is_feature_shard_done(kind, tmp_path, "train", (i, 3), {"by": "tests"})

        with open_feature_writer(
            kind, tmp_path, "train", dim=DIM, rate=50, shard=(i, 3), provenance={"by": "tests"}
        ) as writer:
            for j in shard_range(4, (i, 3)):
                writer.write(manifest.ids[j], features[j])

        assert is_feature_shard_done(kind, tmp_path, "train", (i, 3), {"by": "tests"})
        assert not is_feature_shard_done(kind, tmp_path, "train", (i, 3), {"by": "others"})

        assert merge_feature_shards(kind, tmp_path, "train", 3) == (i == 1)

    opened = open_stored_features(kind, tmp_path, manifest)

    assert opened.record is not None and opened.record["by"] == "tests"

    for i, f in enumerate(features):
        np.testing.assert_array_equal(opened.read(i), f)

    if kind == "fairseq":
        (tmp_path / "train_1_3.npy").unlink()

        assert "train_1_3.npy" in fail(kind, tmp_path, manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_different_making_are_not_joined(tmp_path: Path, kind: FeatureFormat) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    def write_shard(i: int, value: np.float32, by: str) -> None:
        with open_feature_writer(
            kind, tmp_path, "train", dim=DIM, rate=50, shard=(i, 2), provenance={"by": by}
        ) as writer:
            for j in shard_range(4, (i, 2)):
                writer.write(manifest.ids[j], features[j] + value)

    for i in range(2):
        write_shard(i, np.float32(0), "old")

    assert merge_feature_shards(kind, tmp_path, "train", 2)

    merged = [feature_paths("kaldi", tmp_path, "train")[role] for role in ("record", "scp")]

    # The same making leaves what is there, another withdraws it.
    withdraw_merged(kind, tmp_path, "train", {"by": "old"})
    assert [p.exists() for p in merged] == [kind == "kaldi"] * 2

    withdraw_merged(kind, tmp_path, "train", {"by": "new"})
    assert [p.exists() for p in merged] == [False] * 2

    write_shard(0, np.float32(1), "new")

    assert not merge_feature_shards(kind, tmp_path, "train", 2)

    message = fail(kind, tmp_path, manifest)

    assert ("not made in the same way" if kind == "fairseq" else "no kaldi features") in message

    write_shard(1, np.float32(1), "new")

    assert merge_feature_shards(kind, tmp_path, "train", 2)

    opened = open_stored_features(kind, tmp_path, manifest)

    assert opened.record is not None and opened.record["by"] == "new"

    for i, f in enumerate(features):
        np.testing.assert_array_equal(opened.read(i), f + np.float32(1))


class _Stream:
    """Features of a manifest, as if computed."""

    def __init__(self, folder: Path) -> None:
        self.manifest, self.dim, self.rate = make_manifest(folder), DIM, 50

        self._features = make_features()

    def describe(self) -> dict[str, object]:
        return {"kind": "tests"}

    def describe_data(self) -> dict[str, object]:
        return {"split": "train"}

    def read(self, order: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return ((i, self._features[i]) for i in order)


def _dump(kind: FeatureFormat, folder: Path, num_shards: int, shards: Sequence[int] | None = None) -> list[int]:
    return dump_features(_Stream(folder), kind, folder, num_shards=num_shards, shards=shards)  # type: ignore[arg-type]


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(3, 2), (2, 3), (1, 2), (2, 1), (3, 1)])
def test_another_number_of_shards_takes_the_place_of_the_first(
    tmp_path: Path, kind: FeatureFormat, cuts: tuple[int, int]
) -> None:
    first, second = cuts

    out, alone = tmp_path / "out", tmp_path / "alone"

    out.mkdir()
    alone.mkdir()

    assert _dump(kind, out, first) == list(range(first))

    foreign = out / ("notes_0_9.json" if kind == "fairseq" else "train/feats.0_9.json")
    foreign.write_text("{}")

    # Until all shards are there, those of the first cut stay.
    before = {p for p in _files(out) if p.endswith((".npy", ".ark"))}

    _dump(kind, out, second, shards=range(second - 1))

    assert before <= set(_files(out))

    assert _dump(kind, out, second) == [second - 1]
    assert foreign.exists()

    foreign.unlink()

    _dump(kind, alone, second)

    assert _files(out) == _files(alone)

    opened = open_stored_features(kind, out, make_manifest(out))

    for i, f in enumerate(make_features()):
        np.testing.assert_array_equal(opened.read(i), f)

    # A process without a shard of its own changes nothing.
    assert _dump(kind, out, second, shards=[]) == []
    assert _files(out) == _files(alone)


def test_a_removal_that_was_killed_is_ended(tmp_path: Path) -> None:
    _dump("fairseq", tmp_path, 2)

    record = (tmp_path / "train_1_2.json").read_text()

    _dump("fairseq", tmp_path, 3)

    (tmp_path / "train_1_2.json").write_text(record)

    assert _dump("fairseq", tmp_path, 3) == []
    assert not list(tmp_path.glob("*_2.*"))


def test_fairseqs_own_dump_in_other_shards_is_refused_at_the_start(tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"train_{i}_2.npy", make_features()[0])

    with pytest.raises(OutputDirError, match=r"holds a dump of 'train' in other than 3 shards[^~]*train_1_2\.npy"):
        _dump("fairseq", tmp_path, 3)

    assert _files(tmp_path) == ["train_0_2.npy", "train_1_2.npy"]

    # Of the same number they are replaced, as ever.
    assert _dump("fairseq", tmp_path, 2) == [0, 1]
