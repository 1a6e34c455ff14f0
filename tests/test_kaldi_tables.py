"""Kaldi's tables: archives and script files of kaldi's own code and of kaldiio are read, what is wrong is named."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data.kaldi import (
    KaldiFormatError,
    ScpEntry,
    iter_int_vectors,
    open_table,
    read_int_vector,
    read_matrix,
    write_int_vector,
    write_matrix,
)
from hubert_plugin.data.kaldi_scp import parse_rxfilename, read_scp

GOLDEN = Path(__file__).parent / "data" / "kaldi"

MATRICES = {
    "float": 0.0,
    "double": 0.0,
    "native_float": 0.0,
    "native_double": 0.0,
    "compressed_m2": 1e-4,
    "compressed_m3": 1e-4,
    "compressed_m5": 1e-4,
    "native_kSpeechFeature": 1e-4,
    "native_kTwoByteAuto": 1e-4,
    "native_kOneByteAuto": 1e-4,
    "text_matrix": 1e-6,
}
"""Tolerances of the golden description: compressed ones are compared with kaldi's own decoding."""


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_kaldi_and_kaldiio_are_read(name: str, expected: dict[str, np.ndarray]) -> None:
    tables = [GOLDEN / f"{name}.ark"]

    if name != "text_matrix":
        tables.append(GOLDEN / f"{name}.scp")

    for table in tables:
        entries = open_table(table)

        assert [e.key for e in entries] == ["utt-a", "utt-b", "utt_c"]

        for entry in entries:
            matrix = read_matrix(entry)

            wanted = expected[f"{name}/{entry.key}"].astype(np.float32)

            assert matrix.dtype == np.float32 and matrix.shape == wanted.shape and matrix.flags.c_contiguous

            np.testing.assert_allclose(matrix, wanted, rtol=0, atol=MATRICES[name])


@pytest.mark.parametrize("table", ["int_vector.ark", "int_vector.scp", "int_vector_text.ark"])
def test_vectors_of_integers_are_read(table: str, expected: dict[str, np.ndarray]) -> None:
    vectors = dict(iter_int_vectors(GOLDEN / table))

    assert list(vectors) == ["utt-a", "utt-b", "utt_c", "one", "empty", "negative"]

    for key, vector in vectors.items():
        np.testing.assert_array_equal(vector, expected[f"{Path(table).stem}/{key}"])

    for entry in open_table(GOLDEN / table):
        np.testing.assert_array_equal(read_int_vector(entry), vectors[entry.key])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=5),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
    st.integers(0, 99),
)
def test_round_trip_of_matrices(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int]], dtype: type, text: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    # Whole numbers at the start: kaldi's text form writes 0 without a point.
    matrices = {
        f"u{i}": np.round(rng.standard_normal(s), i).astype(dtype) for i, s in enumerate(shapes) if s[0] or text
    }

    path = tmp_path_factory.mktemp("ark") / "a.ark"

    if text:
        lines = [
            f"{key}  [" + "".join("\n  " + " ".join(f"{x:g}" for x in row) for row in m.tolist()) + " ]\n"
            for key, m in matrices.items()
        ]

        path.write_text("".join(lines))
    else:
        with path.open("wb") as fp:
            offsets = {key: write_matrix(fp, key, m) for key, m in matrices.items()}

        path.with_suffix(".scp").write_text("".join(f"{key} {path}:{o}\n" for key, o in offsets.items()))

        for key, matrix in kaldiio.load_scp(str(path.with_suffix(".scp"))).items():
            np.testing.assert_array_equal(matrix, matrices[key])

    if not matrices:
        return

    entries = open_table(path)

    assert [e.key for e in entries] == list(matrices)

    for entry in entries:
        wanted = matrices[entry.key].astype(np.float32)

        matrix = read_matrix(entry)

        assert matrix.size == wanted.size

        if wanted.size:
            np.testing.assert_allclose(matrix, wanted, rtol=1e-5 if text else 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), min_size=1, max_size=5))
