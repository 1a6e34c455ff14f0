"""Phones: eSpeak's names folded to a small set, its events made into segments, segments read at frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.frames import frame_center_seconds

Segment = tuple[float, float, str]
"""Start and end in seconds, and a phone or word."""

SampleSegment = tuple[int, int, str]
"""Start and end in samples, and a phone or word."""

SILENCE: Final = "SIL"

UNKNOWN: Final = "SPN"
"""Spoken, but under a name that :data:`_FOLD` does not know (another version of eSpeak NG might bring one)."""

# eSpeak's names for American English on the right, 39 ARPAbet-like phones and six r-coloured vowels on the left.
_FOLD: Final = {
    name: phone
    for phone, names in {
        "AA": "0 A:",
        "AAR": "A@",
        "AE": "a aa",
        "AH": "a# @ @2 @5 V",
        "AO": "O: O O2",
        "AOR": "O@ o@",
        "AW": "aU",
        "AY": "aI",
        "AYR": "aI@ aI3",
        "B": "b",
        "CH": "tS",
        "D": "d",
        "DH": "D",
        "DX": "t# d#",
        "EH": "E",
        "EHR": "e@",
        "ER": "3: 3",
        "EY": "eI",
        "F": "f",
        "G": "g",
        "HH": "h",
        "IH": "I I# I2",
        "IHR": "i@ i@3",
        "IY": "i i:",
        "JH": "dZ",
        "K": "k",
        "L": "l @L",
        "M": "m",
        "N": "n",
        "NG": "N",
        "OW": "oU",
        "OY": "OI",
        "P": "p",
        "R": "r r-",
        "S": "s",
        "SH": "S",
        "T": "t t2",
        "TH": "T",
        "UH": "U",
        "UHR": "U@",
        "UW": "u u:",
        "V": "v",
        "W": "w",
        "Y": "j ;",
        "Z": "z",
        "ZH": "Z",
        SILENCE: "? ! _ _: _! _|",
    }.items()
    for name in names.split()
}

PHONES: Final = tuple(sorted({*_FOLD.values(), UNKNOWN}))
"""Every phone that an alignment of the corpus may hold."""

_STOPS: Final = frozenset({"P", "B", "T", "D", "K", "G", "CH", "JH"})

_MIN_PAUSE: Final = 0.025
"""Seconds of digital silence from which on a gap between two phones counts as a pause of its own."""

_MAX_CODA: Final = 0.05
"""Seconds given at most to a consonant that is sounded inside the vowel before it."""


def fold_phone(name: str) -> str:
    """Return the phone for eSpeak's ``name``, with or without stress and pause marks."""
    for candidate in (name, bare := name.strip("',%="), bare.strip("_")):
        if (phone := _FOLD.get(candidate)) is not None:
            return phone

    return UNKNOWN if bare.strip("_:!|") else SILENCE


def frame_phones(segments: Sequence[Segment], num_frames: int, rate: int) -> list[str]:
    """Return the phone of each of ``num_frames`` frames at ``rate`` (50 or 100) Hz.

    A phone is read at the centre of the frame's window, 12.5 ms + t / rate: read at t / rate, labels and features are
    12.5 ms apart, which costs 0.07 PNMI. A centre on a boundary belongs to the later segment, a centre behind the
    last segment to the last one.

    :param segments: In order and without gaps.
    :raises ValueError: ``segments`` is empty though frames are asked for, or ``rate`` is neither 50 nor 100.
    """
    if num_frames <= 0:
        return []

    if not segments:
        raise ValueError("`segments` must hold at least one segment, but is empty instead.")

    centers = [frame_center_seconds(t, rate) for t in range(num_frames)]

    indices = np.searchsorted([end for _, end, _ in segments], centers, side="right")

    return [segments[min(i, len(segments) - 1)][2] for i in indices.tolist()]


@dataclass
class _Span:
    start: int
    end: int
    phone: str | None
    """``None``: digital silence that is yet to be given to a neighbour or to be named a pause."""


def find_segments(pcm: NDArray[np.int16], events: Sequence[tuple[str, int]], sample_rate: int) -> list[SampleSegment]:
    """Return the phone segments, in samples, that cover ``pcm`` from its first event on (from 0 if that is earlier).

    Three repairs of eSpeak's event times: (1) the closure of a stop lies, as exact zeros, before the stop's event and
    is given to the stop; (2) other runs of zeros become silence if they last 25 ms or touch silence, and belong to the
    phone before if not; (3) an L or R that closes a syllable may be sounded inside its vowel and have no sound of its
    own: it gets the last third of the vowel, 50 ms at most.

    :param pcm: What eSpeak made. *Shape:* (n,).
    :param events: eSpeak's phone names and the sample at which each begins.
    """
    return _settle_gaps(_split_gaps(pcm, events, sample_rate), sample_rate)


def _split_gaps(pcm: NDArray[np.int16], events: Sequence[tuple[str, int]], sample_rate: int) -> list[_Span]:
    """Cut the digital silence off the end of every phone."""
    ends = [*(sample for _, sample in events[1:]), len(pcm)]

    spans: list[_Span] = []

    if not events or events[0][1] > 0:
        spans.append(_Span(0, events[0][1] if events else len(pcm), SILENCE))

    for (name, start), end in zip(events, ends, strict=False):
        if end <= start:
            continue

        phone = fold_phone(name)
        if phone == SILENCE:
            spans.append(_Span(start, end, SILENCE))
            continue

        sounding = np.flatnonzero(pcm[start:end])

        tail = start + int(sounding[-1]) + 1 if len(sounding) else start

        if tail > start:
            spans.append(_Span(start, tail, phone))
        elif phone in ("L", "R") and spans and spans[-1].phone not in (SILENCE, None):
            vowel = spans[-1]
            vowel.end -= min(int(_MAX_CODA * sample_rate), (vowel.end - vowel.start) // 3)
            spans.append(_Span(vowel.end, start, phone))

        if tail < end:
            spans.append(_Span(tail, end, None))

    return spans


def _settle_gaps(spans: Sequence[_Span], sample_rate: int) -> list[SampleSegment]:
    """Give every gap to the stop behind it, to the phone before it, or make it silence; join neighbouring silences."""
    settled: list[_Span] = []

    for i, span in enumerate(spans):
        if span.phone is None:
            following = spans[i + 1] if i + 1 < len(spans) else None

            if following is not None and following.phone in _STOPS:
                following.start = span.start
                continue

            is_short = span.end - span.start < _MIN_PAUSE * sample_rate

            if is_short and settled and (following is None or following.phone != SILENCE):
                settled[-1].end = span.end
                continue

            span.phone = SILENCE

        if settled and settled[-1].phone == SILENCE == span.phone:
            settled[-1].end = span.end
        else:
            settled.append(span)

    return [(s.start, s.end, s.phone or SILENCE) for s in settled]
