"""Reading label files and checking them before anything is trained on them: all problems of a file at once.

Letters: *N* utterances, *L* labels of an utterance, *E* the labels its audio calls for, *n* samples.

**How long a line may be.** The frame clock calls for ``E = frames.num_labels(n, rate)`` labels. A line may have 20 ms
less or more than that, i.e. one label at 50 Hz and two at 100 Hz: tools round differently at the end of an utterance
(s3prl and ``round(n / 320)`` give one more; fairseq's chunked extraction loses one at the boundary of chunks). What is
too much is cut off; what is missing stays missing, never invented: such an utterance has fewer labels than frames, and
its last frames are left out, as in fairseq. So a line may be empty where the audio has no more than 20 ms of frames;
the utterance then takes no part. Beyond that the line belongs to other audio or to another rate and is refused; fairseq
warns from 0.1 s on and trains all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.errors import LabelError, format_problems
from hubert_plugin.frames import SUPPORTED_LABEL_RATES, num_labels, seconds

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

LENGTH_TOLERANCE: Final = {50: 1, 100: 2}
"""By how many labels a line may be shorter or longer than its audio calls for, by label rate: 20 ms."""

_CHUNK_BYTES: Final = 1 << 18
"""The temporary arrays of a chunk stay in the cache: 69 million labels a second, against 50 with 4 MB."""

_MAX_DIGITS: Final = 9
"""Longer numbers do not fit into 32 bits and are no units anyway."""

_DIGIT, _SPACE, _NEWLINE, _OTHER = range(4)

_CLASS_OF_BYTE: Final = np.full(256, _OTHER, np.uint8)
_CLASS_OF_BYTE[list(b"0123456789")] = _DIGIT
_CLASS_OF_BYTE[list(b" \t\r")] = _SPACE
_CLASS_OF_BYTE[list(b"\n")] = _NEWLINE


@dataclass
class ParsedLabels:
    """The content of a label file."""

    values: NDArray[Any]
    """The labels of all lines, one after another; int16 if the size allows, else int32. Problems are zeros."""

    counts: NDArray[np.int64]
    """The number of labels of every line. *Shape:* (N,)."""

    problems: list[tuple[int, str]] = field(default_factory=list)
    """Line numbers (1-based) and what is wrong there: at most one tuple a line."""


def parse_labels(data: bytes | memoryview, size: int, table: NDArray[np.int32] | None = None) -> ParsedLabels:
    """Parse lines of space-separated labels.

    :param size: The number of units; labels are 0 … size - 1.
    :param table: Which unit a number in the file stands for, -1 for none; ``None`` if every number is its own unit.
    """
    view = np.frombuffer(data, np.uint8)

    # At least every second byte is a separator. Memory that is never touched is never claimed.
    values = np.empty(len(view) // 2 + 1, np.int16 if size <= 1 << 15 else np.int32)

    counts: list[NDArray[np.int64]] = []

    problems: list[tuple[int, str]] = []

    num_values = num_lines = start = 0

    while start < len(view):
        end = _end_of_chunk(view, start)

        chunk = view[start:end]

        parsed = _parse_fast(chunk, size, table)

        if parsed is None:
            parsed = _parse_slowly(chunk.tobytes(), size, table)

        values[num_values : num_values + len(parsed.values)] = parsed.values

        counts.append(parsed.counts)

        problems.extend((num_lines + line, text) for line, text in parsed.problems)

        num_values += len(parsed.values)
        num_lines += len(parsed.counts)

        start = end

    return ParsedLabels(values[:num_values], np.concatenate(counts) if counts else np.empty(0, np.int64), problems)


def _end_of_chunk(view: NDArray[np.uint8], start: int) -> int:
    """Return the end of the last line that ends within the chunk (or of the first line, if that is longer)."""
    size = _CHUNK_BYTES

    while start + size < len(view):
        newlines = np.flatnonzero(view[start : start + size] == ord("\n"))

        if len(newlines):
            return start + int(newlines[-1]) + 1

        size *= 2

    return len(view)


def _parse_fast(chunk: NDArray[np.uint8], size: int, table: NDArray[np.int32] | None) -> ParsedLabels | None:
    """Parse a chunk with array operations; ``None`` if anything in it needs a closer look."""
    classes = _CLASS_OF_BYTE[chunk]

    if classes.max(initial=0) == _OTHER:
        return None

    is_digit = np.zeros(len(chunk) + 2, bool)

    np.equal(classes, _DIGIT, out=is_digit[1:-1])

    edges = np.flatnonzero(is_digit[1:] != is_digit[:-1])

    starts, ends = edges[0::2], edges[1::2]

    lengths = ends - starts

    num_digits = int(lengths.max(initial=0))

    if num_digits > _MAX_DIGITS:
        return None

    digits = chunk - np.uint8(ord("0"))

    last = ends - 1

    values = digits[last].astype(np.int32)

    for place in range(1, num_digits):
        # Where a number is shorter, the index points before it (even before the chunk) and the factor is zero.
        values += digits[last - place] * ((lengths > place) * np.int32(10**place))

    if table is not None:
        values = np.where(values < len(table), table[np.minimum(values, len(table) - 1)], np.int32(-1))

    if len(values) and (values.max() >= size or values.min() < 0):
        return None

    newlines = np.flatnonzero(classes == _NEWLINE)

    if len(newlines) == 0 or newlines[-1] != len(chunk) - 1:
        newlines = np.append(newlines, len(chunk))  # the last line of the file may lack its end

    counts = np.diff(np.searchsorted(starts, newlines), prepend=0)

    return ParsedLabels(values, counts.astype(np.int64))


def _parse_slowly(chunk: bytes, size: int, table: NDArray[np.int32] | None) -> ParsedLabels:
    """Parse a chunk line by line, noting the first problem of every line."""
    values: list[int] = []
    counts: list[int] = []
    problems: list[tuple[int, str]] = []

    for line_nr, line in enumerate(chunk.removesuffix(b"\n").split(b"\n"), start=1):
        tokens = line.split()

        problem = None

        for token in tokens:
            if not token.removeprefix(b"-").isdigit():
                problem = problem or f"{token.decode(errors='replace')!r} is not an integer label"

                number = -1
            else:
                # Python refuses to read numbers of thousands of digits.
                number = int(token[:20])

                if table is None:
                    unit = number
                else:
                    unit = int(table[number]) if 0 <= number < len(table) else -1

                if not 0 <= unit < size:
                    allowed = f"0 … {size - 1}" if table is None else "in the dictionary"

                    problem = problem or f"label {number} is out of range: the {size} units are {allowed}"

                    unit = -1

                number = unit

            values.append(max(number, 0))

        counts.append(len(tokens))

        if problem:
            problems.append((line_nr, problem))

    return ParsedLabels(np.array(values, np.int32), np.array(counts, np.int64), problems)


def expected_counts(sizes: NDArray[np.int64], rate: int) -> NDArray[np.int64]:
    """Return E for every utterance of ``sizes`` samples. *Shape:* (N,)."""
    # Many utterances share a length; asking the frame clock once for each keeps its rounding in one place.
    unique, inverse = np.unique(sizes, return_inverse=True)

    return np.fromiter((num_labels(n, rate) for n in unique.tolist()), np.int64, len(unique))[inverse]


def infer_rate(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> int | None:
    """Return the supported rate whose number of labels fits most utterances, ``None`` if none fits more than half."""
    best_rate, best_fit = None, 0.5

    for rate in SUPPORTED_LABEL_RATES:
        fit = float(fits(counts, expected_counts(sizes, rate), rate).mean()) if len(counts) else 0.0

        if fit > best_fit:
            best_rate, best_fit = rate, fit

    return best_rate


def usable_counts(counts: NDArray[np.int64], expected: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many labels of every line are used: what is beyond the audio is cut off."""
    return np.minimum(counts, expected)


