"""Edit distance: how many substitutions, insertions and deletions turn a reference into a hypothesis.

Of all alignments with the fewest edits, that with the fewest substitutions counts, which is the one with the most items
right. So the counts, and not only their sum, do not depend on how an implementation happens to walk.

Letters: R items in the reference, H in the hypothesis.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MATCH: Final = 0
_DELETION: Final = 1
_INSERTION: Final = 2


@dataclass(frozen=True)
class EditCounts:
    """What an alignment of a hypothesis with its reference counts; sums of these are counts of a corpus."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0

    reference_length: int = 0
    """The number of items of the reference, R."""

    @property
    def edits(self) -> int:
        """The edit distance S + I + D."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """The error rate (S + I + D) / R, which can exceed 1: of words the word error rate, of characters the CER.

        Without reference it is 0 if there is no hypothesis either, and infinite otherwise.
        """
        if self.reference_length > 0:
            return self.edits / self.reference_length

        return float("inf") if self.edits > 0 else 0.0

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.reference_length + other.reference_length,
        )


def edit_counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> EditCounts:
    """Count the edits from ``reference`` to ``hypothesis``: words of a list, or characters of a string.

    Costs O(R) steps of O(H) numbers, and O(H) memory (Wagner and Fischer, 1974; the running minimum replaces the inner
    loop).
    """
    num_ref, num_hyp = len(reference), len(hypothesis)

    if num_ref == 0 or num_hyp == 0 or reference == hypothesis:
        return EditCounts(0, max(0, num_hyp - num_ref), max(0, num_ref - num_hyp), num_ref)

    ref, hyp = _encode(reference, hypothesis)

    unit = _unit(ref, hyp)

    steps = unit * np.arange(num_hyp + 1, dtype=np.int64)

    row = steps

    for item in ref:
        row = _next_row(row, item, hyp, unit, steps)

    edits, substitutions = divmod(int(row[-1]), unit)

    # With S known the rest follows from S + I + D and I - D = H - R.
    insertions = (edits - substitutions + num_hyp - num_ref) // 2

    return EditCounts(substitutions, insertions, edits - substitutions - insertions, num_ref)


def align(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[tuple[int | None, int | None]]:
    """Return the positions that an alignment of :func:`edit_counts` pairs, in order.

    A pair without the second position is a deletion, one without the first an insertion. Costs R·H bytes.
    """
    num_ref, num_hyp = len(reference), len(hypothesis)

    ref, hyp = _encode(reference, hypothesis)

    unit = _unit(ref, hyp)

    steps = unit * np.arange(num_hyp + 1, dtype=np.int64)

    moves = np.empty((num_ref, num_hyp + 1), dtype=np.uint8)

    row = steps

    for idx, item in enumerate(ref):
        above, row = row, _next_row(row, item, hyp, unit, steps)

        moves[idx] = _INSERTION
        moves[idx][row == above + unit] = _DELETION
        moves[idx][1:][row[1:] == above[:-1] + _pair_cost(item, hyp, unit)] = _MATCH

    pairs: list[tuple[int | None, int | None]] = []

    i, j = num_ref, num_hyp

    while i > 0 or j > 0:
        move = _INSERTION if i == 0 else moves[i - 1, j]

        if move == _MATCH:
            i, j = i - 1, j - 1

            pairs.append((i, j))
        elif move == _DELETION:
            i -= 1

            pairs.append((i, None))
        else:
            j -= 1

            pairs.append((None, j))

    return pairs[::-1]


def _encode(
    reference: Sequence[Hashable], hypothesis: Sequence[Hashable]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the distinct items."""
    numbers: dict[Hashable, int] = {}

    def encode(items: Sequence[Hashable]) -> NDArray[np.int64]:
        return np.fromiter((numbers.setdefault(i, len(numbers)) for i in items), np.int64, len(items))

    return encode(reference), encode(hypothesis)


def _unit(ref: NDArray[np.int64], hyp: NDArray[np.int64]) -> int:
    """Return what an edit costs; a substitution costs 1 more. There are fewer substitutions than that."""
    return len(ref) + len(hyp) + 1


def _pair_cost(item: np.int64, hyp: NDArray[np.int64], unit: int) -> NDArray[np.int64]:
    return np.where(hyp == item, 0, unit + 1)


def _next_row(
    above: NDArray[np.int64], item: np.int64, hyp: NDArray[np.int64], unit: int, steps: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the costs of turning the reference up to ``item`` into each prefix of ``hyp``. *Shape:* (H + 1)."""
    row = above + unit

    np.minimum(row[1:], above[:-1] + _pair_cost(item, hyp, unit), out=row[1:])

    # Insertions cost the same everywhere: min over k <= j of row[k] + (j - k) unit.
    row -= steps

    np.minimum.accumulate(row, out=row)

    row += steps

    return row
