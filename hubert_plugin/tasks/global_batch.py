"""Works out batches and accumulation from the batch of the whole job, so that a paper's batch holds on any machines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairseq2.logging import log
from fairseq2.recipe.config import TrainerSection

from hubert_plugin.errors import ConfigError
from hubert_plugin.tasks.batching import BatchingTaskConfig


@dataclass(frozen=True)
class BatchSplit:
    """How the batch of an update is shared out."""

    batch_seconds: float
    """The seconds of audio of one batch on one rank."""

    num_accumulate: int
    """The number of batches of an update on one rank."""


def split_global_batch(
    global_batch_seconds: float, world_size: int, *, batch_seconds: float, max_seconds: float
) -> BatchSplit:
    """Share an update's audio out among ranks, in as few and as equal batches as possible.

    ``global = ranks × batches × seconds`` holds exactly, with ``seconds`` no more than a rank can hold.

    :param batch_seconds: The most that a rank can hold.
    :param max_seconds: The longest utterance, which must fit into a batch.
    :raises ConfigError: A batch could not hold the longest utterance.
    """
    per_rank = global_batch_seconds / world_size

    # A hair more than so many batches is not worth one more.
    num_accumulate = max(1, math.ceil(per_rank / batch_seconds - 1e-9))

    share = per_rank / num_accumulate

    if share < max_seconds:
        if num_accumulate > 1:
            remedy = f"Raise `task.config.batching.batch_seconds` to {per_rank / (num_accumulate - 1):.4g} or lower"
        elif most := int(global_batch_seconds / max_seconds):
            remedy = f"Run on at most {most} {'rank' if most == 1 else 'ranks'}, or lower"
        else:
            remedy = "Lower"

        raise ConfigError(
            f"`task.config.global_batch_seconds` ({global_batch_seconds:g} s) is, on {world_size} "
            f"{'rank' if world_size == 1 else 'ranks'}, {num_accumulate} x {share:.4g} s each: too little for an "
            f"utterance of `task.config.batching.max_seconds` ({max_seconds:g} s). {remedy} `max_seconds`, or raise "
            "`global_batch_seconds`, which changes the batch of an update."
        )

    return BatchSplit(share, num_accumulate)


def apply_global_batch(task_config: object, section: TrainerSection, world_size: int) -> None:
    """Set batch and accumulation of ``task_config`` and ``section`` as its ``global_batch_seconds`` asks for.

    :raises ConfigError: It cannot be met, or accumulation was set, too.
    """
    if not isinstance(task_config, BatchingTaskConfig) or task_config.global_batch_seconds is None:
        return

    batching, accumulation = task_config.batching, section.grad_accumulation

    if accumulation.num_batches != 1:
        raise ConfigError(
            f"`trainer.grad_accumulation.num_batches` is {accumulation.num_batches}, but with "
            "`task.config.global_batch_seconds` it is worked out from the number of ranks. Leave one of them out."
        )

    split = split_global_batch(
        task_config.global_batch_seconds,
        world_size,
        batch_seconds=batching.batch_seconds,
        max_seconds=batching.max_seconds,
    )

    log.info(
        "Batch of an update: {:g} s of audio = {} rank(s) x {} batch(es) x {:.5g} s.",
        task_config.global_batch_seconds, world_size, split.num_accumulate, split.batch_seconds,
    )  # fmt: skip

    # What validation batches were to be, if that was training's.
    if task_config.valid_batch_seconds is None:
        task_config.valid_batch_seconds = batching.batch_seconds

    batching.batch_seconds, accumulation.num_batches = split.batch_seconds, split.num_accumulate