def check_labels(path: Path, parsed: ParsedLabels, manifest: Manifest, rate: int | None) -> int:
    """Check the labels in ``path`` against the manifest and return their rate (``None``: infer it).

    :raises LabelError: With all problems of the file: lines that are too many or too few, not integers, out of range,
        empty, or too short or too long for their audio.
    """
    counts, num_utterances = parsed.counts, len(manifest.ids)

    problems = dict(parsed.problems)

    head = f"The labels in '{path}' do not fit the manifest '{manifest.path}'."

    if len(counts) != num_utterances:
        general = [
            f"{path.name} has {len(counts):,} lines, but {manifest.path.name} has {num_utterances:,} utterances (one "
            f"line of labels each{_hint(counts, num_utterances)})"
        ]

        surplus = len(counts) > num_utterances

        for idx in np.flatnonzero(counts == 0).tolist() if surplus else ():
            problems.setdefault(idx + 1, "the last line is empty" if idx + 1 == len(counts) else "the line is empty")

        raise LabelError(format_problems(head, [*general, *_at_lines(path, problems)]))

    if rate is None:
        rate = infer_rate(counts, manifest.sizes)

        if rate is None:
            general = [_rate_problem(path, counts, manifest)]

            raise LabelError(format_problems(head, [*general, *_at_lines(path, problems)]))

    expected = expected_counts(manifest.sizes, rate)

    for idx in np.flatnonzero(~fits(counts, expected, rate)).tolist():
        if idx + 1 not in problems:
            problems[idx + 1] = length_problem(int(counts[idx]), int(expected[idx]), rate, manifest, idx)

    if problems:
        # If another rate fits, then the rate is what is wrong, not every line of the file.
        other = infer_rate(counts, manifest.sizes)

        if other is not None and other != rate:
            head += f" They were to be at {rate} labels per second, but look like {other}: check the label rate."

        raise LabelError(format_problems(head, _at_lines(path, problems)))

    return rate


