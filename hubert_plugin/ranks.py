"""What the processes (ranks) of a job tell each other of their ends: where one fails, none waits for it in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from fairseq2.gang import Gang, ReduceOperation

from hubert_plugin.errors import HubertError

T = TypeVar("T")


def raise_together(gang: Gang, error: Exception | None) -> None:
    """Wait for all ranks; raise ``error``, or, where only others failed, an error that says so.

    Every rank has to call it, also those that failed: a rank that ended alone would leave the others waiting.

    :raises Exception: ``error``.
    :raises HubertError: Another rank failed.
    """
    failed = torch.tensor(float(error is not None), device=gang.device)

    gang.all_reduce(failed, ReduceOperation.SUM)

    if error is not None:
        raise error

    if failed.item() > 0:
        raise HubertError(
            "Another process of this job failed; its log (OUT/logs) says why. What is finished stays: when that is "
            "mended, run the same command again."
        )


def run_together(gang: Gang, work: Callable[[], T]) -> T:
    """Run a step on this rank; return its result when all ranks are done, or raise if one of them failed."""
    error: Exception | None = None

    result: T | None = None

    try:
        result = work()
    except Exception as ex:
        error = ex

    raise_together(gang, error)

    return cast(T, result)


def run_on_first(gang: Gang, work: Callable[[], T]) -> T | None:
    """Run a step on rank 0 while the others wait; return its result there and ``None`` elsewhere, or raise on all ranks
    if it failed. No rank may wait for others in ``work``.
    """
    return run_together(gang, lambda: work() if gang.rank == 0 else None)
