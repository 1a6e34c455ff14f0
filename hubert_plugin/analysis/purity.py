"""How well units match phones: phone purity, cluster purity and PNMI (HuBERT paper, section V-B, equations 5–12).

Letters: *y* a phone, *z* a unit, *n(y, z)* the number of frames with both, *N* all frames, *p = n / N*.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.errors import LabelError
from hubert_plugin.units.fit import entropy_bits

MAX_LENGTH_DIFFERENCE: Final = 2
"""By how many frames the phones and the units of an utterance may differ in length; the longer is cut."""


@dataclass(frozen=True)
class UnitQuality:
    """The agreement of units with phones, measured on frames."""

    phone_purity: float
    """Σ_z max_y p(y, z): the accuracy of naming each frame by the most likely phone of its unit."""

    cluster_purity: float
    """Σ_y max_z p(y, z): the accuracy of naming the unit of a frame from its phone."""

    pnmi: float
    """I(y; z) / H(y): the share of the uncertainty about the phone that knowing the unit removes.
    NaN if there is but one phone, whose uncertainty is nothing."""

    num_frames: int
    """The number of frames with both a phone and a unit, N."""

    num_phones: int
    """The number of phones that occur."""

    num_units: int
    """The number of units that occur."""

    unit_entropy_bits: float
    """The entropy of the distribution of units."""

    num_frames_cut: int = 0
    """The number of frames left out because the phones and the units of an utterance differ in length."""

    num_frames_without_phone: int = 0
    """The number of frames left out because their phone is ``None``."""


def joint_counts(
    pairs: Iterable[tuple[Sequence[Hashable | None], Sequence[int] | NDArray[np.integer]]],
) -> tuple[NDArray[np.int64], list[Hashable], int, int]:
    """Count the frames of each phone and unit.

    :param pairs: For each utterance, the phone of each frame (anything hashable; ``None`` leaves the frame out) and the
        unit of each frame, at the same rate.
    :returns: The counts n(y, z) (*Shape:* (phones, units)), the phones in order of appearance, and the numbers of
        frames that were left out because of lengths and for want of a phone.
    :raises LabelError: The lengths of an utterance differ by more than :data:`MAX_LENGTH_DIFFERENCE`.
    """
    index: dict[Hashable, int] = {}

    counts = np.zeros((0, 0), np.int64)

    num_cut = num_without_phone = 0

    for nr, (phones, units) in enumerate(pairs):
        if (difference := abs(len(phones) - len(units))) > MAX_LENGTH_DIFFERENCE:
            raise LabelError(
                f"The phones and the units of an utterance must have the same number of frames (up to "
                f"{MAX_LENGTH_DIFFERENCE}), but utterance {nr} has {len(phones)} phones and {len(units)} units."
            )

        length = min(len(phones), len(units))

        num_cut += difference

        y = np.array([-1 if p is None else index.setdefault(p, len(index)) for p in phones[:length]], np.int64)
        z = np.asarray(units[:length], np.int64)

        has_phone = y >= 0

        num_without_phone += int(length - has_phone.sum())

        y, z = y[has_phone], z[has_phone]

        if len(z) == 0:
            continue

        if z.min() < 0:
            raise LabelError(f"Units must not be negative, but utterance {nr} has the unit {z.min()}.")

        rows, columns = max(len(index), len(counts)), max(int(z.max()) + 1, counts.shape[1])

        if counts.shape != (rows, columns):
            counts = np.pad(counts, ((0, rows - counts.shape[0]), (0, columns - counts.shape[1])))

        counts += np.bincount(y * columns + z, minlength=rows * columns).reshape(rows, columns)

    return counts, list(index), num_cut, num_without_phone


def unit_quality(
    pairs: Iterable[tuple[Sequence[Hashable | None], Sequence[int] | NDArray[np.integer]]],
) -> UnitQuality:
    """Measure how well units match phones.

    :param pairs: For each utterance, the phone and the unit of each frame (see :func:`joint_counts`).
    :raises LabelError: There is no frame, or lengths differ.
    """
    counts, _, num_cut, num_without_phone = joint_counts(pairs)

    return quality_of_counts(counts, num_frames_cut=num_cut, num_frames_without_phone=num_without_phone)


def quality_of_counts(
    counts: NDArray[np.int64], *, num_frames_cut: int = 0, num_frames_without_phone: int = 0
) -> UnitQuality:
    """Compute the measures from the counts n(y, z). *Shape:* (phones, units).

    :raises LabelError: All counts are zero.
    """
    total = int(counts.sum())

    if total == 0:
        raise LabelError("There is no frame that has both a phone and a unit.")

    per_phone, per_unit = counts.sum(axis=1), counts.sum(axis=0)

    y, z = np.nonzero(counts)

    n = counts[y, z]

    # Only pairs that occur count (0 log 0 = 0), so no logarithm needs an epsilon.
    information = float(
        (n / total * (np.log2(n) + np.log2(total) - np.log2(per_phone[y]) - np.log2(per_unit[z]))).sum()
    )

    phone_entropy = entropy_bits(per_phone)

    return UnitQuality(
        phone_purity=int(counts.max(axis=0).sum()) / total,
        cluster_purity=int(counts.max(axis=1).sum()) / total,
        pnmi=max(information, 0.0) / phone_entropy if phone_entropy > 0.0 else float("nan"),
        num_frames=total,
        num_phones=int((per_phone > 0).sum()),
        num_units=int((per_unit > 0).sum()),
        unit_entropy_bits=entropy_bits(per_unit),
        num_frames_cut=num_frames_cut,
        num_frames_without_phone=num_frames_without_phone,
    )
