"""Scales of charts, and numbers as people read them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Scale:
    """A linear map from values to coordinates."""

    low: float

    high: float

    start: float
    """The coordinate of ``low``."""

    end: float
    """The coordinate of ``high``."""

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)

        return round(self.start + share * (self.end - self.start), 2)


def nice_ticks(low: float, high: float, num: int = 5, *, whole: bool = False) -> list[float]:
    """Return about ``num`` round values whose first and last enclose ``low`` and ``high``.

    :param whole: If ``True``, whole numbers only.
    """
    # Equal values, or so nearly equal that only rounding tells them apart, stand in the middle.
    if not high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        width = abs(low) * 0.1 or 1.0

        low, high = low - width, high + width

    raw = (high - low) / max(num - 1, 1)

    power = 10.0 ** math.floor(math.log10(raw))

    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)

    if whole:
        step = max(1.0, math.ceil(step))

    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)

    last = max(last, first + 1)

    return [_round(i * step) for i in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return ticks with as many decimals as their distance needs: ``0.20``, ``0.25``; ``10k``, ``20k``."""
    step = min((abs(b - a) for a, b in itertools.pairwise(ticks)), default=1.0)

    if step >= 1000 and all(t % 100 == 0 for t in ticks):
        return [f"{t / 1000:g}k" if t else "0" for t in ticks]

    decimals = 0

    while decimals < 6 and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
        decimals += 1

    return [f"{t:,.{decimals}f}" for t in ticks]


def show(value: float | None, decimals: int = 3) -> str:
    """Return a number, or that there is none."""
    return NOT_MEASURED if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def show_percent(share: float | None, decimals: int = 1) -> str:
    """Return a share between 0 and 1 in per cent, or that there is none."""
    return NOT_MEASURED if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f} %"


def show_duration(seconds: float | None) -> str:
    """Return a time as ``41 s``, ``3 min 12 s``, ``2 h 05 min`` or ``9 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_MEASURED

    if seconds < 10:
        return f"{seconds:.1f} s"

    total = round(seconds)

    if total < 60:
        return f"{total} s"

    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"

    if total < 48 * 3600:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"

    return f"{total // 86400} d {total % 86400 // 3600} h"


def show_size(num_bytes: int | None) -> str:
    """Return a size in decimal units, as disks are sold."""
    if num_bytes is None:
        return NOT_MEASURED

    value, unit = float(num_bytes), "B"

    for larger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break

        value, unit = value / 1000, larger

    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _round(value: float) -> float:
    # 3 * 0.1 is not 0.3; twelve digits are.
    return float(f"{value:.12g}")
