"""TextGrids: both forms, every encoding, and all that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignment_files import LONG, SHORT, make_manifest, read

from hubert_plugin.analysis.textgrid import read_textgrid
from hubert_plugin.errors import LabelError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [LONG, SHORT], ids=["long", "short"])
def test_both_forms_of_textgrids_are_read_in_the_encodings_that_praat_writes(
    tmp_path: Path, text: str, encoding: str
) -> None:
    path = tmp_path / "utt.TextGrid"

    path.write_bytes(text.encode(encoding))

    words, phones = read_textgrid(path)

    assert (words.name, words.intervals) == ("words", [(0.0, 1.0, 'say "2 3" 4')])
    assert (phones.name, phones.intervals) == ("phones", [(0.0, 0.25, ""), (0.25, 0.5, "AH0"), (0.5, 1.0, "ŋ")])


def test_a_textgrid_of_latin_1_is_read(tmp_path: Path) -> None:
    path = tmp_path / "utt.TextGrid"

    path.write_bytes(SHORT.replace("ŋ", "é").encode("latin-1"))

    assert read_textgrid(path)[1].intervals[2] == (0.5, 1.0, "é")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", 'is not a TextGrid: the text "ooTextFile" was expected'),
        (LONG[:430], "is cut off"),
        (LONG.replace("xmax = 0.25", 'xmax = "0.25"'), r'utt.TextGrid:36: a number was expected, but "0.25" was found'),
        (SHORT.replace("TextTier", "MapTier"), "unknown kind 'MapTier'"),
        ('"Praat chronological TextGrid text file"\n0 1', "chronological"),
        ("ooBinaryFile\x08TextGrid", "binary form"),
    ],
)
def test_a_bad_textgrid_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "utt.TextGrid"

    path.write_text(text, encoding="utf-8")

    with pytest.raises(LabelError, match=message):
        read_textgrid(path)


def test_textgrids_in_folders_are_matched_with_their_utterances(tmp_path: Path) -> None:
    (tmp_path / "speaker").mkdir()

    (tmp_path / "speaker" / "a.TextGrid").write_text(LONG, encoding="utf-8")
    (tmp_path / "speaker" / "b.TextGrid").write_text(SHORT, encoding="utf-8")

    alignment = read(tmp_path, make_manifest(a=1.0, b=1.0), strip_stress=True)

    assert alignment["speaker/a.wav"] == [(0.0, 0.25, "SIL"), (0.25, 0.5, "AH"), (0.5, 1.0, "ŋ")]
    assert alignment["speaker/b.wav"] == alignment["speaker/a.wav"]

    with pytest.raises(LabelError, match=r"must have one interval tier 'syllables'.* 'words', 'phones'"):
        read(tmp_path, make_manifest(a=1.0, b=1.0), tier="syllables")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_textgrid_of_utf_16_without_mark_says_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.TextGrid").write_bytes(LONG.encode(encoding))

    with pytest.raises(LabelError, match=r"it is not UTF-8, nor UTF-16 with a byte order mark"):
        read_textgrid(tmp_path / "a.TextGrid")

    (tmp_path / "a.TextGrid").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(LabelError, match="begins as utf-16 does"):
        read_textgrid(tmp_path / "a.TextGrid")
