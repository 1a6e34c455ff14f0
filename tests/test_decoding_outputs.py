"""What ``transcribe`` writes: text, JSON lines, CTM, subtitles, and the blocks of a run that is not done."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from hubert_plugin.decoding.hypothesis import Hypothesis, Word
from hubert_plugin.decoding.outputs import record_of, remove_outputs, srt_of, srt_paths, write_outputs
from hubert_plugin.decoding.parts import Parts
from hubert_plugin.decoding.transcriber import Times, Transcript
from hubert_plugin.errors import ConfigError


def word(text: str, start: float, end: float) -> Word:
    return Word(text, start, end, 0.5)


def records() -> list[dict[str, Any]]:
    best = Hypothesis((word("HELLO", 0.5, 0.9), word("WÖRLD", 1.0, 1.52)), -3.25, -2.25, -0.5, rescored=-7.0)
    second = Hypothesis((word("HELLO", 0.5, 0.9),), -4.0, -4.0)

    return [
        record_of(Transcript("a/one two.wav", 32000, [best, second])),
        record_of(Transcript("a/silence.wav", 16000, [Hypothesis((), 0.0, 0.0)])),
        record_of(Transcript("b.zip:10:20", 16000, [Hypothesis((), 0.0, 0.0)], "It cannot be read.")),
    ]


def test_files_say_what_was_recognised(tmp_path: Path) -> None:
    write_outputs(tmp_path, records(), ["text", "ctm", "srt"])

    assert (tmp_path / "transcripts.txt").read_text() == "HELLO WÖRLD\n\n\n"

    assert (tmp_path / "transcripts.ctm").read_text().splitlines() == [
        "a/one_two.wav 1 0.500 0.400 HELLO 0.5000",
        "a/one_two.wav 1 1.000 0.520 WÖRLD 0.5000",
    ]

    lines = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]

    assert lines[0]["words"][1] == {"word": "WÖRLD", "start": 1.0, "end": 1.52, "confidence": 0.5}
    assert lines[0]["nbest"][1] == {"text": "HELLO", "score": -4.0, "ctc_score": -4.0, "lm_score": 0.0}
    assert (lines[0]["rescored"], lines[0]["seconds"], lines[1]["text"]) == (-7.0, 2.0, "")
    assert lines[2]["error"] == "It cannot be read."

    assert (tmp_path / "srt" / "a" / "one two.srt").read_text() == ("1\n00:00:00,500 --> 00:00:01,520\nHELLO WÖRLD\n\n")
    assert (tmp_path / "srt" / "a" / "silence.srt").read_text() == ""


def test_what_another_run_wrote_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_outputs(tmp_path, records(), ["text", "ctm", "srt"])

    others = ["notes.md", "srt/mine.srt", "srt/b/mine.txt", "evaluation/evaluation.json"]

    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of somebody")

    remove_outputs(tmp_path)

    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)
    assert not (tmp_path / "srt" / "a").exists()

    # Where there is nothing, nothing is done.
    remove_outputs(tmp_path / "none")


def test_subtitles_break_at_pauses_and_lengths_and_never_overlap() -> None:
    words = [word("A", 0.0, 0.1), word("B", 2.0, 2.2), word("C", 2.9, 3.0)]

    assert srt_of(words, 3.2).split("\n\n")[:2] == [
        "1\n00:00:00,000 --> 00:00:01,000\nA",
        "2\n00:00:02,000 --> 00:00:03,000\nB C",
    ]

    # Told for a second at least, but not beyond the end of the recording.
    assert "00:00:59,900 --> 00:01:00,100" in srt_of([word("A", 59.9, 60.0)], 60.1)

    many = [word("ABCDEFGHI", 3600 + 0.5 * i, 3600.4 + 0.5 * i) for i in range(40)]

    subtitles = srt_of(many, 4000.0).strip().split("\n\n")

    times = [tuple(s.split("\n")[1].split(" --> ")) for s in subtitles]

    assert all(len(s.split("\n")[2]) <= 84 for s in subtitles)
    assert times == sorted(times)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
    assert times[0][0] == "01:00:00,000"


def test_subtitles_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'a\.wav' and 'a\.FLAC' would both be 'srt/a\.srt'"):
        srt_paths(["a.wav", "a.FLAC"])


def test_subtitles_are_named_for_their_recordings() -> None:
    """Segments, slices of archives and names with dots differ behind their last dot."""
    names = {
        "../../x.wav": "x.srt",
        "/y.wav": "y.srt",
        "b/y.Opus": "b/y.srt",
        "z.zip:1:2": "z.zip_1_2.srt",
        "z.zip:3:2": "z.zip_3_2.srt",
        "a.wav[0:16000]": "a.wav_0_16000_.srt",
        "a.wav[16000:32000]": "a.wav_16000_32000_.srt",
        "spk.001": "spk.001.srt",
        "spk.002": "spk.002.srt",
        "d.v1/1": "d.v1/1.srt",
        "stdin": "stdin.srt",
    }

    assert srt_paths(list(names)) == list(names.values())


def test_parts_of_another_command_are_not_taken(tmp_path: Path) -> None:
    mine, other = Parts(tmp_path, {"beam": 5}), Parts(tmp_path, {"beam": 6})

    mine.save(0, [{"id": "a"}], Times(1.0, 2.0, 3.0))
    mine.save(1, [{"id": "b"}], Times(1.0, 1.0, 1.0))

    assert (mine.has(0), mine.has(2), other.has(0)) == (True, False, False)
    assert mine.collect(2) == ([{"id": "a"}, {"id": "b"}], Times(2.0, 3.0, 4.0))

    mine.remove()

    assert list(tmp_path.iterdir()) == []
