"""Files of features that hold something else than they should: what is wrong is named with its place."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from tiny_features import KINDS, fail, make_features, make_manifest, write

from hubert_plugin.data.feature_files import FeatureFormat, feature_paths
from hubert_plugin.data.stored_features import check_feature_rate, open_stored_features
from hubert_plugin.errors import UnitModelError


def _save(array: np.ndarray, path: Path) -> None:
    np.save(path, array, allow_pickle=True)


def _save_npz(array: np.ndarray, path: Path) -> None:
    np.savez(path.with_suffix(".npz"), array)

    path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, p: _save(a.astype(np.int64), p), "must hold real numbers such as float32, but holds int64"),
        (lambda a, p: _save(a.astype(np.complex64), p), "but holds complex64"),
        (lambda a, p: _save(a[:, :0], p), "must hold (frames, features), but has the shape (174, 0)"),
        (lambda a, p: _save(a.T, p), "has 3 frames, but 'train_0_1.len' tells of 174; rows and columns seem to be"),
        (_save_npz, "is a zip archive, such as `numpy.savez` writes (.npz)"),
        (
            lambda a, p: p.write_text("0.1 0.2\n"),
            "must be an array as `numpy.save` writes it, but begins with b'0.1 0.'",
        ),
        (lambda a, p: p.write_bytes(b""), "but begins with b''"),
        (lambda a, p: p.write_bytes(gzip.compress(a.tobytes())), "train_0_1.npy' is compressed with gzip: unpack it"),
    ],
)
def test_a_dump_that_holds_something_else_says_what(
    tmp_path: Path, make: Callable[[np.ndarray, Path], object], message: str
) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    write("fairseq", tmp_path, manifest, features)

    make(np.concatenate(features), tmp_path / "train_0_1.npy")

    text = fail("fairseq", tmp_path, manifest)

    assert f"{tmp_path}/train_0_1.npy" in text and message in text
    assert "allow_pickle" not in text and "cut off" not in text


@pytest.mark.parametrize("shape", ["(1" + "0" * 30 + ", 3)", "(True, 3)", "(174, 3"])
def test_a_dump_with_a_damaged_header_is_told(tmp_path: Path, shape: str) -> None:
    manifest = make_manifest(tmp_path)

    write("fairseq", tmp_path, manifest, make_features())

    path = tmp_path / "train_0_1.npy"

    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"

    path.write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + path.read_bytes()[128:])

    assert f"{path}: cannot be read, it is cut off or damaged" in fail("fairseq", tmp_path, manifest)


@pytest.mark.parametrize("line", ["698.0", "-3", "9" * 30, "x\x00\xff"])
def test_a_length_that_is_none_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    manifest = make_manifest(tmp_path)

    write("fairseq", tmp_path, manifest, make_features())

    (tmp_path / "train_0_1.len").write_bytes(f"49\n{line}\n".encode("latin-1"))

    message = fail("fairseq", tmp_path, manifest)

    assert f"{tmp_path}/train_0_1.len:2: must be a number of frames, but is '{line[:1]}" in message


def test_nan_in_a_dump_is_named_with_file_and_row(tmp_path: Path) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    features[2][7, 1] = np.nan

    np.save(tmp_path / "train_0_1.npy", np.concatenate(features))

    (tmp_path / "train_0_1.len").write_text("".join(f"{len(f)}\n" for f in features))

    row = len(features[0]) + len(features[1]) + 7

    assert f"(row {row} of '{tmp_path}/train_0_1.npy', counted from 0)" in fail("fairseq", tmp_path, manifest)


@pytest.mark.parametrize("key, value", [("rate", "abc"), ("rate", 75), ("dim", None), ("dim", 0), ("num_frames", -1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_wrong_values_is_refused(tmp_path: Path, kind: FeatureFormat, key: str, value: object) -> None:
    manifest = make_manifest(tmp_path)

    write(kind, tmp_path, manifest, make_features())

    path = feature_paths(kind, tmp_path, "train")["record"]

    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    message = fail(kind, tmp_path, manifest)

    assert f"'{path}' cannot be used" in message and f"`{key}` must be" in message
    assert f"but is {json.dumps(value)}" in message


def test_counts_and_offsets_that_no_file_reaches_are_told(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write("kaldi", tmp_path, manifest, make_features())

    counts, scp = tmp_path / "train/utt2num_frames", tmp_path / "train/feats.scp"

    before = counts.read_text()

    counts.write_text(before.replace("49", "4" * 30))
    assert "utt2num_frames:1: must be 'utterance frames', but the frames are '4444" in fail("kaldi", tmp_path, manifest)

    counts.write_text(before)

    scp.write_text(re.sub(r":\d+\n", ":" + "9" * 23 + "\n", scp.read_text(), count=1))
    assert "'spk/0.wav' should begin at byte 99,999," in fail("kaldi", tmp_path, manifest)


def test_a_byte_order_mark_and_gzip_at_the_head_of_tables(tmp_path: Path) -> None:
    manifest, features = make_manifest(tmp_path), make_features()

    write("kaldi", tmp_path, manifest, features)

    scp = tmp_path / "train/feats.scp"

    scp.write_bytes(b"\xef\xbb\xbf" + scp.read_bytes())

    np.testing.assert_array_equal(open_stored_features("kaldi", tmp_path, manifest).read(0), features[0])

    for path in (scp, tmp_path / "train/utt2num_frames"):
        data = path.read_bytes()

        path.write_bytes(gzip.compress(data))
        assert f"'{path}' is compressed with gzip: unpack it (`gunzip -c" in fail("kaldi", tmp_path, manifest)

        path.write_bytes(data)


def test_matrices_whose_rows_and_columns_are_exchanged_are_told(tmp_path: Path) -> None:
    sizes = [160_000, 161_000]

    manifest, features = make_manifest(tmp_path, sizes), make_features(sizes)

    kaldiio.save_ark(
        str(tmp_path / "f.ark"),
        {i: f.T for i, f in zip(manifest.ids, features, strict=True)},
        str(tmp_path / "feats.scp"),
    )

    message = "Rows and columns seem to be exchanged: a matrix must have a row for each frame."

    assert message in fail("kaldi", tmp_path, manifest)

    with pytest.raises(UnitModelError, match=message):
        check_feature_rate(open_stored_features("kaldi", tmp_path, manifest), manifest, 50)

    with pytest.raises(UnitModelError, match="must be 50 or 100 frames per second, but is 75"):
        check_feature_rate(open_stored_features("kaldi", tmp_path, manifest), manifest, 75)

    # Of too few frames only: nothing is exchanged.
    write("kaldi", tmp_path, manifest, [f[:10] for f in features])

    assert "exchanged" not in fail("kaldi", tmp_path, manifest)


def test_a_first_matrix_of_no_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feats.ark").write_text("spk/0.wav  [ ]\n")

    assert "'spk/0.wav'" in (message := fail("kaldi", tmp_path / "feats.ark", make_manifest(tmp_path, [16_000])))
    assert "must have one number a frame or more, but have the shape (0, 0)" in message


def test_commands_in_the_script_file_of_features_are_refused_with_the_setting_that_there_is(tmp_path: Path) -> None:
    (tmp_path / "feats.scp").write_text("spk/0.wav copy-feats x |\n")

    message = fail("kaldi", tmp_path, make_manifest(tmp_path, [16_000]))

    assert "set `allow_pipes: true` in the `config` of the features" in message
