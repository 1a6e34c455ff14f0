"""Alignments of every format, what frames read from them, and all that can be wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from alignment_files import SECOND, SHORT, make_manifest, read, write
from doc_pages import blocks
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin import frames
from hubert_plugin.analysis.alignments import frame_labels
from hubert_plugin.analysis.utterance_ids import UtteranceIndex
from hubert_plugin.demo import frame_phones
from hubert_plugin.errors import ConfigError, HubertError, LabelError


def test_ctm_table_and_textgrid_of_the_same_phones_are_equal(tmp_path: Path) -> None:
    manifest = make_manifest(a=1.0)

    (tmp_path / "a.TextGrid").write_text(SHORT, encoding="utf-8")

    ctm = write(tmp_path / "a.ctm", ";; comment", "a 1 0.50 0.50 ŋ_E 0.98", "a 1 0.25 0.25 AH0_B", "other 1 0 1 B_S")
    tsv = write(tmp_path / "a.tsv", "utt\tstart\tend\tphone", "a.wav\t0.25\t0.5\tAH0", "", "a.wav\t0.5\t1\tŋ")

    expected = read(tmp_path / "a.TextGrid", manifest).segments

    from_ctm = read(ctm, manifest, gap="SIL", strip_position=True)

    assert from_ctm.segments == expected
    assert from_ctm.num_ignored == 1
    assert read(tsv, manifest, gap="SIL").segments == expected


def test_kaldi_vectors_give_their_labels_back_at_both_rates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    manifest = make_manifest(a=1.0, b=0.7)

    labels = {
        name: np.repeat(rng.integers(1, 5, 40), 3)[: frames.num_mfcc_frames(n)].astype(np.int32)
        for name, n in zip("ab", manifest.sizes.tolist(), strict=True)
    }

    kaldiio.save_ark(str(tmp_path / "ali.ark"), labels, scp=str(tmp_path / "ali.scp"))

    write(tmp_path / "phones.txt", "<eps> 0", "AH 1", "B 2", "SIL 3", "T 4")

    names = ["<eps>", "AH", "B", "SIL", "T"]

    for file in ("ali.ark", "ali.scp"):
        alignment = read(tmp_path / file, manifest, symbols=tmp_path / "phones.txt")

        for name, id_ in zip("ab", manifest.ids, strict=True):
            expected = [names[p] for p in labels[name]]

            assert alignment.frame_labels(id_, len(expected), 100) == expected
            assert alignment.frame_labels(id_, len(expected[::2]), 50) == expected[::2]

    assert read(tmp_path / "ali.ark", manifest)["speaker/a.wav"][0][2] == str(labels["a"][0])

    with pytest.raises(LabelError, match=r"'speaker/a.wav' has 98 labels, but 49 frames at 50.* at 100 per second"):
        read(tmp_path / "ali.ark", manifest, rate=50)

    with pytest.raises(LabelError, match=r"4 is not in '.*few.txt' \('a' has it\)"):
        read(tmp_path / "ali.ark", manifest, symbols=write(tmp_path / "few.txt", "AH 1", "B 2", "SIL 3"))

    data = (tmp_path / "ali.ark").read_bytes()

    (tmp_path / "half.ark").write_bytes(data[: len(data) // 2])

    write(tmp_path / "pipe.scp", f"a cat {tmp_path}/ali.ark |")

    with pytest.raises(LabelError, match="which is not run; write what it gives to a file, and name that") as info:
        read(tmp_path / "pipe.scp", manifest)

    assert "allow_pipes" not in str(info.value)

    with pytest.raises(LabelError, match=r"half\.ark.* cannot be used"):
        read(tmp_path / "half.ark", manifest)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4000), st.sampled_from("abc"), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([50, 100]),
)
def test_frames_read_what_is_at_their_centre(parts: Sequence[tuple[int, str, bool]], rate: int) -> None:
    segments, position = [], 0

    for length, name, is_gap in parts:
        if not is_gap:
            segments.append((position / SECOND, (position + length) / SECOND, name))

        position += length

    num_frames = frames.num_labels(position, rate)

    expected = []

    for t in range(num_frames):
        center = 200 + t * SECOND // rate

        # In samples, so that nothing is rounded.
        expected.append(next((n for s, e, n in segments if round(s * SECOND) <= center < round(e * SECOND)), None))

    assert frame_labels(segments, num_frames, rate) == expected

    if not any(is_gap for _, _, is_gap in parts):
        assert frame_labels(segments, num_frames, rate) == frame_phones(segments, num_frames, rate)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "phones.tsv",
        "speaker/back\t0\t0.5\tA",
        "speaker/back\t0.8\t0.5\tB",
        "speaker/over\t0\t0.6\tA",
        "speaker/over\t0.5\t1\tB",
        "speaker/long\t0\t1.3\tA",
        "speaker/short\t0\t0.5\tA",
        "speaker/late\t0.2\t1\tA",
        "speaker/hole\t0\t0.4\tA",
        "speaker/hole\t0.6\t1\tA",
        "speaker/neg\t-0.1\t1\tA",
        "speaker/neg 0 1 A",
        "speaker/neg\tx\t1\tA",
        "speaker/neg\tnan\t1\tA",
    )

    names = ("back", "over", "long", "short", "late", "hole", "neg", "none")

    with pytest.raises(LabelError) as info:
        read(path, make_manifest(**dict.fromkeys(names, 1.0)))

    message = str(info.value)

    for part in (
        "'B' goes from 0.8 to 0.5 s",
        f"{path}:4: 'B' (0.5 to 1 s) overlaps 'A' (0 to 0.6 s, {path}:3)",
        "'A' ends at 1.3 s, but 'speaker/long.wav' has 1 s of audio",
        "'speaker/short.wav' has no interval from 0.5 to 1 s (of 1 s)",
        "'speaker/late.wav' has no interval from 0 to 0.2 s",
        "'speaker/hole.wav' has no interval from 0.4 to 0.6 s",
        "'A' goes from -0.1 to 1 s",
        "'speaker/none.wav' has no intervals",
        f"{path}:12: expected `utterance<TAB>start<TAB>end<TAB>name` with times in seconds",
        f"{path}:13: expected",
    ):
        assert part in message, message


def test_gaps_are_named_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\t0.06\t0.5\tA", "a\t0.504\t0.6\tB", "a\t0.68\t0.95\tC")

    manifest = make_manifest(a=1.0)

    # Rounding is closed, edges reach out, what is longer is nobody's.
    assert read(path, manifest)["speaker/a.wav"] == [(0.0, 0.504, "A"), (0.504, 0.6, "B"), (0.68, 1.0, "C")]

    assert read(path, manifest, gap="SIL")["speaker/a.wav"] == [
        (0.0, 0.06, "SIL"),
        (0.06, 0.504, "A"),
        (0.504, 0.6, "B"),
        (0.6, 0.68, "SIL"),
        (0.68, 0.95, "C"),
        (0.95, 1.0, "SIL"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("a.tsv", "", LabelError, "holds no intervals at all"),
        ("a.tsv", "utt\tstart\tend\tphone\n", LabelError, "holds no intervals at all"),
        ("a.tsv", "z\t0\t1\tA\ny\t0\t1\tA\n", LabelError, r"of other utterances: none of its 2 names \(such as 'z'\)"),
        ("a.ctm", "a 1 0.5 A\n", LabelError, r"a\.ctm:1: expected `utterance channel start duration name`"),
        ("a.ctm", "a 1 0 1 A\nspeaker/a 1 0 1 A\n", LabelError, "'a' and 'speaker/a' are both 'speaker/a.wav'"),
        ("a.xyz", "a\t0\t1\tA\n", ConfigError, "does not tell its format"),
        ("a.TextGrid", "a\t0\t1\tA\n", LabelError, "is not a TextGrid"),
    ],
)
def test_files_that_are_empty_of_others_or_of_another_format_are_told(
    tmp_path: Path, name: str, text: str, error: type[HubertError], message: str
) -> None:
    path = tmp_path / name

    path.write_text(text)

    with pytest.raises(error, match=message):
        read(path, make_manifest(a=1.0))


def test_a_missing_file_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="There is no alignment"):
        read(tmp_path / "none.ctm", make_manifest(a=1.0))

    with pytest.raises(LabelError, match="holds no TextGrid"):
        read(tmp_path, make_manifest(a=1.0))

    (tmp_path / "binary.ctm").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(LabelError, match="cannot be read"):
        read(tmp_path / "binary.ctm", make_manifest(a=1.0))


def test_names_are_matched_only_where_they_are_unique() -> None:
    index = UtteranceIndex(["a/x.flac", "b/x.flac", "b/y.1.flac", "c/z.flac", "c/z.wav", "t.zip:12:34"])

    assert index.find("a/x.flac") == "a/x.flac"
    assert index.find("a/x") == "a/x.flac"
    assert index.find("x") is None
    assert index.find("y.1") == "b/y.1.flac"
    assert index.find("elsewhere/b/y.1.wav") == "b/y.1.flac"
    assert index.find("elsewhere/y.1.wav") is None
    assert index.find("y") is None
    assert index.find("c/z") is None
    assert index.find("t.zip:12:34") == "t.zip:12:34"
    assert index.find("t") is None


def test_names_of_the_same_base_name_in_other_folders_are_other_utterances(tmp_path: Path) -> None:
    manifest = make_manifest(a=1.0)  # speaker/a.wav

    lines = ["other/a.wav\t0\t1\tB", "speaker/a.wav\t0\t1\tA", "far/speaker/b\t0\t1\tB"]

    alignment = read(write(tmp_path / "all.tsv", *lines), manifest)

    assert alignment.segments["speaker/a.wav"][0][2] == "A" and alignment.num_ignored == 2

    with pytest.raises(LabelError, match="it is of other utterances: none of its 1 names"):
        read(write(tmp_path / "other.tsv", lines[0]), manifest)

    for name in ("a", "speaker/a", "/corpus/speaker/a.flac", "a.wav"):
        assert read(write(tmp_path / "one.tsv", f"{name}\t0\t1\tA"), manifest).segments["speaker/a.wav"]


def test_kaldi_ids_of_a_manifest_are_known(tmp_path: Path) -> None:
    manifest = replace(make_manifest(a=1.0, b=1.0), path=tmp_path / "valid.tsv")

    (tmp_path / "valid.ids.txt").write_text("spk-utt7\nspk-utt9\n")

    alignment = read(write(tmp_path / "ali.ctm", "spk-utt9 1 0 1 B", "spk-utt7 1 0 1 A"), manifest)

    assert [alignment.segments[f"speaker/{name}.wav"][0][2] for name in "ab"] == ["A", "B"]


def test_overlaps_of_rounded_starts_and_durations_are_cut(tmp_path: Path) -> None:
    manifest = make_manifest(a=1.0)

    # 0.674 to 0.773 and 0.773 to 0.84, start and duration rounded each by itself.
    ctm = write(tmp_path / "a.ctm", "a 1 0 0.67 A", "a 1 0.67 0.11 UW", "a 1 0.77 0.07 DH", "a 1 0.84 0.16 B")

    segments = read(ctm, manifest)["speaker/a.wav"]

    assert [name for _, _, name in segments] == ["A", "UW", "DH", "B"]
    assert segments[1][:2] == (0.67, 0.77) and segments[2][0] == 0.77

    write(ctm, "a 1 0 0.68 A", "a 1 0.66 0.34 B")

    with pytest.raises(LabelError, match=r"'B' \(0.66 to 1 s\) overlaps 'A' \(0 to 0.68 s"):
        read(ctm, manifest)

    # One of them would be nothing.
    write(ctm, "a 1 0 0.01 A", "a 1 0 1.0 B")

    with pytest.raises(LabelError, match="overlaps"):
        read(ctm, manifest)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "latin-1"])
def test_tables_that_are_not_utf_8_say_so(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.tsv").write_bytes("a\t0\t1\té\n".encode(encoding))

    with pytest.raises(LabelError, match=r"a\.tsv' cannot be read: it must be UTF-8, but holds"):
        read(tmp_path / "a.tsv", make_manifest(a=1.0))


@pytest.mark.parametrize("name, format_", [("ali.1.gz", "auto"), ("ali.1.gz", "kaldi"), ("a.ctm", "auto")])
def test_alignments_that_are_compressed_say_so(tmp_path: Path, name: str, format_: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"a 1 0 1 A\n"))

    with pytest.raises(LabelError, match="is compressed with gzip: unpack it"):
        read(tmp_path / name, make_manifest(a=1.0), format=format_)


def test_the_example_of_the_documentation_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs/analysis.md").read_text(encoding="utf-8")

    code = next(c for language, c in blocks(page) if language == "python" and "unit_quality" in c)

    exec(code, {})

    assert capsys.readouterr().out.strip() == code.strip().rsplit("# ", 1)[1]
