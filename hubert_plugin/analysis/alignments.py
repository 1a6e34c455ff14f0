"""The phones (or words) of utterances: read from any of several formats, checked against the corpus, read at frames.

An alignment says for every utterance of a manifest which phone is spoken when. All that is wrong with it is told at
once: utterances it lacks, intervals that are reversed or overlap, times beyond the audio, times without a phone.

Times are in seconds from the start of the utterance. A frame's phone is read at the centre of its window
(``frames.frame_center_seconds``): read at its start, labels and features are 12.5 ms apart, which costs 0.07 PNMI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.analysis.alignment_files import (
    FORMATS,
    Interval,
    ParsedAlignment,
    find_gzip,
    guess_format,
    parse_alignment,
)
from hubert_plugin.analysis.utterance_ids import UtteranceIndex
from hubert_plugin.errors import ConfigError, LabelError, format_problems
from hubert_plugin.frames import SUPPORTED_LABEL_RATES, frame_center_seconds, num_labels, seconds

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

Segments = Sequence[tuple[float, float, str]]
"""The phones of an utterance: start and end in seconds, and name; in order, without overlap."""

MAX_OVERLAP: Final = 0.010 + 1e-6
"""Seconds by which neighbouring intervals may overlap or be apart: where start and duration are rounded to 10 ms each
by itself, as in CTMs, they do. The millionth is for sums of floating-point numbers."""

MAX_UNCOVERED: Final = 0.1
"""Seconds that may be without a phone at a stretch, and by which the last phone may end after the audio."""

_MAX_LABEL_DIFFERENCE: Final = 2
"""By how many labels a kaldi vector may differ from the number of frames: without ``snip_edges`` it has up to two
more."""


@dataclass(kw_only=True)
class AlignmentConfig(Validatable):
    """Where phone or word times are and how they are read."""

    path: Path | None = None
    """A folder of TextGrids, or a TextGrid, CTM, TSV (``utterance start end name``) or kaldi file (ark or scp).
    ``null``: what the demo corpus keeps beside its manifest, or nothing."""

    format: str = "auto"
    """``textgrid``, ``ctm``, ``tsv``, ``kaldi``, or ``auto``: by the name of the file."""

    tier: str = "phones"
    """The tier of the TextGrids, if they have several."""

    gap: str | None = None
    """The name of times without an interval (CTMs leave silence out: ``SIL``). ``null``: there must be none longer than
    0.1 s, and frames that fall into shorter ones do not count."""

    silence: str = "SIL"
    """The name of TextGrid intervals without text."""

    strip_stress: bool = False
    """If ``True``, digits at the end of names are removed (``AH0`` → ``AH``)."""

    strip_position: bool = False
    """If ``True``, kaldi's marks of the position in the word are removed (``AH_B`` → ``AH``)."""

    rate: int = 100
    """The frames per second of kaldi alignments: 100 or 50."""

    symbols: Path | None = None
    """Kaldi's ``phones.txt``, which names the numbers in kaldi alignments."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.format not in ("auto", *FORMATS):
            result.add_error(f"`format` must be one of auto, {', '.join(FORMATS)}, but is '{self.format}' instead.")

        if self.rate not in SUPPORTED_LABEL_RATES:
            result.add_error(f"`rate` must be 50 or 100 frames per second, but is {self.rate} instead.")

        return result


@dataclass(frozen=True)
class Alignment:
    """The phones (or words) of all utterances of a manifest."""

    path: Path
    """Where they were read from."""

    segments: Mapping[str, Segments]
    """By the utterance's id in the manifest."""

    num_ignored: int = 0
    """The number of other utterances that the alignment knows."""

    def __getitem__(self, id_: str) -> Segments:
        return self.segments[id_]

    def frame_labels(self, id_: str, num_frames: int, rate: int) -> list[str | None]:
        """Return the phone of each frame of an utterance; see :func:`frame_labels`."""
        return frame_labels(self.segments[id_], num_frames, rate)


