"""Transcripts on disk: text, JSON lines, CTM and SRT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hubert_plugin.data.scan import AUDIO_EXTENSIONS
from hubert_plugin.decoding.hypothesis import Hypothesis, Word
from hubert_plugin.decoding.transcriber import Transcript
from hubert_plugin.errors import ConfigError, StorageError, format_problems
from hubert_plugin.files import write_text_atomic
from hubert_plugin.frames import seconds

FORMATS: Final = ("text", "jsonl", "ctm", "srt")

TEXT_FILE: Final = "transcripts.txt"
JSONL_FILE: Final = "transcripts.jsonl"
CTM_FILE: Final = "transcripts.ctm"
SRT_FOLDER: Final = "srt"

_MAX_SUBTITLE_CHARS: Final = 84
_MAX_SUBTITLE_SECONDS: Final = 7.0
_MAX_SUBTITLE_PAUSE: Final = 1.0
_MIN_SUBTITLE_SECONDS: Final = 1.0


def record_of(transcript: Transcript) -> dict[str, Any]:
    """Return a transcript as what stands in a line of ``transcripts.jsonl``."""
    best = transcript.hypotheses[0]

    record: dict[str, Any] = {
        "id": transcript.id,
        "text": best.text,
        "seconds": round(seconds(transcript.num_samples), 4),
        "confidence": round(best.confidence, 4),
        **_scores(best),
        "words": [
            {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3), "confidence": round(w.confidence, 4)}
            for w in best.words
        ],
    }

    if len(transcript.hypotheses) > 1:
        record["nbest"] = [{"text": h.text, **_scores(h)} for h in transcript.hypotheses]

    if transcript.error is not None:
        record["error"] = transcript.error

    return record


def _scores(hypothesis: Hypothesis) -> dict[str, float]:
    scores = {
        "score": round(hypothesis.score, 4),
        "ctc_score": round(hypothesis.ctc_score, 4),
        "lm_score": round(hypothesis.lm_score, 4),
    }

    if hypothesis.rescored is not None:
        scores["rescored"] = round(hypothesis.rescored, 4)

    return scores


def json_lines(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as JSON lines."""
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def write_outputs(output_dir: Path, records: Sequence[Mapping[str, Any]], formats: Sequence[str]) -> None:
    """Write the records of all recordings, each file whole or not at all. JSON lines are always written, last.

    :param records: In the order of the input (see :func:`record_of`).
    :raises ConfigError: Two recordings would get the same SRT file.
    :raises StorageError: A file cannot be written.
    """
    if "text" in formats:
        write_text_atomic(output_dir / TEXT_FILE, "".join(f"{r['text']}\n" for r in records))

    if "ctm" in formats:
        write_text_atomic(output_dir / CTM_FILE, "".join(_ctm(r) for r in records))

    if "srt" in formats:
        for path, record in zip(srt_paths([r["id"] for r in records]), records, strict=True):
            write_text_atomic(output_dir / SRT_FOLDER / path, srt_of(words_of_record(record), record["seconds"]))

    write_text_atomic(output_dir / JSONL_FILE, json_lines(records))


