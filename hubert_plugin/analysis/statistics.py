"""What units are like, whatever they stand for: how many are used, how evenly, and for how long at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hubert_plugin.errors import LabelError
from hubert_plugin.registry import Units
from hubert_plugin.units.fit import entropy_bits


@dataclass(frozen=True)
class UnitStatistics:
    """Statistics of the units of some utterances."""

    num_units: int
    """The number of units that there are, K."""

    num_frames: int
    """The number of units in all utterances together."""

    num_dead_units: int
    """The number of units that never occur."""

    entropy_bits: float
    """The entropy of the distribution of units; log2 K if all are equally frequent."""

    perplexity: float
    """2 to the power of the entropy: by how many equally frequent units the entropy would be had."""

    largest_share: float
    """The share of the most frequent unit."""

    num_runs: int
    """The number of runs: stretches of one and the same unit within an utterance."""

    mean_run_frames: float
    """The mean length of a run, in frames."""

    mean_run_seconds: float
    """The mean length of a run, in seconds."""


def unit_statistics(utterances: Iterable[Units], num_units: int, rate: int) -> UnitStatistics:
    """Return the statistics of units.

    :param utterances: The units of each utterance. *Shape of each:* (M,).
    :param num_units: The number of units that there are, K.
    :param rate: Units per second.
    :raises LabelError: There is not a single unit, or one that is not 0 … K - 1.
    """
    counts = np.zeros(num_units, np.int64)

    num_runs = 0

    for nr, units in enumerate(utterances):
        if len(units) == 0:
            continue

        if units.min() < 0 or units.max() >= num_units:
            raise LabelError(f"Units must be 0 … {num_units - 1}, but those of utterance {nr} reach {units.max()}.")

        counts += np.bincount(units, minlength=num_units)

        num_runs += 1 + int((units[1:] != units[:-1]).sum())

    if (num_frames := int(counts.sum())) == 0:
        raise LabelError("There are no units: all utterances are empty.")

    entropy = entropy_bits(counts)

    return UnitStatistics(
        num_units=num_units,
        num_frames=num_frames,
        num_dead_units=int((counts == 0).sum()),
        entropy_bits=entropy,
        perplexity=2.0**entropy,
        largest_share=int(counts.max()) / num_frames,
        num_runs=num_runs,
        mean_run_frames=num_frames / num_runs,
        mean_run_seconds=num_frames / num_runs / rate,
    )