def frame_labels(segments: Segments, num_frames: int, rate: int) -> list[str | None]:
    """Return the phone at the centre of each of ``num_frames`` frames at ``rate`` (50 or 100) Hz; ``None`` between
    segments. A centre on a boundary belongs to the later segment.

    :raises ValueError: ``rate`` is neither 50 nor 100.
    """
    if num_frames <= 0:
        return []

    centers = np.array([frame_center_seconds(t, rate) for t in range(num_frames)])

    if not segments:
        return [None] * num_frames

    indices = np.searchsorted([start for start, _, _ in segments], centers, side="right") - 1

    inside = (indices >= 0) & (centers < np.array([end for _, end, _ in segments])[indices])

    return [segments[i][2] if is_in else None for i, is_in in zip(indices.tolist(), inside.tolist(), strict=True)]


def find_alignment(manifest: Manifest, kind: str = "align") -> Path | None:
    """Return the phone (``align``) or word (``words``) times beside a manifest, as the demo corpus has them."""
    path = manifest.path.with_name(f"{manifest.split}.{kind}.tsv")

    return path if path.is_file() else None


def read_alignments(
    config: AlignmentConfig, manifest: Manifest, *, default: Path | None = None, may_lack: bool = False
) -> Alignment | None:
    """Read the alignment that ``config`` names for the utterances of ``manifest``, and check it.

    :param default: What is read if ``config`` names none.
    :param may_lack: If ``True``, times without an interval are no problem (words: nobody speaks all the time).
    :returns: ``None`` if there is no alignment at all.
    :raises ConfigError: The name of the file does not tell its format.
    :raises LabelError: The alignment cannot be read or does not fit the manifest; all problems at once.
    """
    if (path := config.path or default) is None:
        return None

    path = Path(path).expanduser()

    if not path.exists():
        raise LabelError(f"There is no alignment '{path}'.")

    format_ = guess_format(path) if config.format == "auto" or config.path is None else config.format

    if format_ is None and (problem := find_gzip(path)):
        raise LabelError(problem)

    if format_ is None:
        raise ConfigError(
            f"The name of the alignment '{path}' does not tell its format; set `format` to one of {', '.join(FORMATS)}."
        )

    parsed = parse_alignment(
        path, format_, tier=config.tier, silence=config.silence, rate=config.rate, symbols=config.symbols
    )

    return _Checker(config, path, manifest, parsed, may_lack).check()


