"""The axes and numbers of the page: round ticks, and durations and sizes that read well."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.analysis.page.axes import nice_ticks, show_duration, show_size, tick_labels


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8), st.booleans())
def test_ticks_are_round_and_enclose_the_values(low: float, width: float, num: int, whole: bool) -> None:
    high = low + width

    ticks = nice_ticks(low, high, num, whole=whole)

    assert 2 <= len(ticks) <= 2 * num + 2

    steps = np.diff(ticks)

    slack = 1e-6 * (abs(low) + abs(high) + 1)

    assert np.allclose(steps, steps[0], atol=slack) and steps[0] > 0

    assert ticks[0] <= low + slack and ticks[-1] >= high - slack

    if whole:
        assert all(t == int(t) for t in ticks)

    assert len(set(tick_labels(ticks))) == len(ticks) or steps[0] < 1e-5 or abs(low) > 1e5 * steps[0]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.95, "9.9 s"),
        (41.2, "41 s"),
        (59.7, "1 min 00 s"),
        (192, "3 min 12 s"),
        (7500, "2 h 05 min"),
        (800_000, "9 d 6 h"),
        (None, "not measured"),
        (math.nan, "not measured"),
    ],
)
def test_durations_read_well(seconds: float | None, expected: str) -> None:
    assert show_duration(seconds) == expected


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (45_249_000, "45.2 MB"),
        (999_600, "1.0 MB"),
        (None, "not measured"),
    ],
)
def test_sizes_read_well(num_bytes: int | None, expected: str) -> None:
    assert show_size(num_bytes) == expected
