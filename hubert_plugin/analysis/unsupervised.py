"""How good units are where neither phone times nor item files are known: *view consistency*.

What is said does not change when another speaker says it in another room. So an utterance is looked at twice: as it
is, and with another voice (10 % faster or slower, with pitch and formants moved along) in noise of its own spectrum.
The units *z* of a frame and *z'* of the same moment of the other view are compared:

    consistency = I(z; z') / log2 K

Units that stand for sounds keep saying the same: I(z; z') is large. Units that stand for voice, channel or noise do
not survive the second view; units that hardly tell sounds apart have little information to share in the first place.
Both lower it, so the criterion cannot be won by collapsing, which the mere stability of units can. For the same number
of units K it compares layers and models; numbers at different K are not comparable. docs/analysis.md has how well it
agrees with PNMI.

*Persistence* needs no second view. It is what units say about the units 80 ms later, within a phone or the next, beyond
what they say about those 1 s later, which is voice and channel:

    persistence = (I(z_t; z_{t+4}) - I(z_t; z_{t+50})) / log2 K

Mutual information is estimated from counts, with Miller's correction for their number (Miller, 1955: "Note on the bias
of information estimates"): each estimate of an entropy gains (cells that occur - 1) / (2 N) nats.

Letters: *n* samples, *T* frames, *K* units, *N* frames in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.registry import Units, Waveform
from hubert_plugin.units.fit import entropy_bits

CRITERION_NAME: Final = "view consistency"

SPEEDS: Final = (0.9, 1.1)
"""How much faster the other view is, for every second utterance each: the usual factors of speed perturbation (Ko et
al., 2015)."""

NOISE_DB: Final = 10.0
"""The ratio of speech to noise of the other view, in dB."""

NEAR: Final = 4
"""Frames at 50 Hz: 80 ms, about the length of a phone."""

FAR: Final = 50
"""Frames at 50 Hz: one second."""


@dataclass(frozen=True)
class View:
    """Another view of an utterance."""

    waveform: Waveform
    """*Shape:* (n',)."""

    speed: float
    """How much faster it is."""

    def matching_frames(self, num_frames: int, num_view_frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which frames of the utterance and of the view show the same moment, by the middle of their windows.

        :param num_frames: T of the utterance.
        :param num_view_frames: T of the view.
        """
        center, period = frames.frame_center_seconds(0), frames.STRIDE / frames.SAMPLE_RATE

        times = center + period * np.arange(num_frames)

        matches = np.rint((times / self.speed - center) / period).astype(np.int64)

        is_inside = (matches >= 0) & (matches < num_view_frames)

        return np.flatnonzero(is_inside), matches[is_inside]


def make_view(waveform: Waveform, id_: str, *, seed: int = 0) -> View:
    """Return the other view of an utterance; the same one whenever it is asked for.

    :param waveform: At 16 kHz. *Shape:* (n,).
    :param id_: The utterance's id, from which speed and noise are drawn, together with ``seed``.
    """
    from hubert_plugin.audio.resample import resample_to_16k

    rng = np.random.default_rng((seed, crc32(id_.encode("utf-8", "surrogateescape"))))

    speed = SPEEDS[int(rng.integers(len(SPEEDS)))]

    # What was sampled at 16 kHz is taken for 17.6 kHz: it lasts 10 / 11 as long.
    faster = resample_to_16k(waveform, round(speed * frames.SAMPLE_RATE))

    # Noise with the utterance's own spectrum, but without its course in time: the same magnitudes, other phases.
    spectrum = np.fft.rfft(faster)

    phases = np.exp(2j * np.pi * rng.random(len(spectrum)))

    noise = np.fft.irfft(np.abs(spectrum) * phases, n=len(faster)) * 10.0 ** (-NOISE_DB / 20)

    return View((faster + noise).astype(np.float32), speed)


@final
class PairCounts:
    """Counts pairs of units. Memory: K² numbers."""

    def __init__(self, num_units: int) -> None:
        self._counts = np.zeros((num_units, num_units), np.int64)

    def add(self, first: Units, second: Units) -> None:
        """Count pairs. *Shape of each:* (M,)."""
        num_units = len(self._counts)

        pairs = np.asarray(first, np.int64) * num_units + np.asarray(second, np.int64)

        values, counts = np.unique(pairs, return_counts=True)

        self._counts.ravel()[values] += counts

    def information(self) -> float | None:
        """Return I(z; z') / log2 K; ``None`` if nothing was counted."""
        bits = mutual_information_bits(self._counts)

        return None if bits is None else bits / math.log2(len(self._counts))


def mutual_information_bits(counts: NDArray[np.int64]) -> float | None:
    """Return the mutual information of two variables in bits, with Miller's correction; it can be a little below 0.

    :param counts: How often each pair occurs. *Shape:* (values of the first, values of the second).
    :returns: ``None`` if there is no pair.
    """
    total = int(counts.sum())

    if total == 0:
        return None

    def entropy(c: NDArray[np.int64]) -> float:
        return entropy_bits(c) + (int((c > 0).sum()) - 1) / (2 * total * math.log(2))

    return entropy(counts.sum(axis=1)) + entropy(counts.sum(axis=0)) - entropy(counts.ravel())


def persistence(utterances: Sequence[Units], num_units: int) -> float | None:
    """Return the persistence of units at 50 Hz; ``None`` if no utterance is longer than a second.

    :param utterances: The units of each utterance. *Shape of each:* (M,).
    """
    near, far = PairCounts(num_units), PairCounts(num_units)

    for units in utterances:
        near.add(units[:-NEAR], units[NEAR:])
        far.add(units[:-FAR], units[FAR:])

    a, b = near.information(), far.information()

    return None if a is None or b is None else a - b
