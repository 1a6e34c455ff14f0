"""Binary labels: the same labels as text, mapped; opening reads nothing but the header."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from hubert_plugin.data.label_binary import binary_path, open_binary_labels, verify_binary_labels
from hubert_plugin.data.label_meta import FORMAT
from hubert_plugin.data.labels import LabelForm, LabelSet, open_labels, write_labels
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.errors import AudioError, LabelError, StorageError
from hubert_plugin.frames import num_labels
from hubert_plugin.registry import LabelSetSpec

SIZES = [16_000, 8_000, 32_123, 400]

SPEC = LabelSetSpec("km", 10, 50)


def make_manifest(folder: Path, sizes: list[int] = SIZES, prefix: str = "") -> Manifest:
    ids = [f"{prefix}{i}.wav" for i in range(len(sizes))]

    return Manifest(folder / "train.tsv", "train", folder, ids, np.array(sizes, np.int64))


def make_units(sizes: list[int] = SIZES, rate: int = 50, size: int = 10, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    return [rng.integers(size, size=num_labels(n, rate)).astype(np.int32) for n in sizes]


def write(folder: Path, manifest: Manifest, units: list[np.ndarray], spec: LabelSetSpec = SPEC, **more: object) -> None:
    write_labels(folder, "train", spec, units, manifest, {"unit_model_fingerprint": "abc", **more}, form="binary")


def open_error(folder: Path, manifest: Manifest, **kwargs: object) -> str:
    with pytest.raises(LabelError) as info:
        open_labels(folder, "train", "km", manifest, **kwargs)  # type: ignore[arg-type]

    return str(info.value)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(400, 20_000), min_size=1, max_size=8),
    st.sampled_from([50, 100]),
    st.sampled_from([(1, "u1"), (256, "u1"), (257, "<i2"), (1 << 15, "<i2"), (40_000, "<i4")]),
    st.integers(0, 1000),
)
def test_both_forms_hold_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rate: int, size_type: tuple[int, str], seed: int
) -> None:
    size, dtype = size_type

    text, binary = tmp_path_factory.mktemp("text"), tmp_path_factory.mktemp("binary")

    manifest, units = make_manifest(text, sizes), make_units(sizes, rate, size, seed)

    units[0][0] = size - 1

    spec = LabelSetSpec("km", size, rate)

    write_labels(text, "train", spec, units, manifest, {"unit_model_fingerprint": "abc"})

    write(binary, manifest, units, spec)

    a = open_labels(text, "train", "km", manifest)
    b = open_labels(binary, "train", "km", manifest, rate=rate, size=size, unit_model_fingerprint="abc")

    assert a.spec == b.spec == spec and len(a) == len(b) == len(sizes)

    for i, u in enumerate(units):
        assert b[i].dtype == np.int32

        np.testing.assert_array_equal(b[i], u)
        np.testing.assert_array_equal(a[i], u)

        assert a.num_labels(i) == b.num_labels(i)

    assert a.num_frames().tolist() == b.num_frames().tolist()
    assert a.unit_counts().tolist() == b.unit_counts().tolist()

    # Other tools read it as a safetensors file.
    tensors = load_file(binary / "train.km.safetensors")

    assert tensors["values"].dtype == np.dtype(dtype)

    np.testing.assert_array_equal(tensors["values"], np.concatenate(units))
    np.testing.assert_array_equal(tensors["offsets"], np.cumsum([0, *map(len, units)]))

    verify_binary_labels(binary / "train.km.safetensors")

    assert sorted(os.listdir(binary)) == ["train.km.safetensors"]


@pytest.mark.parametrize("form", ["km", "binary"])
def test_utterances_are_counted_from_the_end_as_in_a_list(tmp_path: Path, form: LabelForm) -> None:
    manifest, units = make_manifest(tmp_path), make_units()

    write_labels(tmp_path, "train", SPEC, units, manifest, {}, form=form)

    labels = open_labels(tmp_path, "train", "km", manifest)

    for idx in [*range(-len(units), len(units)), np.int64(-1)]:
        assert labels[idx].tolist() == units[idx].tolist()
        assert labels.num_labels(idx) == len(units[idx])

    for idx in (len(units), -len(units) - 1):
        for ask in (labels.__getitem__, labels.num_labels):
            with pytest.raises(IndexError, match=rf"no utterance {idx} in the labels 'km' of 4 utterances"):
                ask(idx)

    assert [u.tolist() for u in labels] == [u.tolist() for u in units]


def test_several_label_sets_of_their_own_rate_and_size_in_one_folder(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    sets = {"km50": (50, 500), "km100": (100, 100)}

    for name, (rate, size) in sets.items():
        write(tmp_path, manifest, make_units(SIZES, rate, size), LabelSetSpec(name, size, rate))

    write_labels(tmp_path, "train", SPEC, make_units(), manifest, {})  # and a text one beside them

    for name, (rate, size) in sets.items():
        labels = open_labels(tmp_path, "train", name, manifest)

        assert (labels.spec.rate, labels.spec.size) == (rate, size)
        assert labels[2].tolist() == make_units(SIZES, rate, size)[2].tolist()

    assert open_labels(tmp_path, "train", "km", manifest)[1].tolist() == make_units()[1].tolist()

    with pytest.raises(LabelError, match=r"Label files in .*: train.km, train.km100, train.km50\."):
        open_labels(tmp_path, "train", "other", manifest)


def test_a_label_set_has_one_form(tmp_path: Path) -> None:
    manifest, units = make_manifest(tmp_path), make_units()

    write(tmp_path, manifest, units)
    write_labels(tmp_path, "train", SPEC, units, manifest, {})

    assert sorted(os.listdir(tmp_path)) == ["dict.km.txt", "train.km", "train.km.json"]

    write(tmp_path, manifest, units)

    assert sorted(os.listdir(tmp_path)) == ["dict.km.txt", "train.km.safetensors"]

    # As a kill between the rename and the removal leaves it.
    (tmp_path / "train.km").write_text("0\n")

    assert "There are two forms of the same labels" in open_error(tmp_path, manifest)


def rss_bytes() -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024

    raise AssertionError


def test_ten_million_utterances_open_without_being_read(tmp_path: Path) -> None:
    num_utterances, num_each = 10_000_000, 600

    # What a writer of 60 hours would leave, but sparse: the labels are holes of 12 GB, which read as zeros.
    write(tmp_path, make_manifest(tmp_path), make_units(), LabelSetSpec("km", 500, 50))

    path = binary_path(tmp_path, "train", "km")

    data = path.read_bytes()

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])

    record = json.loads(header["__metadata__"][FORMAT])

    num_labels_all, end = num_utterances * num_each, 8 * (num_utterances + 1)

    record.update(num_utterances=num_utterances, num_labels=num_labels_all, num_bytes=2 * num_labels_all)

    header["__metadata__"][FORMAT] = json.dumps(record)
    header["offsets"].update(shape=[num_utterances + 1], data_offsets=[0, end])
    header["values"].update(shape=[num_labels_all], data_offsets=[end, end + 2 * num_labels_all])

    text = json.dumps(header).encode().ljust(4096 - 8)

    with path.open("wb") as fp:
        fp.write((4096 - 8).to_bytes(8, "little") + text)
        fp.truncate(4096 + end + 2 * num_labels_all)

        offsets = np.arange(0, num_labels_all + 1, num_each)
        offsets.tofile(fp)

        fp.seek(4096 + end + 2 * 7_654_321 * num_each)
        np.arange(num_each, dtype="<i2").clip(max=499).tofile(fp)

    del offsets

    before = rss_bytes()

    labels = open_binary_labels(path)

    for array in (labels.offsets, labels.values):
        base = array

        while not isinstance(base, np.memmap) and base.base is not None:
            base = base.base

        assert isinstance(base, np.memmap)

    opened = LabelSet(LabelSetSpec("km", 500, 50), labels.values, labels.offsets)

    assert len(opened) == num_utterances
    assert opened[7_654_321].tolist() == [min(i, 499) for i in range(num_each)]
    assert opened[num_utterances - 1].tolist() == [0] * num_each

    # 80 MB of offsets and 12 GB of labels: the system reads ahead a little around what is touched.
    assert rss_bytes() - before < 8 << 20


@pytest.mark.parametrize("error", [AudioError("a.wav is broken"), OSError(5, "Input/output error")])
def test_an_error_while_labelling_leaves_the_previous_labels(tmp_path: Path, error: Exception) -> None:
    manifest = make_manifest(tmp_path)

    write(tmp_path, manifest, make_units())

    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def units():  # type: ignore[no-untyped-def]
        yield make_units(seed=1)[0]

        raise error

    with pytest.raises(LabelError if isinstance(error, OSError) else type(error)):
        write_labels(tmp_path, "train", SPEC, units(), manifest, {}, form="binary")

    for wrong, message in (
        (make_units()[:3], "3 utterances, but"),
        ([u + 5 for u in make_units()], r"units 0 … 9, but was given 5 … 14"),
    ):
        with pytest.raises(LabelError, match=message):
            write(tmp_path, manifest, wrong)

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_previous_labels(tmp_path: Path) -> None:
    sizes = [160_000] * 400

    manifest = make_manifest(tmp_path, sizes)

    write(tmp_path, manifest, make_units(sizes))

    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    for limit in (10, 100_000, len(before["train.km.safetensors"]) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StorageError, match="cannot be written"):
                write(tmp_path, manifest, make_units(sizes, seed=1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_labels_of_another_manifest_or_unit_model_or_shape_are_refused(tmp_path: Path) -> None:
    manifest, other = make_manifest(tmp_path), make_manifest(tmp_path, prefix="b")

    write(tmp_path, manifest, make_units())

    message = open_error(tmp_path, other, unit_model_fingerprint="bbbb")

    assert manifest.fingerprint in message and other.fingerprint in message
    assert "fingerprint abc, but bbbb was asked for" in message

    assert "rate 50 Hz by their record, but 100 Hz" in open_error(tmp_path, manifest, rate=100)
    assert "size 10 units by their record, but 11 units" in open_error(tmp_path, manifest, size=11)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write(tmp_path, manifest, make_units())

    path = tmp_path / "train.km.safetensors"

    data = path.read_bytes()

    for size in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])

        assert "may have been cut off" in open_error(tmp_path, manifest)


def test_labels_that_were_changed_are_found_out(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write(tmp_path, manifest, make_units())

    path = tmp_path / "train.km.safetensors"

    data = bytearray(path.read_bytes())

    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(LabelError, match="are not those that their record tells of"):
        verify_binary_labels(path)

    data[-1] = 200
    path.write_bytes(data)

    labels = open_labels(tmp_path, "train", "km", manifest)

    assert labels[0].tolist() == make_units()[0].tolist()

    with pytest.raises(LabelError, match=r"utterance 3 \(counted from 0\) has the labels 200 … 200"):
        labels[3]

    path.write_bytes(b"\x10" + bytes(7) + b"{}" + bytes(100))
    assert "are no labels" in open_error(tmp_path, manifest)


def test_up_to_20_ms_may_be_missing_where_that_is_allowed(tmp_path: Path) -> None:
    manifest, units = make_manifest(tmp_path, [16_000, 16_000]), make_units([16_000, 16_000])

    given_units = [units[0][:-1], np.append(units[1], 3)]

    for form in ("km", "binary"):
        write_labels(tmp_path, "train", SPEC, given_units, manifest, {}, form=form, exact=False)  # type: ignore[arg-type]

        labels = open_labels(tmp_path, "train", "km", manifest)

        assert [labels[i].tolist() for i in range(2)] == [units[0][:-1].tolist(), units[1].tolist()]
        assert labels.num_frames().tolist() == [48, 49]

    with pytest.raises(LabelError, match="must have 49 labels"):
        write_labels(tmp_path, "train", SPEC, [units[0][:-2], units[1]], manifest, {}, exact=False)