def fits(counts: NDArray[np.int64], expected: NDArray[np.int64], rate: int) -> NDArray[np.bool_]:
    """Tell which utterances have as many labels as they should, within the tolerance. *Shape:* (N,)."""
    return np.abs(counts - expected) <= LENGTH_TOLERANCE[rate]


def length_problem(count: int, expected: int, rate: int, manifest: Manifest, idx: int) -> str:
    """Return what is wrong with the number of labels of utterance ``idx``."""
    audio = (
        f"'{manifest.ids[idx]}' ({int(manifest.sizes[idx])} samples, {manifest.path.name}:{idx + 2}) has {expected} "
        f"frames at {rate} Hz"
    )

    if count == 0:
        return f"the line is empty, but {audio}"

    return f"too {'short' if count < expected else 'long'}: {count} labels, but {audio}"


def _hint(counts: NDArray[np.int64], num_utterances: int) -> str:
    """Return what may be the matter with a file that has another number of lines."""
    num_empty = int((counts == 0).sum())

    if num_empty and len(counts) - num_empty == num_utterances:
        return "; it would fit without the empty ones: remove them"

    return "; were all shards merged, and is it the same manifest?"


def _rate_problem(path: Path, counts: NDArray[np.int64], manifest: Manifest) -> str:
    num_seconds = seconds(int(manifest.sizes.sum()))

    return (
        f"{path.name} has {counts.sum() / max(num_seconds, 1e-9):.1f} labels per second on the average, for few of its "
        f"lines {' or '.join(map(str, SUPPORTED_LABEL_RATES))}; were they made from this audio?"
    )


def _at_lines(path: Path, problems: dict[int, str]) -> Sequence[str]:
    return [f"{path}:{line}: {problems[line]}" for line in sorted(problems)]
