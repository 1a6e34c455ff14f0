"""Some utterances of a split, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hubert_plugin.frames import seconds
from hubert_plugin.registry import Waveform

if TYPE_CHECKING:
    from hubert_plugin.audio.policy import AudioPolicy
    from hubert_plugin.data.manifest import Manifest

ReadWaveform = Callable[[int], Waveform]


@dataclass(frozen=True)
class Utterances:
    """Some utterances of a split."""

    ids: Sequence[str]

    read: ReadWaveform
    """Returns the waveform of the utterance at a position."""

    indices: Sequence[int]
    """The positions that take part."""


def utterances_of(
    manifest: Manifest, policy: AudioPolicy, *, max_minutes: float | None = None, seed: int = 0
) -> Utterances:
    """Return the utterances of a manifest, or some of them.

    :param max_minutes: How much audio takes part: utterances in seeded random order until it is reached. ``None``: all.
    """
    from hubert_plugin.audio import read_waveform

    def read(idx: int) -> Waveform:
        return read_waveform(manifest.root, manifest.ids[idx], policy, expected_samples=int(manifest.sizes[idx]))

    indices = list(range(len(manifest)))

    if max_minutes is not None:
        order = np.random.default_rng(seed).permutation(len(manifest))

        num_seconds = np.cumsum([seconds(n) for n in manifest.sizes[order].tolist()])

        indices = [int(i) for i in order[: int(np.searchsorted(num_seconds, max_minutes * 60)) + 1]]

    return Utterances(manifest.ids, read, indices)
