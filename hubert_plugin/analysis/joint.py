"""The joint table of phones and units: what each unit stands for (HuBERT paper, section V-B, p(y, z))."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.files import write_text_atomic


@dataclass(frozen=True)
class JointTable:
    """How often each phone and unit meet, n(y, z)."""

    phones: list[str]

    counts: NDArray[np.int64]
    """*Shape:* (phones, K)."""

    @staticmethod
    def of(counts: NDArray[np.int64], phones: Sequence[Hashable], num_units: int) -> JointTable:
        """Return the table of ``counts`` (as ``purity.joint_counts`` gives them), frequent phones first, with a column
        for each of ``num_units`` units, also for those that never occur."""
        table = np.zeros((len(phones), max(num_units, counts.shape[1])), np.int64)

        table[: counts.shape[0], : counts.shape[1]] = counts

        order = np.argsort(-table.sum(axis=1), kind="stable")

        return JointTable([str(phones[i]) for i in order], table[order])

    @property
    def phone_given_unit(self) -> NDArray[np.float64]:
        """p(y | z); the columns of units that never occur are zero. *Shape:* (phones, K)."""
        return self.counts / np.maximum(self.counts.sum(axis=0), 1)

    def unit_order(self) -> NDArray[np.int64]:
        """Return the units sorted by their most likely phone, and among one phone's the surest first. Units that never
        occur come last. *Shape:* (K,)."""
        shares = self.phone_given_unit

        is_dead = self.counts.sum(axis=0) == 0

        return np.lexsort((-shares.max(axis=0), np.where(is_dead, len(self.phones), shares.argmax(axis=0))))

    def save(self, path: Path) -> None:
        """Write the table as tab-separated text: a row for each phone, a column for each unit.

        :raises StorageError: The file cannot be written.
        """
        rows = [["phone", *map(str, range(self.counts.shape[1]))]]

        rows += [[phone, *map(str, row)] for phone, row in zip(self.phones, self.counts.tolist(), strict=True)]

        write_text_atomic(path, "".join("\t".join(row) + "\n" for row in rows))
