"""Label stores: what is written is read, and what does not fit is refused with everything that is wrong."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data import label_check
from hubert_plugin.data.label_check import expected_counts, parse_labels
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.errors import AudioError, LabelError, StorageError
from hubert_plugin.frames import num_labels
from hubert_plugin.registry import LabelSetSpec

SIZES = [16_000, 8_000, 32_123, 400]  # 49, 24, 100 and 1 labels at 50 Hz

SPEC = LabelSetSpec("km", 10, 50)


def make_manifest(folder: Path, sizes: list[int] = SIZES, prefix: str = "") -> Manifest:
    ids = [f"{prefix}{i}.wav" for i in range(len(sizes))]

    return Manifest(folder / "train.tsv", "train", folder, ids, np.array(sizes, np.int64))


def make_units(sizes: list[int] = SIZES, rate: int = 50, size: int = 10, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    return [rng.integers(size, size=num_labels(n, rate)).astype(np.int32) for n in sizes]


def write_plain(folder: Path, lines: list[list[object]], size: int = 10, name: str = "km") -> None:
    (folder / f"train.{name}").write_text("".join(" ".join(map(str, x)) + "\n" for x in lines))
    (folder / f"dict.{name}.txt").write_text("".join(f"{u} 1\n" for u in range(size)))


def open_error(folder: Path, manifest: Manifest, **kwargs: object) -> str:
    with pytest.raises(LabelError) as info:
        open_labels(folder, "train", "km", manifest, **kwargs)  # type: ignore[arg-type]

    return str(info.value)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(400, 20_000), min_size=1, max_size=8),
    st.sampled_from([50, 100]),
    st.sampled_from([1, 2, 10, 500, 40_000]),
    st.integers(0, 1000),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rate: int, size: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("labels")

    manifest, units = make_manifest(folder, sizes), make_units(sizes, rate, size, seed)

    spec = LabelSetSpec("x", size, rate)

    write_labels(folder, "train", spec, units, manifest, {"unit_model_fingerprint": "abc"})

    labels = open_labels(folder, "train", "x", manifest, rate=rate, size=size, unit_model_fingerprint="abc")

    assert labels.spec == spec and len(labels) == len(sizes)
    assert labels.provenance is not None and labels.provenance["unit_model_fingerprint"] == "abc"

    for i, u in enumerate(units):
        assert labels[i].dtype == np.int32
        np.testing.assert_array_equal(labels[i], u)
        assert labels.num_labels(i) == len(u)

    assert labels.num_frames().tolist() == [num_labels(n, 50) for n in sizes]
    assert labels.unit_counts().tolist() == np.bincount(np.concatenate(units), minlength=size).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 1200), max_size=12), max_size=20), st.booleans(), st.integers(1, 40))
def test_parser_equals_plain_python(lines: list[list[int]], last_newline: bool, chunk: int) -> None:
    text = "\n".join(" ".join(map(str, x)) for x in lines) + ("\n" if last_newline and lines else "")

    expected = [[int(t) for t in x.split()] for x in text.removesuffix("\n").split("\n")] if text else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_check, "_CHUNK_BYTES", chunk)

        parsed = parse_labels(text.encode(), 1000)

    assert parsed.counts.tolist() == [len(x) for x in expected]
    assert parsed.values.tolist() == [v if v < 1000 else 0 for x in expected for v in x]
    assert [n for n, _ in parsed.problems] == [n for n, x in enumerate(expected, 1) if any(v >= 1000 for v in x)]


def test_spaces_tabs_and_windows_line_ends_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "train.km").write_bytes(b"  1\t2  3 \r\n4 5 6\r\n")
    (tmp_path / "dict.km.txt").write_text("".join(f"{u} 1\n" for u in range(10)))

    labels = open_labels(tmp_path, "train", "km", make_manifest(tmp_path, [1_040, 1_040]), rate=50)

    assert [labels[i].tolist() for i in range(2)] == [[1, 2, 3], [4, 5, 6]]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([50, 100]), st.integers(4_000, 50_000), st.integers(-5, 5))
def test_20_ms_of_difference_is_tolerated_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, rate: int, num_samples: int, difference: int
) -> None:
    folder = tmp_path_factory.mktemp("tolerance")

    manifest = make_manifest(folder, [num_samples])

    expected = num_labels(num_samples, rate)

    write_plain(folder, [[1] * (expected + difference)])

    if abs(difference) <= {50: 1, 100: 2}[rate]:
        labels = open_labels(folder, "train", "km", manifest, rate=rate)

        assert labels.num_labels(0) == len(labels[0]) == expected + min(difference, 0)
        assert labels.num_frames()[0] <= num_labels(num_samples, 50)
    else:
        message = open_error(folder, manifest, rate=rate)

        assert f"train.km:1: too {'short' if difference < 0 else 'long'}: {expected + difference} labels" in message
        assert f"'0.wav' ({num_samples} samples, train.tsv:2) has {expected} frames at {rate} Hz" in message


@pytest.mark.parametrize("rate", [50, 100])
def test_the_rate_is_inferred(tmp_path: Path, rate: int) -> None:
    write_plain(tmp_path, [u.tolist() for u in make_units(rate=rate)])

    assert open_labels(tmp_path, "train", "km", make_manifest(tmp_path)).spec.rate == rate


def test_labels_of_no_supported_rate_are_refused(tmp_path: Path) -> None:
    write_plain(tmp_path, [[0] * (n // 640) for n in SIZES])

    assert "24.6 labels per second" in open_error(tmp_path, make_manifest(tmp_path))


def test_a_wrong_label_rate_is_told_from_wrong_lines(tmp_path: Path) -> None:
    write_plain(tmp_path, [u.tolist() for u in make_units(rate=50)])

    message = open_error(tmp_path, make_manifest(tmp_path), rate=100)

    assert "at 100 labels per second, but look like 50" in message


@pytest.mark.parametrize("num_lines", [0, 3, 5])
def test_another_number_of_lines_names_both(tmp_path: Path, num_lines: int) -> None:
    lines = [u.tolist() for u in make_units([*SIZES, 800])]

    write_plain(tmp_path, lines[:num_lines])

    assert f"train.km has {num_lines} lines, but train.tsv has 4 utterances" in open_error(
        tmp_path, make_manifest(tmp_path)
    )


def test_all_problems_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    lines: list[list[object]] = [u.tolist() for u in make_units()]

    lines[0][3] = 10
    lines[1][:] = []
    lines[2][5] = "x7"
    lines[3].extend([1, 1, 1])

    write_plain(tmp_path, lines)

    message = open_error(tmp_path, make_manifest(tmp_path), rate=50)

    assert f"{tmp_path}/train.km:1: label 10 is out of range: the 10 units are 0 … 9" in message
    assert "train.km:2: the line is empty, but '1.wav'" in message
    assert "train.km:3: 'x7' is not an integer label" in message
    assert "train.km:4: too long: 4 labels" in message


@pytest.mark.parametrize(("num_samples", "rate"), [(400, 50), (719, 50), (400, 100), (719, 100)])
def test_a_line_may_be_empty_where_its_audio_has_20_ms_of_frames(tmp_path: Path, num_samples: int, rate: int) -> None:
    ones = [1] * num_labels(16_000, rate)

    write_plain(tmp_path, [ones, [], ones])

    labels = open_labels(tmp_path, "train", "km", make_manifest(tmp_path, [16_000, num_samples, 16_000]))

    assert labels.spec.rate == rate and labels[1].tolist() == [] and labels[2].tolist() == ones
    assert labels.num_frames().tolist() == [49, 0, 49]

    write_plain(tmp_path, [ones, [], ones])

    message = open_error(tmp_path, make_manifest(tmp_path, [16_000, 720, 16_000]))

    assert "train.km:2: the line is empty, but '1.wav' (720 samples" in message


@pytest.mark.parametrize("token", ["-1", "1.5", "1_0", "99999999999999999999", "¹", "+3", "0x1"])
def test_tokens_that_are_no_units_are_refused(tmp_path: Path, token: str) -> None:
    write_plain(tmp_path, [[1, token, 2]])

    assert "train.km:1: " in open_error(tmp_path, make_manifest(tmp_path, [1_040]), rate=50)


def test_no_more_than_20_problems_are_listed(tmp_path: Path) -> None:
    write_plain(tmp_path, [[1, 99, 2]] * 50)

    message = open_error(tmp_path, make_manifest(tmp_path, [1_040] * 50), rate=50)

    assert message.count("out of range") == 20 and "and 30 more" in message


def test_missing_labels_name_those_that_exist(tmp_path: Path) -> None:
    write_plain(tmp_path, [[1]], name="mfcc50")

    (tmp_path / "train.tsv").touch()

    assert "Label files in" in (message := open_error(tmp_path, make_manifest(tmp_path)))
    assert ": train.mfcc50. Name the folder" in message
    assert "folder does not exist" in open_error(tmp_path / "no", make_manifest(tmp_path))


def test_a_missing_empty_or_malformed_dictionary_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write_plain(tmp_path, [u.tolist() for u in make_units()])

    dictionary = tmp_path / "dict.km.txt"

    dictionary.write_text("")
    assert "is empty" in open_error(tmp_path, manifest)

    dictionary.write_text("0 1\n1\n0 1\nx y\n")
    message = open_error(tmp_path, manifest)
    assert "dict.km.txt:2: must be 'symbol count', but is '1'" in message
    assert "dict.km.txt:3: '0' is also in line 1" in message and "dict.km.txt:4" in message

    dictionary.write_text("AA 1\n")
    assert "'AA' is not a unit number" in open_error(tmp_path, manifest)

    dictionary.write_text("".join(f"{u} 1\n" for u in range(9)))
    assert "label 9 is out of range" in open_error(tmp_path, manifest)
    assert "has 9 units, but" in open_error(tmp_path, manifest, size=10)

    dictionary.unlink()
    assert "no dictionary" in open_error(tmp_path, manifest)
    assert open_labels(tmp_path, "train", "km", manifest, size=10).spec.size == 10


def test_labels_are_rows_of_a_dictionary_in_another_order(tmp_path: Path) -> None:
    write_plain(tmp_path, [[7, 0, 3]])

    (tmp_path / "dict.km.txt").write_text("3 50\n7 20\n0 10\n")

    assert open_labels(tmp_path, "train", "km", make_manifest(tmp_path, [1_040]), rate=50)[0].tolist() == [1, 2, 0]

    write_plain(tmp_path, [[7, 5, 3]])

    (tmp_path / "dict.km.txt").write_text("3 50\n7 20\n0 10\n")

    message = open_error(tmp_path, make_manifest(tmp_path, [1_040]), rate=50)

    assert "label 5 is out of range: the 3 units are in the dictionary" in message


def test_labels_of_another_manifest_or_unit_model_name_both(tmp_path: Path) -> None:
    manifest, other = make_manifest(tmp_path), make_manifest(tmp_path, prefix="b")

    write_labels(tmp_path, "train", SPEC, make_units(), manifest, {"unit_model_fingerprint": "aaaa"})

    message = open_error(tmp_path, other, unit_model_fingerprint="bbbb")

    assert manifest.fingerprint in message and other.fingerprint in message
    assert "fingerprint aaaa, but bbbb was asked for" in message

    assert "rate 50 Hz by their record, but 100 Hz" in open_error(tmp_path, manifest, rate=100)
    assert "size 10 units by their record, but 11 units" in open_error(tmp_path, manifest, size=11)

    (tmp_path / "train.km.json").unlink()

    assert "no record" in open_error(tmp_path, manifest, unit_model_fingerprint="aaaa")
    assert len(open_labels(tmp_path, "train", "km", manifest)) == 4


def test_labels_that_were_changed_behind_their_record_are_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    write_labels(tmp_path, "train", SPEC, make_units(), manifest, {})

    path = tmp_path / "train.km"

    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))

    assert "are not the labels that 'train.km.json' tells of" in open_error(tmp_path, manifest)

    path.with_name("train.km.json").write_text(json.dumps({"a": 1}))
    assert "must be a record of labels" in open_error(tmp_path, manifest)

    path.with_name("train.km.json").write_text("{")
    assert "cannot be read" in open_error(tmp_path, manifest)


def store(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    "error", [AudioError("a.wav is broken"), OSError(5, "Input/output error"), KeyboardInterrupt()]
)
def test_an_error_while_labelling_leaves_the_previous_labels(tmp_path: Path, error: BaseException) -> None:
    manifest = make_manifest(tmp_path)

    write_labels(tmp_path, "train", SPEC, make_units(), manifest, {})

    before = store(tmp_path)

    def units() -> Iterator[np.ndarray]:
        yield make_units(seed=1)[0]

        raise error

    expected = LabelError if isinstance(error, OSError) else type(error)

    with pytest.raises(expected):
        write_labels(tmp_path, "train", SPEC, units(), manifest, {})

    assert store(tmp_path) == before


def test_a_full_disk_leaves_the_previous_labels(tmp_path: Path) -> None:
    sizes = [160_000] * 400

    manifest = make_manifest(tmp_path, sizes)

    write_labels(tmp_path, "train", SPEC, make_units(sizes), manifest, {})

    before = store(tmp_path)

    units = make_units(sizes, seed=1)

    # Python ignores SIGXFSZ, so that a file beyond the limit fails with an `OSError`, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    for limit in (10, 200_000, 399_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StorageError, match="cannot be written"):
                write_labels(tmp_path, "train", SPEC, units, manifest, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        assert store(tmp_path) == before

    assert len(open_labels(tmp_path, "train", "km", manifest)) == 400


def test_labels_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    manifest, units = make_manifest(tmp_path), make_units()

    for wrong, message in (
        (units[:3], "3 utterances, but"),
        ([*units, units[0]], "more utterances than the 4"),
        ([units[0][:-1], *units[1:]], r"must have 49 labels for '0.wav' \(16000 samples, 50 Hz\), but was given 48"),
        ([units[0] + 5, *units[1:]], r"units 0 … 9, but was given 5 … 14"),
    ):
        with pytest.raises(LabelError, match=message):
            write_labels(tmp_path, "train", SPEC, wrong, manifest, {})

    assert store(tmp_path) == {}


def test_expected_counts_follow_the_frame_clock() -> None:
    sizes = np.random.default_rng(0).integers(0, 50_000, size=2_000)

    for rate in (50, 100):
        assert expected_counts(sizes, rate).tolist() == [num_labels(n, rate) for n in sizes.tolist()]
