"""What the ranks of a job that has no training loop tell each other."""

from __future__ import annotations

import torch
from fairseq2.gang import Gang, ReduceOperation

from hubert_plugin.errors import HubertError, UnitModelError


def raise_together(gang: Gang, error: Exception | None) -> None:
    """Wait for all ranks; raise ``error``, or, where only others failed, an error that says so.

    Every rank has to call it, also those that failed: a rank that ended alone would leave the others waiting.

    :raises Exception: ``error``.
    :raises UnitModelError: Another rank failed.
    """
    failed = torch.tensor(float(error is not None), device=gang.device)

    gang.all_reduce(failed, ReduceOperation.SUM)

    if error is not None:
        raise error

    if failed.item() > 0:
        raise _failed_elsewhere()


def _failed_elsewhere() -> HubertError:
    return UnitModelError(
        "Another process of this job failed; its log (OUT/logs) says why. What is finished stays: run the same command "
        "again."
    )
