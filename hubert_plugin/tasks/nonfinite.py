"""Updates whose loss or gradient is not finite: skipped on all ranks together, counted, and not for ever.

fairseq2 reaches gradient clipping through a facade that can be set for a module; the guard stands there: after the
gradients of all ranks are in place, before the optimizer. A skipped update counts as a step, but changes no parameter
and no state of the optimizer.

In float16 gradients overflow now and then, as the loss scaler looks for the largest scale; that stays its business,
down to the smallest scale. What is looked at here is the loss before it is scaled, and the scale stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from fairseq2.gang import Gang, Gangs, all_sum
from fairseq2.logging import log
from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.optim.fp16_loss_scaler import Float16LossScaler, StandardFloat16LossScaler
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
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
    """What happens when a loss or a gradient is not finite. In float16, gradients are left to the loss scaler."""

    max_in_a_row: int | None = 10
    """Training stops after this many skipped updates in a row. ``None``: losses and gradients are not looked at, which
    saves waiting for the device once an update."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.max_in_a_row is not None and self.max_in_a_row < 1:
            result.add_error(f"`max_in_a_row` must be greater than or equal to 1, but is {self.max_in_a_row} instead.")

        return result


def guard_updates(
    section: NonFiniteSection,
    module: Module,
    base_model: HubertModel | HubertCtcModel,
    gangs: Gangs,
    step: TrainStep,
) -> NonFiniteGuard | None:
    """Let updates of ``module`` that are not finite be skipped. Call before the trainer is created.

    :param module: What is trained: ``base_model``, or its data-parallel wrapper.
    :returns: The guard; ``None`` if nothing is looked at.
    """
    if section.max_in_a_row is None:
        return None

    inner = get_data_parallel_facade(module)

    guard = NonFiniteGuard(inner, module, base_model, gangs, step, section.max_in_a_row)

    set_data_parallel_facade(module, guard)

    step.count_skipped = guard.pop_num_skipped

    return guard


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
        self._causes: list[str] = []
        self._first_step_nr = 0
        self._last_norm: Tensor | None = None
        self._grad_scaler: GradScaler | None = None

    def leave_gradients_to(self, scaler: Float16LossScaler) -> None:
        """Look at losses alone if ``scaler`` skips gradients that overflow."""
        # PyTorch's is idle on CPUs: nobody else would look there.
        if isinstance(scaler, StandardFloat16LossScaler) and scaler._grad_scaler.is_enabled():
            self._grad_scaler = scaler._grad_scaler

    def pop_num_skipped(self) -> int:
        """Return how many updates were skipped since the last call."""
        count, self._num_skipped = self._num_skipped, 0

        return count

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        norm = self._inner.clip_grad_norm(max_norm)

        # In float32: a sum over frames may be more than float16 can hold, if that is the norm's.
        scalars = torch.stack([norm.float(), *(p.loss.to(norm.device, torch.float32) for p in self._step.processed)])

        norm_is_finite, *losses_are_finite = scalars.isfinite().tolist()

        num_bad_losses = losses_are_finite.count(False)

        # The norm is that of all ranks, but a loss is this rank's alone.
        if self._gang.size > 1:
            num_bad_losses = int(all_sum(self._gang, num_bad_losses))

        is_loss_to_blame = num_bad_losses > 0

        if is_loss_to_blame or (not norm_is_finite and self._grad_scaler is None):
            self._skip(is_loss_to_blame)

            # It goes into the mean that is published, which should tell of updates that were made. Not 0, which
            # torcheval takes for a metric that was forgotten, and says so.
            return torch.full_like(norm, torch.finfo(norm.dtype).tiny) if self._last_norm is None else self._last_norm

        self._causes.clear()

        if norm_is_finite:
            self._last_norm = norm

        return norm

    def _skip(self, is_loss_to_blame: bool) -> None:
        self._num_skipped += 1

        # Without gradients, optimizers pass parameters over.
        for param in self._params:
            param.grad = None

        self._keep_loss_scale()

        self._step.forget_nonfinite_metrics()

        # Each rank has seen its own batches only, but the log of the first is what is shown.
        cause = "; ".join(filter(None, _gather_texts(self._gang, self._describe(is_loss_to_blame))))

        step_nr = self._step.step_nr

        if not self._causes:
            self._first_step_nr = step_nr

        self._causes.append(f"update {step_nr}: {cause}")

        log.warning(
            "Update {} is skipped ({} of at most {} in a row): {}",
            step_nr, len(self._causes), self._max_in_a_row, cause,
        )  # fmt: skip

        if len(self._causes) >= self._max_in_a_row:
            raise TrainingError(self._describe_stop())

    def _describe_stop(self) -> str:
        last_made = self._first_step_nr - 1

        text = (
            f"Training has stopped at step {self._step.step_nr}: losses or gradients of the last {len(self._causes)} "
            "updates were not finite. Go on with a lower `optimizer.config.lr` or another `common.seed`, and look at "
            "this audio and its labels"
        )

        # Skipped updates change nothing: what was saved among them is what was there before the first.
        if last_made > 0:
            text += (
                f" (checkpoints of step {last_made} and later have the parameters with which this began; if their loss "
                "in validation is bad, delete them: the run then goes on from an earlier one, or starts anew)"
            )

        return format_problems(f"{text}:", self._causes)

    def _keep_loss_scale(self) -> None:
        """Let the loss scaler not take a loss that is not finite for gradients that overflowed at its scale."""
        if self._grad_scaler is None:
            return

        for state in self._grad_scaler._per_optimizer_states.values():
            for found_inf in state["found_inf_per_device"].values():
                found_inf.zero_()

    def _describe(self, is_loss_to_blame: bool) -> str:
        """Say what of this rank's part of the update was not finite; nothing where the loss of others was."""
        where = f"on rank {self._gang.rank}, " if self._gang.size > 1 else ""

        if not all(bool(p.isfinite().all()) for p in self._params):
            return f"{where}parameters of the model are not finite"

        if not is_loss_to_blame:
            ids = [i for p in self._step.processed for i in getattr(p.batch, "ids", [])]

            return f"{where}the losses are finite, but the gradient is not; utterances: {_join(ids)}"

        bad = [p for p in self._step.processed if not bool(p.loss.isfinite())]

        if not bad:
            return ""

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

    # To lists: Gloo takes no tensor with a new first dimension.
    sizes = [torch.zeros(1, dtype=torch.int64, device=gang.device) for _ in range(gang.size)]

    gang.all_gather_to_list(sizes, torch.tensor([data.numel()], dtype=torch.int64, device=gang.device))

    width = max(int(size) for size in sizes)

    padded = torch.zeros(width, dtype=torch.uint8, device=gang.device)

    padded[: data.numel()] = data

    rows = [torch.zeros_like(padded) for _ in range(gang.size)]

    gang.all_gather_to_list(rows, padded)

    return [bytes(row[: int(size)].tolist()).decode(errors="replace") for row, size in zip(rows, sizes, strict=True)]
