"""Reading alignments: which intervals a file says there are, and in which line. They are checked elsewhere.

Formats: Praat's TextGrid (one file an utterance), NIST's CTM (``utterance channel start duration name``), tables
(``utterance<TAB>start<TAB>end<TAB>name``) and kaldi's vectors of integers, one an utterance and one integer a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

from hubert_plugin.analysis.textgrid import Tier, read_textgrid
from hubert_plugin.data.kaldi_scp import gzip_problem
from hubert_plugin.errors import LabelError
from hubert_plugin.frames import frame_center_seconds

FORMATS: Final = ("textgrid", "ctm", "tsv", "kaldi")
"""The formats of alignments."""

_SUFFIXES: Final = {".textgrid": "textgrid", ".ctm": "ctm", ".tsv": "tsv", ".txt": "tsv", ".ark": "kaldi"} | {
    ".scp": "kaldi"
}


_PIPE_ADVICE: Final = "write what it gives to a file, and name that"


class Interval(NamedTuple):
    """A phone or word and its time."""

    start: float
    """In seconds."""

    end: float

    name: str

    place: str
    """Where it stands in the file, for problems."""


@dataclass
class ParsedAlignment:
    """What the files of an alignment hold."""

    intervals: dict[str, list[Interval]] = field(default_factory=dict)
    """By the name that the files give the utterance, in the files' order."""

    num_labels: dict[str, int] = field(default_factory=dict)
    """The number of labels of each utterance (kaldi only)."""

    problems: list[str] = field(default_factory=list)
    """What could not be understood."""


def guess_format(path: Path) -> str | None:
    """Return the format of the alignment at ``path`` by its name; ``None`` if that does not tell."""
    return "textgrid" if path.is_dir() else _SUFFIXES.get(path.suffix.lower())


def find_gzip(path: Path) -> str | None:
    """Return the sentence that says that the file ``path`` is compressed with gzip; ``None`` if it is not.

    :raises LabelError: It cannot be read.
    """
    try:
        with path.open("rb") as fp:
            return gzip_problem(path, fp.read(2))
    except OSError as ex:
        raise LabelError(f"The alignment '{path}' cannot be read: {ex.strerror or ex}.") from ex


def parse_alignment(
    path: Path, format_: str, *, tier: str, silence: str, rate: int, symbols: Path | None = None
) -> ParsedAlignment:
    """Read the alignment at ``path``: a folder of TextGrids (or a single one), or a file of the other formats.

    :param tier: The name of the TextGrids' tier.
    :param silence: The name of TextGrid intervals without text.
    :param rate: The frames per second of kaldi vectors.
    :param symbols: The table ``name number`` of kaldi's phones; ``None``: phones are named by their numbers.
    :raises LabelError: A file cannot be read.
    """
    match format_:
        case "textgrid":
            return _parse_textgrids(path, tier, silence)
        case "ctm":
            return _parse_lines(path, _parse_ctm_line)
        case "tsv":
            return _parse_lines(path, _parse_tsv_line)
        case _:
            return _parse_kaldi(path, rate, symbols)


def _parse_textgrids(path: Path, tier_name: str, silence: str) -> ParsedAlignment:
    parsed = ParsedAlignment()

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".textgrid")
    else:
        files = [path]

    if not files:
        raise LabelError(f"The folder '{path}' holds no TextGrid (`*.TextGrid`).")

    for file in files:
        name = str(file.relative_to(path).with_suffix("").as_posix()) if path.is_dir() else file.stem

        try:
            tier = _choose_tier(file, read_textgrid(file), tier_name)
        except LabelError as ex:
            parsed.problems.append(str(ex))

            continue

        parsed.intervals[name] = [
            Interval(start, end, text or silence, f"{file}, interval {nr}")
            for nr, (start, end, text) in enumerate(tier.intervals, start=1)
        ]

    return parsed


def _choose_tier(file: Path, tiers: list[Tier], name: str) -> Tier:
    """Return the tier ``name``; tools put a speaker's name before it (``anna - phones``)."""
    if len(tiers) == 1:
        return tiers[0]

    found = [t for t in tiers if t.name.lower() == name.lower()]
    found = found or [t for t in tiers if t.name.lower().endswith(f"- {name.lower()}")]

    if len(found) != 1:
        names = ", ".join(f"'{t.name}'" for t in tiers) or "none"

        raise LabelError(f"'{file}' must have one interval tier '{name}'; its interval tiers are: {names}.")

    return found[0]


def _parse_lines(path: Path, parse: Callable[[str], tuple[str, float, float, str] | str | None]) -> ParsedAlignment:
    """
    :param parse: Returns utterance, start, end and name; or what is wrong; or ``None`` for a line that says nothing.
    """
    parsed = ParsedAlignment()

    for nr, line in _read_lines(path):
        match parse(line):
            case (utterance, start, end, name):
                parsed.intervals.setdefault(utterance, []).append(Interval(start, end, name, f"{path}:{nr}"))
            case str() as problem if nr > 1 or not _is_head(line):
                parsed.problems.append(f"{path}:{nr}: {problem}, found {line[:100]!r}.")

    return parsed


