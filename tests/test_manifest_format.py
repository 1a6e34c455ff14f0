"""Manifests survive writing and reading; whatever is wrong with one is told at once, with its lines."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data.manifest import Manifest, list_splits, read_manifest, write_manifest
from hubert_plugin.errors import ManifestError, StorageError

# Anything a file system allows in a name, but for what the format cannot express.
REFS = st.text(
    st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"])
    | st.sampled_from(string.ascii_letters + "/. "),
    min_size=1,
    max_size=30,
)


def make_files(root: Path, names: Sequence[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_text(folder: Path, text: str, split: str = "train") -> None:
    (folder / f"{split}.tsv").write_bytes(text.encode())


def get_problems(folder: Path, *, check_files: bool = False) -> list[tuple[int, str]]:
    """Return line number and text of each problem of ``folder/train.tsv``."""
    with pytest.raises(ManifestError) as info:
        read_manifest(folder, "train", check_files=check_files)

    path = re.escape(str(folder / "train.tsv"))

    return [(int(m[1]), m[2]) for m in re.finditer(rf"^  - {path}:(\d+): (.*)$", str(info.value), re.MULTILINE)]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(REFS, st.integers(400, 2**38), min_size=1, max_size=30))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, int]) -> None:
    folder = tmp_path_factory.getbasetemp()

    write_manifest(folder / "any.tsv", folder, rows.items())

    manifest = read_manifest(folder, "any", check_files=False)

    assert manifest.ids == list(rows)
    assert manifest.sizes.tolist() == list(rows.values())
    assert manifest.sizes.dtype == np.int64
    assert (manifest.root, manifest.split, manifest.path) == (folder, "any", folder / "any.tsv")
    assert len(manifest) == len(rows)
    assert manifest.num_samples == sum(rows.values())
    assert manifest.hours == pytest.approx(sum(rows.values()) / 16000 / 3600)


def test_names_that_are_no_unicode_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")

    write_manifest(tmp_path / "train.tsv", tmp_path, [(name, 400)])

    assert b"caf\xe9.wav\t400\n" in (tmp_path / "train.tsv").read_bytes()

    manifest = read_manifest(tmp_path, "train", check_files=False)

    assert manifest.ids == [name]
    assert manifest.fingerprint


def test_the_file_is_what_fairseq_reads(tmp_path: Path) -> None:
    write_manifest(tmp_path / "train.tsv", "/data", [("a/b.wav", 16000), ("c.zip:12:34", 400)])

    assert (tmp_path / "train.tsv").read_text() == "/data\na/b.wav\t16000\nc.zip:12:34\t400\n"


def test_windows_files_and_blank_ends_are_tolerated(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbf/data\r\na.wav\t500\r\nb.wav\t600 \r\n\r\n\n")

    manifest = read_manifest(tmp_path, "train", check_files=False)

    assert (str(manifest.root), manifest.ids, manifest.sizes.tolist()) == ("/data", ["a.wav", "b.wav"], [500, 600])


def test_a_relative_root_is_relative_to_the_manifest(tmp_path: Path) -> None:
    make_files(tmp_path / "audio", ["x/a.wav"])
    (tmp_path / "lists").mkdir()
    write_text(tmp_path / "lists", "../audio\nx/a.wav\t500\n")

    assert (read_manifest(tmp_path / "lists", "train").root / "x/a.wav").exists()


def test_fingerprints_stand_for_ids_order_and_sizes_but_not_for_the_root(tmp_path: Path) -> None:
    def make(root: str, rows: list[tuple[str, int]]) -> str:
        write_manifest(tmp_path / "train.tsv", root, rows)

        return read_manifest(tmp_path, "train", check_files=False).fingerprint

    base = make("/data", [("a", 500), ("b", 600)])

    assert re.fullmatch("[0-9a-f]{16}", base)
    assert make("/moved", [("a", 500), ("b", 600)]) == base

    others = [
        make("/data", rows)
        for rows in (
            [("b", 600), ("a", 500)],
            [("a", 600), ("b", 500)],
            [("a", 500)],
            [("a", 500), ("c", 600)],
            [("a", 500), ("b", 601)],
        )
    ]

    assert len({base, *others}) == 6


def test_missing_manifests_are_named_with_the_splits_there_are(tmp_path: Path) -> None:
    write_text(tmp_path, "/data\na\t400\n", "train")
    write_text(tmp_path, "/data\na\t400\n", "dev-other")
    write_text(tmp_path, "a\tdoes not exist\n", "skipped")
    write_text(tmp_path, "a\t0.0\t0.5\tAH\n", "train.align")
    write_text(tmp_path, "a\t0.0\t0.5\tword\n", "train.words")
    (tmp_path / "train.km").touch()
    (tmp_path / ".train.tsv.x.tmp").touch()

    assert list_splits(tmp_path) == ["dev-other", "train"]
    assert list_splits(tmp_path / "none") == []

    with pytest.raises(ManifestError, match=r"valid\.tsv' does not exist: the splits there are: dev-other, train\."):
        read_manifest(tmp_path, "valid")

    with pytest.raises(ManifestError, match=r"none' is not a folder.*fairseq2 recipe hubert manifest"):
        read_manifest(tmp_path / "none", "train")

    (tmp_path / "empty").mkdir()

    with pytest.raises(ManifestError, match=r"no manifest at all .* manifest FOLDER --config source=.*` makes"):
        read_manifest(tmp_path / "empty", "train")


@pytest.mark.parametrize(
    ("text", "line_nr", "words"),
    [
        ("", 1, "an empty file"),
        ("\n", 1, "an empty line"),
        ("\na.wav\t500\n", 1, "an empty line"),
        ("a.wav\t500\nb.wav\t500\n", 1, "found a tab"),
        ("/data\n", 2, "no utterances"),
        ("/data", 2, "no utterances"),
        ("/data\n\n\n", 2, "no utterances"),
        ("/data\na.wav\t500\nb.wav 500\n", 3, "no tab: 'b.wav 500'"),
        ("/data\na.wav\t500\tx\n", 2, "3 fields"),
        ("/data\n\t500\n", 2, "empty path"),
        ("/data\na.wav\t\n", 2, "whole number"),
        ("/data\na.wav\t500.0\n", 2, "whole number of samples after the tab, found '500.0'"),
        ("/data\na.wav\t1_000\n", 2, "whole number"),
        ("/data\na.wav\t٥٠٠\n", 2, "whole number"),
        ("/data\na.wav\t-500\n", 2, "at least 400 samples"),
        ("/data\na.wav\t0\n", 2, "at least 400 samples"),
        ("/data\na.wav\t399\n", 2, "at least 400 samples"),
        (f"/data\na.wav\t{10**20}\n", 2, "beyond all bounds"),
        ("/data\na.wav\t500\n\nb.wav\t500\n", 3, "an empty line"),
        ("/data\na.wav\t500\nb.wav\t500\na.wav\t600\n", 4, r"again \(line 2\)"),
    ],
)
def test_each_malformed_line_is_named(tmp_path: Path, text: str, line_nr: int, words: str) -> None:
    write_text(tmp_path, text)

    problems = get_problems(tmp_path)

    assert [n for n, _ in problems] == [line_nr]
    assert re.search(words, problems[0][1])


def test_all_problems_are_told_at_once_but_twenty_at_most(tmp_path: Path) -> None:
    write_text(tmp_path, "/data\n" + "good.wav\t500\nbad.wav\n" * 33)

    problems = get_problems(tmp_path)

    assert [n for n, _ in problems] == list(range(3, 43, 2))

    with pytest.raises(ManifestError, match="and 13 more"):
        read_manifest(tmp_path, "train", check_files=False)


def test_missing_files_are_named_and_archives_are_looked_for_once(tmp_path: Path) -> None:
    make_files(tmp_path, ["a/1.wav", "a/b/2.wav", "c.zip", "deep/d.tar"])
    (tmp_path / "a/folder.wav").mkdir()

    refs = [
        "a/1.wav",
        "a/2.wav",
        "a/b/2.wav",
        "a/folder.wav",
        "c.zip:1:2",
        "c.zip:3:4",
        "deep/d.tar:1:2",
        "e.zip:1:2",
        "x/y",
    ]
    write_manifest(tmp_path / "train.tsv", tmp_path, [(r, 400) for r in refs])

    problems = get_problems(tmp_path, check_files=True)

    assert [n for n, _ in problems] == [3, 5, 9, 10]

    for (_, problem), name in zip(problems, ["a/2.wav", "a/folder.wav", "e.zip", "x/y"], strict=True):
        assert f"'{tmp_path / name}'" in problem

    assert read_manifest(tmp_path, "train", check_files=False).ids == refs


def test_a_root_that_is_no_folder_is_named(tmp_path: Path) -> None:
    write_text(tmp_path, f"{tmp_path / 'moved'}\na.wav\t400\n")

    (problem,) = get_problems(tmp_path, check_files=True)

    assert problem[0] == 1
    assert str(tmp_path / "moved") in problem[1]


@pytest.mark.parametrize("ref", ["a\tb", "a\nb", "a\r", ""])
def test_names_that_the_format_cannot_express_are_refused_and_nothing_is_written(tmp_path: Path, ref: str) -> None:
    write_text(tmp_path, "as it was")

    for rows in ([("good", 400), (ref, 400)], [("good", 400), ("good", 500)], [("good", 399)]):
        with pytest.raises(ManifestError, match="cannot be written"):
            write_manifest(tmp_path / "train.tsv", tmp_path, rows)

    assert (tmp_path / "train.tsv").read_text() == "as it was"
    assert os.listdir(tmp_path) == ["train.tsv"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path, "as it was")

    def rows() -> object:
        yield "a", 400

        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        write_manifest(tmp_path / "train.tsv", tmp_path, rows())  # type: ignore[arg-type]

    assert (tmp_path / "train.tsv").read_text() == "as it was"


def test_manifests_may_be_made_in_memory() -> None:
    manifest = Manifest(Path("x.tsv"), "x", Path("/data"), ["a", "b"], np.array([400, 800]))

    assert (len(manifest), manifest.num_samples) == (2, 1200)