class _Checker:
    def __init__(
        self, config: AlignmentConfig, path: Path, manifest: Manifest, parsed: ParsedAlignment, may_lack: bool
    ) -> None:
        self._config, self._path, self._manifest, self._parsed = config, path, manifest, parsed

        self._may_lack = may_lack

        self._problems = list(parsed.problems)

    def check(self) -> Alignment:
        head = f"The alignment '{self._path}' cannot be used for '{self._manifest.path}':"

        if not any(self._parsed.intervals.values()):
            raise LabelError(format_problems(head, [*self._problems, "it holds no intervals at all."]))

        names = self._match_names()

        if not names:
            example, other = next(iter(self._parsed.intervals)), self._manifest.ids[0]

            raise LabelError(
                format_problems(
                    head,
                    [
                        *self._problems,
                        f"it is of other utterances: none of its {len(self._parsed.intervals):,} names (such as "
                        f"'{example}') is one of the manifest (such as '{other}').",
                    ],
                )
            )

        segments: dict[str, Segments] = {}

        for id_, size in zip(self._manifest.ids, self._manifest.sizes.tolist(), strict=True):
            if (name := names.get(id_)) is None:
                if not self._may_lack:
                    self._problems.append(f"'{id_}' has no intervals.")

                segments[id_] = []
            else:
                segments[id_] = self._check_utterance(id_, name, size)

        if self._problems:
            raise LabelError(format_problems(head, self._problems))

        return Alignment(self._path, segments, len(self._parsed.intervals) - len(names))

    def _match_names(self) -> dict[str, str]:
        """Return the name in the alignment by the id in the manifest."""
        index = UtteranceIndex.of(self._manifest)

        names: dict[str, str] = {}

        for name, intervals in self._parsed.intervals.items():
            if not intervals or (id_ := index.find(name)) is None:
                continue

            if id_ in names:
                self._problems.append(f"'{names[id_]}' and '{name}' are both '{id_}' of the manifest.")

            names[id_] = name

        return names

    def _check_utterance(self, id_: str, name: str, size: int) -> Segments:
        # The order of lines is free.
        intervals = sorted(self._parsed.intervals[name], key=lambda i: (i.start, i.end))

        num_problems = len(self._problems)

        if (count := self._parsed.num_labels.get(name)) is not None:
            self._check_count(id_, size, count)

        last: Interval | None = None

        for interval in intervals:
            start, end, _, place = interval

            if start < 0 or end <= start:
                self._problems.append(
                    f"{place}: an interval must end after it starts, at 0 or later, but '{interval.name}' goes from "
                    f"{start:g} to {end:g} s."
                )

                continue

            # What would be cut to nothing is no matter of rounding.
            if last is not None and (start < last.end - MAX_OVERLAP or start <= last.start):
                self._problems.append(
                    f"{place}: '{interval.name}' ({start:g} to {end:g} s) overlaps '{last.name}' ({last.start:g} to "
                    f"{last.end:g} s, {last.place})."
                )

            last = interval

        duration = seconds(size)

        if last is not None and last.end > duration + MAX_UNCOVERED and count is None:
            self._problems.append(
                f"{last.place}: '{last.name}' ends at {last.end:g} s, but '{id_}' has {duration:g} s of audio."
            )

        # Where intervals are wrong, what they leave uncovered says nothing.
        return self._settle(id_, intervals, duration) if len(self._problems) == num_problems else []

    def _check_count(self, id_: str, size: int, count: int) -> None:
        rate = self._config.rate

        expected = {r: num_labels(size, r) for r in SUPPORTED_LABEL_RATES}

        if abs(count - expected[rate]) <= _MAX_LABEL_DIFFERENCE:
            return

        other = [r for r in SUPPORTED_LABEL_RATES if abs(count - expected[r]) <= _MAX_LABEL_DIFFERENCE]

        hint = f"; at {other[0]} per second it would fit (set `rate`)" if other else ""

        self._problems.append(
            f"'{id_}' has {count} labels, but {expected[rate]} frames at {rate} per second ({size} samples){hint}."
        )

    def _settle(self, id_: str, intervals: Sequence[Interval], duration: float) -> Segments:
        """Name or close the gaps between intervals, and have the outermost ones reach the ends of the audio."""
        settled: list[tuple[float, float, str]] = []

        position = 0.0

        for start, end, name, _ in intervals:
            if self._is_to_name(id_, position, start, duration):
                settled.append((position, start, str(self._config.gap)))
            elif settled and start - position <= MAX_OVERLAP:
                settled[-1] = (settled[-1][0], start, settled[-1][2])
            elif not settled and not self._may_lack:
                start = 0.0

            settled.append((start, end, self._fold(name)))

            position = end

        if self._is_to_name(id_, position, duration, duration):
            settled.append((position, duration, str(self._config.gap)))
        elif not self._may_lack:
            settled[-1] = (settled[-1][0], max(position, duration), settled[-1][2])

        return settled

    def _is_to_name(self, id_: str, start: float, end: float, duration: float) -> bool:
        """Return whether a gap gets the name that the configuration has for gaps; note it if it must not be."""
        if self._config.gap is not None:
            return end - start > MAX_OVERLAP

        if end - start > MAX_UNCOVERED and not self._may_lack:
            self._problems.append(
                f"'{id_}' has no interval from {start:g} to {end:g} s (of {duration:g} s). If that is silence, say so "
                "with `gap: SIL`."
            )

        return False

    def _fold(self, name: str) -> str:
        folded = name

        if self._config.strip_position:
            folded = re.sub(r"_[BEIS]$", "", folded)

        if self._config.strip_stress:
            folded = re.sub(r"\d+$", "", folded)

        return folded or name
