"""Updates whose loss or gradient is not finite: skipped on all ranks together, counted, and not for ever.

fairseq2 reaches gradient clipping through a facade that can be set for a module; the guard stands there: after the
gradients of all ranks are in place, before the optimizer. A skipped update counts as a step, but changes no parameter
and no state of the optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from fairseq2.gang import Gang, Gangs, all_sum
from fairseq2.logging import log
from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.recipe.config import ModelSection, TrainerSection
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from hubert_plugin.criteria.steps import TrainStep
from hubert_plugin.data.batch import SpeechBatch
from hubert_plugin.errors import MAX_SHOWN_PROBLEMS, TrainingError, format_problems
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.tasks.facade import DelegatingFacade

_MAX_NAMED: Final = MAX_SHOWN_PROBLEMS


@dataclass(kw_only=True)
class NonFiniteSection(Validatable):
    """What happens when a loss or a gradient is not finite."""

    max_in_a_row: int | None = 10
    """Training stops after this many skipped updates in a row. ``None``: losses and gradients are not looked at, which
    saves waiting for the device once an update."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.max_in_a_row is not None and self.max_in_a_row < 1:
            result.add_error(f"`max_in_a_row` must be greater than or equal to 1, but is {self.max_in_a_row} instead.")

        return result


def trains_in_float16(trainer: TrainerSection, model: ModelSection) -> bool:
    """Return whether losses are scaled, by fairseq2's rule."""
    precision = trainer.mixed_precision

    return (model.dtype if precision.mode == "off" else precision.dtype) == torch.float16


def guard_updates(
    section: NonFiniteSection,
    module: Module,
    base_model: HubertModel | HubertCtcModel,
    gangs: Gangs,
    step: TrainStep,
) -> None:
    """Let updates of ``module`` that are not finite be skipped. Call before the trainer is created.

    :param module: What is trained: ``base_model``, or its data-parallel wrapper.
    """
    if section.max_in_a_row is None:
        return

    inner = get_data_parallel_facade(module)

    guard = NonFiniteGuard(inner, module, base_model, gangs, step, section.max_in_a_row)

    set_data_parallel_facade(module, guard)

    step.count_skipped = guard.pop_num_skipped


@final
class NonFiniteGuard(DelegatingFacade):
    """Looks at losses and gradient norm of an update, and drops the gradients if they are not finite."""

    def __init__(
        self,
        inner: DataParallelFacade,
        module: Module,
        base_model: HubertModel | HubertCtcModel,
        gangs: Gangs,
        step: TrainStep,
        max_in_a_row: int,
    ) -> None:
        super().__init__(inner)

        self._params = list(module.parameters())
        self._encoder = base_model if isinstance(base_model, HubertModel) else base_model.hubert
        self._can_encode = module is base_model or isinstance(module, DistributedDataParallel)
        self._gang = gangs.dp
        self._step = step
        self._max_in_a_row = max_in_a_row

        self._num_skipped = 0
        self._in_a_row = 0
        self._last_norm: Tensor | None = None

    def pop_num_skipped(self) -> int:
        """Return how many updates were skipped since the last call."""
        count, self._num_skipped = self._num_skipped, 0

        return count

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        norm = self._inner.clip_grad_norm(max_norm)

        if self._is_finite(norm):
            self._in_a_row = 0

            self._last_norm = norm

            return norm

        self._skip(norm)

        # It goes into the mean that is published, which should tell of updates that were made.
        return torch.zeros_like(norm) if self._last_norm is None else self._last_norm

    def _is_finite(self, norm: Tensor) -> bool:
        finite = torch.stack([norm, *(p.loss.to(norm) for p in self._step.processed)]).isfinite().all()

        if self._gang.size == 1:
            return bool(finite)

        # The norm is that of all ranks, but a loss is this rank's alone.
        return int(all_sum(self._gang, 1 - int(finite))) == 0

    def _skip(self, norm: Tensor) -> None:
        self._num_skipped += 1
        self._in_a_row += 1

        # Without gradients, optimizers pass parameters over.
        for param in self._params:
            param.grad = None

        self._step.forget_nonfinite_metrics()

        cause = self._describe(self._gang.rank)

        log.warning(
            "Update {} is skipped ({} of at most {} in a row): {}",
            self._step.step_nr, self._in_a_row, self._max_in_a_row, cause,
        )  # fmt: skip

        if self._in_a_row >= self._max_in_a_row:
            causes = [c for c in _gather_texts(self._gang, cause) if c]

            raise TrainingError(
                format_problems(
                    f"Training has stopped at step {self._step.step_nr}: losses or gradients of the last "
                    f"{self._in_a_row} updates were not finite. Go on from the last checkpoint with a lower "
                    "`optimizer.config.lr` or another `common.seed`, and look at this audio and its labels:",
                    causes,
                )
            )

    def _describe(self, rank: int) -> str:
        """Say what of this rank's part of the update was not finite."""
        where = f"on rank {rank}, " if self._gang.size > 1 else ""

        if not all(bool(p.isfinite().all()) for p in self._params):
            return f"{where}parameters of the model are not finite"

        bad = [p for p in self._step.processed if not bool(p.loss.isfinite())]

        if not bad:
            ids = [i for p in self._step.processed for i in getattr(p.batch, "ids", [])]

            return f"{where}the losses are finite, but the gradient is not; utterances: {_join(ids)}"

        ids = [i for p in bad for i in (self._find_poisoned(p.batch) or getattr(p.batch, "ids", []))]

        return f"{where}the loss is not finite; utterances: {_join(ids)}"

    @torch.no_grad()
    def _find_poisoned(self, batch: object) -> list[str]:
        """Return the utterances of a batch whose features are not finite; none where that cannot be told."""
        # A sharded model cannot be asked by one rank alone.
        if not isinstance(batch, SpeechBatch) or not self._can_encode:
            return []

        was_training = self._encoder.training

        self._encoder.eval()

        try:
            return [
                name
                for name, row, length in zip(batch.ids, batch.waveforms, batch.num_samples, strict=True)
                if not self._encoder.encode(row[None, :length]).output.isfinite().all()
            ]
        finally:
            self._encoder.train(was_training)


def _join(ids: list[str]) -> str:
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""

    return ", ".join(ids[:_MAX_NAMED]) + more


def _gather_texts(gang: Gang, text: str) -> list[str]:
    """Return the texts of all ranks, in rank order."""
    if gang.size == 1:
        return [text]

    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=gang.device)

    sizes = torch.zeros((gang.size, 1), dtype=torch.int64, device=gang.device)

    gang.all_gather(sizes, torch.tensor([data.numel()], dtype=torch.int64, device=gang.device))

    width = int(sizes.max())

    padded = torch.zeros(width, dtype=torch.uint8, device=gang.device)

    padded[: data.numel()] = data

    output = torch.zeros((gang.size, width), dtype=torch.uint8, device=gang.device)

    gang.all_gather(output, padded)

    return [
        bytes(row[:size].tolist()).decode(errors="replace")
        for row, size in zip(output, sizes.flatten().tolist(), strict=True)
    ]
