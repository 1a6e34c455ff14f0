"""Files of features: what is written is read by us, by kaldiio and by numpy; what does not fit is named."""

from __future__ import annotations

import resource
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_answer, command_server
from tiny_features import DATA, DIM, KINDS, SIZES, fail, make_features, make_manifest, write

from hubert_plugin.data.feature_files import (
    FeatureFormat,
    feature_paths,
    open_feature_writer,
)
from hubert_plugin.data.feature_shards import merge_feature_shards
from hubert_plugin.data.manifest import Manifest, write_manifest
from hubert_plugin.data.shards import remove_leftovers
from hubert_plugin.data.stored_features import check_feature_rate, open_stored_features
from hubert_plugin.data.utterance_ids import write_utterance_ids
from hubert_plugin.errors import ManifestError, StorageError, UnitModelError


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(400, 8_000), min_size=1, max_size=6),
    st.integers(1, 5),
    st.sampled_from([50, 100]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, kind: FeatureFormat, sizes: list[int], dim: int, rate: int
) -> None:
    folder = tmp_path_factory.mktemp("features")

    manifest, features = make_manifest(folder, sizes), make_features(sizes, rate, dim)

    write(kind, folder, manifest, features, rate)

    opened = open_stored_features(kind, folder, manifest)

    assert (opened.dim, len(opened), check_feature_rate(opened, manifest, None)) == (dim, len(sizes), rate)
    assert opened.counts.tolist() == [len(f) for f in features]

    for i, f in enumerate(features):
        np.testing.assert_array_equal(opened.read(i), f)

    # Others read it as well.
    if kind == "kaldi":
        theirs = kaldiio.load_scp(str(folder / "train/feats.scp"))

        for i, f in zip(manifest.ids, features, strict=True):
            np.testing.assert_array_equal(theirs[i], f)

        assert float((folder / "train/frame_shift").read_text()) == 1 / rate
        assert (folder / "train/utt2num_frames").read_text().split() == [
            x for i, f in zip(manifest.ids, features, strict=True) for x in (i, str(len(f)))
        ]
    else:
        np.testing.assert_array_equal(np.load(folder / "train_0_1.npy", mmap_mode="r"), np.concatenate(features))

    assert not list(folder.rglob("*.tmp"))


def test_fairseqs_own_dump_is_read() -> None:
    folder = DATA / "kmeans"

    manifest = Manifest(folder / "train.tsv", "train", folder, ["a", "b", "c"], np.zeros(3, np.int64))

    for kind in ("mfcc", "hubert"):
        counts = [int(x) for x in (folder / kind / "train_0_1.len").read_text().split()]

        manifest = Manifest(
            folder / "train.tsv", "train", folder, [f"{i}" for i in range(len(counts))], np.zeros(len(counts), np.int64)
        )

        opened = open_stored_features("fairseq", folder / kind, manifest)

        assert opened.record is None and opened.counts.tolist() == counts

        whole = np.load(folder / kind / "train_0_1.npy")

        np.testing.assert_array_equal(np.concatenate([opened.read(i) for i in range(len(counts))]), whole)


@pytest.mark.parametrize("name", ["native_float", "native_double", "native_kSpeechFeature"])
def test_kaldis_own_features_are_read_in_the_order_of_the_manifest(name: str, tmp_path: Path) -> None:
    with np.load(DATA / "kaldi/expected.npz") as expected:
        ids = ["utt_c", "utt-a"]

        manifest = Manifest(tmp_path / "train.tsv", "train", tmp_path, ids, np.zeros(2, np.int64))

        opened = open_stored_features("kaldi", DATA / f"kaldi/{name}.scp", manifest)

        for i, key in enumerate(ids):
            np.testing.assert_allclose(opened.read(i), expected[f"{name}/{key}"], atol=1e-4)


def test_kaldi_ids_beside_the_manifest_find_the_features(tmp_path: Path) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    ids = [f"utt-{i}" for i in range(4)]

    with open_feature_writer("kaldi", tmp_path, "train", dim=DIM, rate=50) as writer:
        for i in (2, 0, 3, 1):
            writer.write(ids[i], features[i])

    assert "4 of 4 are missing, 4 others are there" in fail("kaldi", tmp_path, manifest)

    write_utterance_ids(manifest.path, ids)

    opened = open_stored_features("kaldi", tmp_path, manifest)

    for i, f in enumerate(features):
        np.testing.assert_array_equal(opened.read(i), f)

    write_utterance_ids(manifest.path, ids[:3])

    with pytest.raises(ManifestError, match="must have one id of its own for each of the 4 utterances"):
        open_stored_features("kaldi", tmp_path, manifest)


