"""What the configurations of our tasks have in common: how audio is put into batches, and read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.data.plan import BatchConfig


@dataclass(kw_only=True)
class BatchingTaskConfig(Validatable):
    """The configuration of a task whose batches can be worked out and made smaller."""

    batching: BatchConfig = field(default_factory=BatchConfig)
    """Batches of the training split."""

    global_batch_seconds: float | None = None
    """The seconds of audio of an update over all ranks and accumulated batches. Ranks share it out in equal batches of
    at most ``batching.batch_seconds``; ``trainer.grad_accumulation.num_batches`` follows from it. ``None``: ranks times
    ``trainer.grad_accumulation.num_batches`` times ``batching.batch_seconds``."""

    valid_batch_seconds: float | None = None
    """The seconds of audio of a validation batch. ``None``: as in training."""

    max_valid_batches: int | None = None
    """If set, validation stops after this many batches (over all ranks)."""

    num_workers: int = 2
    """The number of batches that are read in parallel."""

    num_prefetch: int = 4
    """The number of batches that are kept ready."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.num_workers < 1:
            result.add_error(f"`num_workers` must be greater than or equal to 1, but is {self.num_workers} instead.")

        for name in ("global_batch_seconds", "valid_batch_seconds"):
            seconds = getattr(self, name)

            if seconds is not None and not 0.0 < seconds < math.inf:
                result.add_error(f"`{name}` must be greater than 0 and finite, but is {seconds} instead.")

        if self.max_valid_batches is not None and self.max_valid_batches < 1:
            result.add_error(
                f"`max_valid_batches` must be greater than or equal to 1, or null for all, but is "
                f"{self.max_valid_batches} instead."
            )

        if self.num_prefetch < 0:
            result.add_error(f"`num_prefetch` must not be negative, but is {self.num_prefetch} instead.")

        return result
