"""Features in shards, as fairseq cuts them: joined when all are there and of one making."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_features import DATA, DIM, KINDS, fail, make_features, make_manifest

from hubert_plugin.data.feature_files import (
    FeatureFormat,
    feature_paths,
    is_feature_shard_done,
    merge_feature_shards,
    open_feature_writer,
    withdraw_merged,
)
from hubert_plugin.data.shards import shard_range
from hubert_plugin.data.stored_features import open_stored_features
from hubert_plugin.errors import ConfigError


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