def remove_outputs(output_dir: Path) -> None:
    """Remove what an earlier run wrote, so that nothing of it lies beside other results. Files of others stay.

    :raises StorageError: A file cannot be removed.
    """
    folder = output_dir / SRT_FOLDER

    # JSON lines go last: they say which subtitles there are.
    subtitles = [folder / path for path in _written_subtitles(output_dir)]

    try:
        for path in (*subtitles, output_dir / TEXT_FILE, output_dir / CTM_FILE, output_dir / JSONL_FILE):
            path.unlink(missing_ok=True)

        for path in sorted({p for s in subtitles for p in s.parents if p.is_relative_to(folder)}, reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    except OSError as ex:
        raise StorageError(
            f"What an earlier run wrote to '{output_dir}' cannot be removed ({ex}). Remove it, or choose another "
            "folder, then run the same command again."
        ) from ex


def _written_subtitles(output_dir: Path) -> list[str]:
    try:
        return srt_paths([r["id"] for r in read_records(output_dir)])
    except (OSError, ValueError, KeyError, TypeError, ConfigError):  # there are none, or they are of somebody else
        return []


def read_records(output_dir: Path) -> list[dict[str, Any]]:
    """Return what ``transcripts.jsonl`` holds."""
    text = (output_dir / JSONL_FILE).read_text(encoding="utf-8", errors="surrogateescape")

    # Only "\n" ends a line; other separators that Python knows may be part of a name.
    return [json.loads(line) for line in text.split("\n") if line]


def words_of_record(record: Mapping[str, Any]) -> list[Word]:
    """Return the words of a line of ``transcripts.jsonl``."""
    return [Word(w["word"], w["start"], w["end"], w["confidence"]) for w in record["words"]]


def _ctm(record: Mapping[str, Any]) -> str:
    # NIST's format: recording, channel, start, duration, word, confidence; separated by blanks, so names have none.
    name = re.sub(r"\s", "_", record["id"])

    return "".join(
        f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}\n" for w in words_of_record(record)
    )


def srt_paths(ids: Sequence[str]) -> list[str]:
    """Return the SRT file of each recording, relative to the folder of SRT files: its name, in which ``.srt`` takes the
    place of an ending of audio. What follows any other dot is part of the name (``spk.001``, ``a.wav[0:16000]``).

    :raises ConfigError: Two recordings would get the same file.
    """
    ids_by_path: dict[str, str] = {}

    problems = []

    for id_ in ids:
        # Colons and brackets of archive slices are no good in names of files; ".." must not lead out of the folder.
        parts = [p for p in PurePosixPath(id_).parts if p not in ("/", "..")]

        name = re.sub(r'[:\[\]<>"|?*\\]', "_", "/".join(parts))

        path = f"{_without_audio_ending(name)}.srt"

        if path in ids_by_path:
            problems.append(f"'{ids_by_path[path]}' and '{id_}' would both be '{SRT_FOLDER}/{path}'.")

        ids_by_path[path] = id_

    if problems:
        raise ConfigError(format_problems("Subtitles cannot be written; leave `srt` out of `formats`:", problems))

    return list(ids_by_path)


def _without_audio_ending(name: str) -> str:
    path = PurePosixPath(name)

    return str(path.with_suffix("")) if path.suffix.lower() in AUDIO_EXTENSIONS else name


def srt_of(words: Sequence[Word], duration: float) -> str:
    """Return words as subtitles: up to 84 characters and 7 seconds each, new ones after pauses of a second. They stay
    for a second at least, but not into the next.

    :param duration: The length of the recording, in seconds.
    """
    groups: list[list[Word]] = []

    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])

    lines = []

    for number, group in enumerate(groups, start=1):
        start, end = group[0].start, group[-1].end

        limit = groups[number][0].start if number < len(groups) else max(duration, end)

        end = min(max(end, start + _MIN_SUBTITLE_SECONDS), max(limit, end))

        lines.append(f"{number}\n{_srt_time(start)} --> {_srt_time(end)}\n{' '.join(w.text for w in group)}\n\n")

    return "".join(lines)


def _fits(group: Sequence[Word], word: Word) -> bool:
    num_chars = sum(len(w.text) + 1 for w in group) + len(word.text)

    return (
        num_chars <= _MAX_SUBTITLE_CHARS
        and word.end - group[0].start <= _MAX_SUBTITLE_SECONDS
        and word.start - group[-1].end <= _MAX_SUBTITLE_PAUSE
    )


def _srt_time(time: float) -> str:
    milliseconds = round(time * 1000)

    minutes, milliseconds = divmod(milliseconds, 60_000)

    hours, minutes = divmod(minutes, 60)

    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"
