"""Counts the epochs of a run that goes on from a checkpoint.

fairseq2's trainer counts on its own, and its checkpoint has the number of the epoch whatever is left of it. At the end
of an epoch the reader is sent to the next one first, and the trainer counts later, so that a run which goes on from
there would count an epoch twice (an epoch too many with ``regime.num_data_epochs``); and one that goes on within its
last epoch would take that for done. The reader knows both.
"""

from __future__ import annotations

from typing import Any, final

from fairseq2.datasets import DataReader
from fairseq2.trainer import Trainer
from typing_extensions import Self, override

from hubert_plugin.data.reader import HubertDataReader


@final
class EpochCountingReader(DataReader[Any]):
    """Reads what ``inner`` reads, and tells the trainer of a run that goes on how many epochs were read."""

    def __init__(self, inner: HubertDataReader[Any]) -> None:
        self._inner = inner
        self._trainer: Trainer | None = None
        self._is_restored = False

    def observe(self, trainer: Trainer) -> None:
        """Tell ``trainer``."""
        self._trainer = trainer

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[Any]:
        if self._is_restored and self._trainer is not None:
            # The number of the epoch that is read from now on.
            self._trainer._data_epoch_nr = self._inner.epoch

        self._is_restored = False

        return next(self._inner)

    @override
    def reset(self) -> None:
        self._inner.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return self._inner.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._inner.load_state_dict(state_dict)

        if self._trainer is not None:
            # What the trainer compares with `regime.num_data_epochs` next, to see whether there is anything left to do.
            self._trainer._data_epoch_nr = self._inner.num_epochs_read

            self._is_restored = True

    @property
    @override
    def num_accumulate(self) -> int:
        return self._inner.num_accumulate