def test_round_trip_of_vectors_of_integers(tmp_path_factory: pytest.TempPathFactory, vectors: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("ali") / "ali.ark"

    with path.open("wb") as fp:
        for i, v in enumerate(vectors):
            write_int_vector(fp, f"u{i}", np.array(v, np.int64))

    theirs = path.with_name("theirs.ark")

    kaldiio.save_ark(str(theirs), {f"u{i}": np.array(v, np.int32) for i, v in enumerate(vectors)})

    assert path.read_bytes() == theirs.read_bytes()

    assert [(k, v.tolist()) for k, v in iter_int_vectors(path)] == [(f"u{i}", v) for i, v in enumerate(vectors)]


def test_ranges_are_inclusive_as_in_kaldi(expected: dict[str, np.ndarray]) -> None:
    offset = read_scp(GOLDEN / "float.scp")[0].offset

    wanted = expected["float/utt-a"]

    for text, index in (
        ("[2:5]", np.s_[2:6]),
        ("[3]", np.s_[3:4]),
        ("[2:5,1:3]", np.s_[2:6, 1:4]),
        ("[,1]", np.s_[:, 1:2]),
    ):
        path, at, ranges = parse_rxfilename(f"{GOLDEN}/float.ark:{offset}{text}")

        np.testing.assert_array_equal(read_matrix(ScpEntry("utt-a", path, at, ranges)), wanted[index])


def test_paths_are_relative_to_the_script_file_or_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    (tmp_path / "arks").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "arks/float.ark").write_bytes((GOLDEN / "float.ark").read_bytes())
    (tmp_path / "data/feats.scp").write_text("utt-a arks/float.ark:6\n")

    assert (
        read_matrix(read_scp(tmp_path / "data/feats.scp")[0]).shape
        == read_matrix(read_scp(GOLDEN / "float.scp")[0]).shape
    )


def test_all_bad_lines_of_a_script_file_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "feats.scp").write_text(
        f"a {GOLDEN}/float.ark:6\nb missing.ark:12\na {GOLDEN}/float.ark:6\nlonely\nc cat x.ark |\nd | tee x\n"
    )

    with pytest.raises(KaldiFormatError) as info:
        read_scp(tmp_path / "feats.scp")

    message = str(info.value)

    assert "feats.scp:2: 'b' lies in 'missing.ark', but there is no such file" in message
    assert "feats.scp:3: 'a' is also in line 1" in message
    assert "feats.scp:4: must be 'utterance path', but is 'lonely\\n'" in message
    assert "feats.scp:5: 'c' is a command ('cat x.ark |'), which is not run; set `allow_pipes: true`" in message
    assert "feats.scp:6: 'd' is a command" in message

    (tmp_path / "feats.scp").write_text("".join(f"u{i} missing.ark:{i}\n" for i in range(50)))

    with pytest.raises(KaldiFormatError, match="and 30 more"):
        read_scp(tmp_path / "feats.scp")

    (tmp_path / "feats.scp").write_text("")

    with pytest.raises(KaldiFormatError, match="is empty"):
        read_scp(tmp_path / "feats.scp")


def test_commands_run_on_the_explicit_word_only(tmp_path: Path, expected: dict[str, np.ndarray]) -> None:
    witness = tmp_path / "witness"

    (tmp_path / "feats.scp").write_text(
        f"utt-a touch {witness}; tail -c +7 {GOLDEN}/float.ark |\nutt-b echo trouble >&2; exit 3 |\n"
    )

    with pytest.raises(KaldiFormatError, match="is not run"):
        read_scp(tmp_path / "feats.scp")

    good, bad = read_scp(tmp_path / "feats.scp", allow_pipes=True)

    assert not witness.exists()

    np.testing.assert_array_equal(read_matrix(good), expected["float/utt-a"])

    assert witness.exists()

    with pytest.raises(KaldiFormatError, match=r"The command of 'utt-b' .* ended with 3: trouble"):
        read_matrix(bad)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "harm").touch, ())

    path = tmp_path / "evil.ark"

    path.write_bytes(b"utt-a PKL" + pickle.dumps(Evil()))

    for act in (lambda: open_table(path), lambda: read_matrix(ScpEntry("utt-a", str(path), 6))):
        with pytest.raises(KaldiFormatError, match="a Python pickle, which can run code"):
            act()

    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", [*MATRICES, "int_vector", "int_vector_text"])