def test_keys_that_are_no_utf8_are_written_and_joined(tmp_path: Path) -> None:
    key = b"caf\xe9".decode("utf-8", "surrogateescape")

    with open_feature_writer("kaldi", tmp_path, "train", dim=DIM, rate=50, shard=(0, 1)) as writer:
        writer.write(key, make_features()[0])

    assert merge_feature_shards("kaldi", tmp_path, "train", 1)

    assert (tmp_path / "train/feats.scp").read_bytes().startswith(b"caf\xe9 ")
    assert (tmp_path / "train/feats.0_1.ark").read_bytes().startswith(b"caf\xe9 \0B")


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_features_are_not_written(tmp_path: Path, kind: FeatureFormat) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    write(kind, tmp_path, manifest, features)

    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    nan = features[1].copy()
    nan[3, 1] = np.nan

    for bad, message in (
        (("x", features[0][:, :2]), r"must have the shape \(frames, 3\)"),
        (("x", nan), "hold NaN or infinite"),
        ((manifest.ids[0], features[0]), "were given twice"),
    ):
        with (
            pytest.raises(UnitModelError, match=message),
            open_feature_writer(kind, tmp_path, "train", dim=DIM, rate=50) as writer,
        ):
            writer.write(manifest.ids[0], features[0])
            writer.write(*bad)

    # The block's own trouble is not the disk's.
    with pytest.raises(OSError, match="mine"), open_feature_writer(kind, tmp_path, "train", dim=DIM, rate=50) as writer:
        writer.write(manifest.ids[0], features[0])

        raise OSError("mine")

    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before

    with pytest.raises(UnitModelError, match="or 100 frames per second, but are to have 3 and 25"):
        open_feature_writer(kind, tmp_path, "train", dim=3, rate=25)


def test_ids_with_spaces_cannot_go_to_kaldi(tmp_path: Path) -> None:
    with (
        pytest.raises(UnitModelError, match="'a b' is empty or holds white space"),
        open_feature_writer("kaldi", tmp_path, "train", dim=DIM, rate=50) as writer,
    ):
        writer.write("a b", make_features()[0])


def test_ids_with_spaces_are_told_of_all_splits_before_any_audio_is_read(tmp_path: Path) -> None:
    names = {"train": ["fine.wav"], "valid": [f"take {i}.wav" for i in range(22)]}

    (tmp_path / "wav").mkdir()

    for split, refs in names.items():
        write_manifest(tmp_path / f"{split}.tsv", "wav", [(ref, 16_000) for ref in refs])

        for ref in refs:
            (tmp_path / "wav" / ref).touch()  # no audio

    out = tmp_path / "out"

    run = command_server().run("recipe", "hubert", "features", out, "--no-rich", "--config", f"manifest_dir={tmp_path}")

    phrases = ["Features of 22 utterance(s) cannot be written for kaldi", "(`format=fairseq`), or rename the files"]

    assert_answer(run, [*phrases, "valid.tsv': the utterance 'take 0.wav' is empty or holds white space", "2 more"])

    assert not (out / "train").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [50, 100_000, 1_197_000])
def test_a_full_disk_leaves_the_previous_features(tmp_path: Path, kind: FeatureFormat, limit: int) -> None:
    sizes = [160_000] * 200

    manifest, features = make_manifest(tmp_path, sizes), make_features(sizes)

    write(kind, tmp_path, make_manifest(tmp_path), make_features())

    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        with pytest.raises(StorageError, match="cannot be written"):
            write(kind, tmp_path, manifest, features)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path, kind: FeatureFormat) -> None:
    paths = feature_paths(kind, tmp_path, "train")

    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)

        (path.parent / f".{path.name}.a1b2c3d4.tmp").touch()

    others = [paths["data"].parent / n for n in (f".{paths['data'].name}.other", ".train_0_2.npy.a1b2c3d4.tmp")]

    for other in others:
        other.touch()

    write(kind, tmp_path, make_manifest(tmp_path), make_features())

    assert {p.name for p in paths["data"].parent.glob(".*")} == {o.name for o in others}

    remove_leftovers(tmp_path / "no folder" / "x")


