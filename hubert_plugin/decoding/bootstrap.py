"""Confidence intervals of error rates: the bootstrap over utterances (Bisani and Ney, 2004).

Utterances are drawn with replacement, as many as there are; the error rate of each such draw is the sum of its edits
over the sum of its reference lengths. The interval lies between quantiles of the rates of many draws. It says what
another draw of utterances of the same kind could have given; where few speakers said many utterances each, it is too
narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from hubert_plugin.decoding.distance import EditCounts

_MAX_DRAWS: Final = 1 << 22
"""How many utterances are drawn at once: what bounds the memory."""


def bootstrap_interval(
    counts: Sequence[EditCounts], *, level: float = 0.95, num_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the lower and upper limit of the error rate.

    :param counts: Of each utterance.
    :param level: The share of draws that lie within.
    :param num_draws: How often utterances are drawn.
    :raises ValueError: There is no utterance with a reference, or a parameter is out of its range.
    """
    if not any(c.reference_length for c in counts):
        raise ValueError("`counts` must hold an utterance with a reference.")

    if not 0.0 < level < 1.0 or num_draws < 1:
        raise ValueError(
            f"`level` must be between 0 and 1 and `num_draws` at least 1, but are {level} and {num_draws} instead."
        )

    edits = np.array([c.edits for c in counts], np.int64)
    lengths = np.array([c.reference_length for c in counts], np.int64)

    rng = np.random.default_rng(seed)

    rates: list[float] = []

    while len(rates) < num_draws:
        rows = min(num_draws - len(rates), max(1, _MAX_DRAWS // len(counts)))

        draws = rng.integers(0, len(counts), (rows, len(counts)))

        totals = lengths[draws].sum(axis=1)

        # A draw of utterances without references has no rate; it is drawn again.
        rates += (edits[draws].sum(axis=1)[totals > 0] / totals[totals > 0]).tolist()

    low, high = np.quantile(rates[:num_draws], [(1.0 - level) / 2, (1.0 + level) / 2])

    return float(low), float(high)