def test_an_archive_that_is_cut_anywhere_is_no_shorter_archive(name: str, tmp_path: Path) -> None:
    data = (GOLDEN / f"{name}.ark").read_bytes()

    whole = open_table(GOLDEN / f"{name}.ark")

    ends = {e.offset - len(e.key) - 1 for e in whole if e.offset is not None}

    path = tmp_path / "cut.ark"

    for size in range(1, len(data), max(1, len(data) // 50)):
        # Between two objects nothing is missing that a file could tell; a line of integers is one wherever it ends.
        if size in ends or (name == "int_vector_text"):
            continue

        path.write_bytes(data[:size])

        with pytest.raises(KaldiFormatError, match=r"cut off|should begin|where a key should be"):
            open_table(path)

    with pytest.raises(KaldiFormatError, match="the file ends there or before"):
        read_matrix(ScpEntry("utt-z", str(GOLDEN / f"{name}.ark"), len(data) + 10))


def test_objects_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(KaldiFormatError, match="must be a matrix, but is a vector of"):
        read_matrix(open_table(GOLDEN / "int_vector.ark")[0])

    with pytest.raises(KaldiFormatError, match=r"must be a matrix, but is a vector of .* numbers"):
        read_matrix(open_table(GOLDEN / "vector.ark")[0])

    with pytest.raises(KaldiFormatError, match="must be a vector of integers, but is a matrix"):
        read_int_vector(open_table(GOLDEN / "float.ark")[0])

    (tmp_path / "a.ark").write_bytes(b"utt RIFF....WAVE")

    with pytest.raises(KaldiFormatError, match=r"but is audio \(WAV\)"):
        open_table(tmp_path / "a.ark")

    with pytest.raises(KaldiFormatError, match="There is no file"):
        open_table(tmp_path / "none.ark")


def test_kaldiio_is_imported_in_one_module_only() -> None:
    root = Path(__file__).parent.parent

    modules = [p for folder in ("hubert_plugin", "recipes") for p in (root / folder).rglob("*.py")]

    importing = [p.name for p in modules if "from kaldiio" in (text := p.read_text()) or "import kaldiio" in text]

    assert importing == ["kaldi.py"]


def test_a_key_that_is_repeated_in_an_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ark"

    path.write_bytes((GOLDEN / "float.ark").read_bytes() * 2)

    with pytest.raises(KaldiFormatError, match="has 'utt-a' twice"):
        open_table(path)


def test_ranges_beyond_the_matrix_are_refused_but_for_kaldis_three_rows(expected: dict[str, np.ndarray]) -> None:
    offset, wanted = read_scp(GOLDEN / "float.scp")[0].offset, expected["float/utt-a"]

    num_rows, num_columns = wanted.shape

    def read(text: str) -> np.ndarray:
        return read_matrix(ScpEntry("utt-a", *parse_rxfilename(f"{GOLDEN}/float.ark:{offset}{text}")))

    np.testing.assert_array_equal(read(f"[1:{num_rows + 2}]"), wanted[1:])

    for text, found in (
        (f"[0:{num_rows + 3}]", f"the matrix has {num_rows} rows"),
        ("[0:" + "9" * 20 + "]", f"the matrix has {num_rows} rows"),
        (f"[{num_rows}:{num_rows + 1}]", f"the matrix has {num_rows} rows"),
        ("[5:2]", f"the matrix has {num_rows} rows"),
        (f"[0:1,0:{num_columns}]", f"the matrix has {num_columns} columns"),
    ):
        with pytest.raises(KaldiFormatError) as info:
            read(text)

        assert f"'utt-a' ({GOLDEN}/float.ark:{offset}) cannot be cut to {text}" in str(info.value)
        assert found in str(info.value)

    with pytest.raises(KaldiFormatError, match=r"'one' .* has the range \[0:1\], which only matrices can have"):
        read_int_vector(ScpEntry("one", *parse_rxfilename(f"{GOLDEN}/int_vector.ark:12[0:1]")))


@pytest.mark.parametrize(
    ("name", "target"),
    [("ali.1.gz", "ali.1.ark"), ("feats.scp.gz", "feats.scp"), ("ali.ark", "ali.unpacked.ark")],
)
def test_tables_that_are_compressed_say_so(tmp_path: Path, name: str, target: str) -> None:
    path = tmp_path / name

    path.write_bytes(gzip.compress((GOLDEN / "int_vector.ark").read_bytes()))

    advice = re.escape(f"'{path}' is compressed with gzip: unpack it (`gunzip -c {path} > {tmp_path / target}`).")

    for act in (
        lambda: open_table(path),
        lambda: list(iter_int_vectors(path)),
        lambda: read_scp(path),
        lambda: read_matrix(ScpEntry("a", str(path))),
    ):
        with pytest.raises(KaldiFormatError, match=advice):
            act()

    with pytest.raises(KaldiFormatError, match="but is compressed with gzip"):
        read_int_vector(ScpEntry("a", f"cat {path}", is_command=True))


def test_an_offset_that_no_file_reaches_is_told() -> None:
    with pytest.raises(KaldiFormatError, match=r"should begin at byte 99,999,.* but the file ends there or before"):
        read_matrix(ScpEntry("utt-a", str(GOLDEN / "float.ark"), int("9" * 23)))

    # What has more digits than Python reads is a name.
    assert parse_rxfilename("x:" + "9" * 5_000)[1] is None
