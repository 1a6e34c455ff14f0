"""What the configurations of our tasks have in common: how audio is put into batches."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from hubert_plugin.data.plan import BatchConfig


@runtime_checkable
class BatchingTaskConfig(Protocol):
    """The configuration of a task whose batches can be worked out and made smaller."""

    batching: BatchConfig
    """Batches of the training split."""

    global_batch_seconds: float | None
    """The seconds of audio of an update over all ranks and accumulated batches; ``None``: as it comes."""

    valid_batch_seconds: float | None
    """The seconds of audio of a validation batch; ``None``: as in training."""
