"""Runs fairseq2's trainer, turns what a user can mend into sentences, and ends with the report."""

from __future__ import annotations

from typing import Protocol, final

from fairseq2.error import OperationalError
from fairseq2.gang import Gangs
from fairseq2.task import Task
from fairseq2.trainer import Trainer
from typing_extensions import override

from hubert_plugin.errors import HubertError, StorageError


class Report(Protocol):
    """Tells what a finished run has learned; called on rank 0."""

    def __call__(self) -> None: ...


@final
class TrainingTask(Task):
    """A training run from start, or from its last checkpoint, to its report."""

    def __init__(self, trainer: Trainer, gangs: Gangs, report: Report | None) -> None:
        self._trainer = trainer
        self._report = report

        # Asked now: the trainer closes the gangs when it is done.
        self._is_first = gangs.root.rank == 0

    @override
    def run(self) -> None:
        try:
            self._trainer.run()
        except (OSError, OperationalError, RuntimeError) as ex:
            error = find_storage_error(ex)
            if error is None:
                raise

            raise error from ex

        if self._report is not None and self._is_first:
            self._report()

    @override
    def request_stop(self) -> None:
        self._trainer.request_stop()

    @override
    def close(self) -> None:
        self._trainer.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._trainer.step_nr


def find_storage_error(ex: BaseException) -> HubertError | None:
    """Return the sentence for an error that comes from a file system that refused to write; ``None`` for others."""
    cause: BaseException | None = ex

    while cause is not None:
        if isinstance(cause, HubertError):
            return cause

        # PyTorch's writer knows no OSError; this is all it says when the disk is full.
        is_torch_writer = isinstance(cause, RuntimeError) and "PytorchStreamWriter failed" in str(cause)

        if isinstance(cause, OSError) or is_torch_writer:
            reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]

            where = f" '{cause.filename}'" if isinstance(cause, OSError) and cause.filename else ""

            return StorageError(
                f"A file{where} of the run could not be written: {reason}. The last complete checkpoint is "
                f"untouched; free "
                "space, then run the same command again to go on from it."
            )

        cause = cause.__cause__ or cause.__context__

    return None