def test_damaged_or_foreign_features_are_named(tmp_path: Path) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    assert "There are no kaldi features at" in fail("kaldi", tmp_path / "none", manifest)
    assert "cannot be read" in fail("fairseq", tmp_path / "none", manifest)
    assert "expected 'train_0_1.npy' and 'train_0_1.len'" in fail("fairseq", tmp_path, manifest)

    for kind in KINDS:
        write(kind, tmp_path, manifest, features)

    ark, npy = tmp_path / "train/feats.ark", tmp_path / "train_0_1.npy"

    for path, kind in ((ark, "kaldi"), (npy, "fairseq")):
        data = path.read_bytes()

        path.write_bytes(data[: len(data) // 2])
        assert "cut off" in fail(kind, tmp_path, manifest)  # type: ignore[arg-type]

        path.write_bytes(data)

    ark.rename(tmp_path / "moved.ark")
    assert (message := fail("kaldi", tmp_path, manifest)).count("there is no such file") == 4
    assert "feats.scp:3: 'spk/2.wav' lies in" in message
    (tmp_path / "moved.ark").rename(ark)

    # Frames that the count files tell of and the data do not have.
    (tmp_path / "train_0_1.len").write_text("49\n24\n100\n2\n")
    assert "has 174 frames, but 'train_0_1.len' tells of 175" in fail("fairseq", tmp_path, manifest)

    (tmp_path / "train_0_1.len").unlink()
    assert "there is no 'train_0_1.len'" in fail("fairseq", tmp_path, manifest)

    (tmp_path / "train/utt2num_frames").write_text("spk/0.wav 49\nspk/1.wav x\n")
    message = fail("kaldi", tmp_path, manifest)
    assert "utt2num_frames:2: must be 'utterance frames'" in message and "has no line for 'spk/3.wav'" in message

    write("fairseq", tmp_path, manifest, features)
    np.save(npy, np.array([{"a": 1}], object), allow_pickle=True)
    assert "holds Python objects, which are never read" in fail("fairseq", tmp_path, manifest)

    other = make_manifest(tmp_path, SIZES[:3])
    write("fairseq", tmp_path, manifest, features)
    assert "are of 4 utterances, but" in fail("fairseq", tmp_path, other)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_files_of_others_is_named(tmp_path: Path, kind: FeatureFormat) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    features[2][7, 1] = np.inf

    if kind == "kaldi":
        (tmp_path / "train").mkdir()

        kaldiio.save_ark(
            str(tmp_path / "f.ark"), dict(zip(manifest.ids, features, strict=True)), str(tmp_path / "train/feats.scp")
        )
    else:
        np.save(tmp_path / "train_0_1.npy", np.concatenate(features))

        (tmp_path / "train_0_1.len").write_text("".join(f"{len(f)}\n" for f in features))

    message = fail(kind, tmp_path, manifest)

    assert "spk/2.wav" in message and "NaN or infinite values, first in frame 7" in message


def test_features_of_another_rate_or_other_audio_are_named(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write("fairseq", tmp_path, manifest, make_features(rate=100), rate=100)

    opened = open_stored_features("fairseq", tmp_path, manifest)

    with pytest.raises(UnitModelError, match="have 100 frames per second by their record, but 50 were asked for"):
        check_feature_rate(opened, manifest, 50)

    (tmp_path / "train_0_1.json").unlink()

    opened = open_stored_features("fairseq", tmp_path, manifest)

    with pytest.raises(UnitModelError, match=r"at 50 Hz. They look like 100 frames per second[^~]*'spk/0.wav'"):
        check_feature_rate(opened, manifest, 50)

    write("fairseq", tmp_path, manifest, [f[:-5] if len(f) > 90 else f for f in make_features()])

    assert "'spk/2.wav' (32123 samples) has 100 frames, but features of 95" in fail("fairseq", tmp_path, manifest)

    write("fairseq", tmp_path, manifest, [f[::2] for f in make_features()])

    (tmp_path / "train_0_1.json").unlink()

    assert "24.9 frames per second on the average" in fail("fairseq", tmp_path, manifest)