def _is_head(line: str) -> bool:
    """Return whether a first line names columns: no field of it is a number."""
    return not any(_to_number(f) is not None for f in line.split())


def _parse_ctm_line(line: str) -> tuple[str, float, float, str] | str | None:
    fields = line.split()

    if not fields or fields[0].startswith(";;"):
        return None

    expected = "expected `utterance channel start duration name`"

    if len(fields) not in (5, 6):
        return expected

    start, duration = _to_number(fields[2]), _to_number(fields[3])

    if start is None or duration is None:
        return f"{expected} with times in seconds"

    return fields[0], start, start + duration, fields[4]


def _parse_tsv_line(line: str) -> tuple[str, float, float, str] | str | None:
    if not line.strip():
        return None

    # Utterances and words may hold spaces; who uses none may separate by them.
    fields = line.split("\t") if "\t" in line else line.split()

    expected = "expected `utterance<TAB>start<TAB>end<TAB>name`"

    if len(fields) != 4 or not fields[0] or not fields[3].strip():
        return expected

    start, end = _to_number(fields[1]), _to_number(fields[2])

    if start is None or end is None:
        return f"{expected} with times in seconds"

    return fields[0], start, end, fields[3].strip()


def _parse_kaldi(path: Path, rate: int, symbols: Path | None) -> ParsedAlignment:
    """Turn vectors of integers, one a frame, into intervals.

    A label stands for the time around its window's centre, half-way to its neighbours: read at the centres of frames
    at ``rate``, the intervals give the labels back. The first and the last reach half a window further.
    """
    from hubert_plugin.data.kaldi import KaldiFormatError, iter_int_vectors  # kaldiio, only where it is used

    names = {} if symbols is None else _read_symbols(symbols)

    parsed = ParsedAlignment()

    unknown: dict[int, str] = {}

    try:
        for utterance, labels in iter_int_vectors(path, pipe_advice=_PIPE_ADVICE):
            if utterance in parsed.intervals:
                parsed.problems.append(f"{path}: '{utterance}' is there twice.")

            parsed.num_labels[utterance] = len(labels)

            intervals: list[Interval] = []

            first = 0

            for number, group in groupby(labels.tolist()):
                end = first + len(list(group))

                if symbols is not None and number not in names:
                    unknown.setdefault(number, utterance)

                start_seconds = frame_center_seconds(first, rate) - 0.5 / rate if first else 0.0

                end_seconds = frame_center_seconds(end, rate) - 0.5 / rate

                name = names.get(number, str(number))

                intervals.append(Interval(start_seconds, end_seconds, name, f"{path}, '{utterance}', frame {first}"))

                first = end

            parsed.intervals[utterance] = intervals
    except KaldiFormatError as ex:
        raise LabelError(f"The kaldi alignment '{path}' cannot be used: {ex}") from ex

    parsed.problems += [
        f"{path}: {number} is not in '{symbols}' ('{utterance}' has it)." for number, utterance in unknown.items()
    ]

    return parsed


def _read_symbols(path: Path) -> dict[int, str]:
    names = {}

    for nr, line in _read_lines(path):
        fields = line.split()

        if len(fields) != 2 or not fields[1].isdecimal():
            raise LabelError(f"{path}:{nr}: expected `name number`, as in kaldi's phones.txt, found {line[:100]!r}.")

        names[int(fields[1])] = fields[0]

    return names


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if problem := find_gzip(path):
            raise LabelError(problem)

        with path.open("rb") as raw:
            head = raw.read(1 << 12)

        # Text has no zeros; in UTF-16 every other byte is one, and it could be taken for UTF-8.
        if b"\0" in head:
            raise LabelError(_explain_encoding(path, "holds zero bytes"))

        with path.open(encoding="utf-8-sig", newline="\n") as fp:
            for nr, line in enumerate(fp, start=1):
                yield nr, line.rstrip("\r\n")
    except OSError as ex:
        raise LabelError(f"The alignment '{path}' cannot be read: {ex.strerror or ex}.") from ex
    except UnicodeDecodeError as ex:
        raise LabelError(_explain_encoding(path, f"holds the byte {ex.object[ex.start]:#x}")) from ex


def _explain_encoding(path: Path, found: str) -> str:
    return (
        f"The alignment '{path}' cannot be read: it must be UTF-8, but {found}. Save it as UTF-8, for example with "
        "`iconv -f UTF-16 -t UTF-8` if that is what it is in."
    )


def _to_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None

    return number if isfinite(number) else None
