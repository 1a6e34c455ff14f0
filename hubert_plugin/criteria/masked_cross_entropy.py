"""The criterion of HuBERT: cross-entropy over units, weighted α on masked and 1 − α on unmasked frames.

Paper eq. 1–3; fairseq ``hubert_criterion.py:68-107``. With heads k of weight w_k, masked frames m and unmasked frames
u::

    loss = α Σ_k w_k Σ_m CE + (1 − α) Σ_k w_k Σ_u CE + 10 · mean(conv_out²) · F

    F = (α > 0) · #masked + (α < 1) · #unmasked          # fairseq's `sample_size`, of the first label set (trap T13)

One head, cluster ensembles, product codebooks and multicluster prediction over layers differ only in their heads. Where
the model runs two views (MS-HuBERT), every frame counts twice, in the sums and in F; of heads that take no part in an
update the terms are missing, and F stays.

Sums, not means: the trainer divides the gradients by Σ F over ranks and accumulated batches (trap T12). Every
cross-entropy is float32. α = 1 is the paper's choice; fairseq's weights (1, 0), (0, 1) and (.5, .5) are α = 1, 0 and
.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np
import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy
from typing_extensions import override

from hubert_plugin.criteria.head_metrics import HEAD_METRICS, UnitUsage, metric_suffixes
from hubert_plugin.criteria.quiet_mean import QuietMean
from hubert_plugin.registry import Criterion, register_criterion

if TYPE_CHECKING:
    from hubert_plugin.data.batch import HubertBatch
    from hubert_plugin.models.hubert.model import HubertModel, HubertOutput

MASKED_CROSS_ENTROPY: Final = "masked_cross_entropy"

_HEAD_STREAM: Final = 0x48454144


@dataclass(kw_only=True)
class MaskedCrossEntropyConfig(Validatable):
    """Holds the configuration of :class:`MaskedCrossEntropy`."""

    alpha: float = 1.0
    """The weight of masked frames; unmasked ones weigh 1 − α (paper eq. 3, Table V: 1 is best in long runs)."""

    feature_penalty_weight: float = 10.0
    """The weight of the mean squared convolution output (fairseq ``loss_weights=[10]``)."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 0.0 <= self.alpha <= 1.0:
            result.add_error(f"`alpha` must be between 0 and 1, but is {self.alpha} instead.")

        if self.feature_penalty_weight < 0.0:
            result.add_error(f"`feature_penalty_weight` must not be negative, but is {self.feature_penalty_weight}.")

        return result


@dataclass
class MaskedLoss:
    """The loss of a batch and its parts; all sums over frames, in nats."""

    total: Tensor
    """*Shape:* ()."""

    masked: list[Tensor]
    """For each head that took part, Σ CE over masked frames, unweighted."""

    unmasked: list[Tensor]
    """For each head that took part, Σ CE over unmasked frames, unweighted; empty where there are none."""

    feature_penalty: Tensor
    """The weighted penalty, multiplied by ``num_targets``."""

    num_targets: int
    """fairseq's ``sample_size``."""


@final
class MaskedCrossEntropy(Criterion):
    """Computes the loss of :class:`HubertModel` on batches of :class:`HubertBatch`."""

    def __init__(self, module: Module, base_model: HubertModel, config: MaskedCrossEntropyConfig) -> None:
        """
        :param module: What is called: the model, or its data-parallel wrapper.
        :param base_model: The model itself.
        """
        self._module = module
        self._base_model = base_model
        self._step_nr = 0
        self._alpha = config.alpha
        self._penalty_weight = config.feature_penalty_weight
        self._weights = [float(h.weight) for h in base_model.target_heads]

        self._sizes = [int(h.size) for h in base_model.target_heads]

        self._suffixes = metric_suffixes([h.label_set for h in base_model.target_heads])

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add("loss", QuietMean())
        metric_bag.add("feature_penalty", QuietMean())

        for suffix, size in zip(self._suffixes, self._sizes, strict=True):
            for kind in ("masked", "unmasked"):
                metric_bag.add(f"{kind}_loss{suffix}", QuietMean())
                metric_bag.add(f"{kind}_accuracy{suffix}", QuietMean())

            metric_bag.add(f"unit_usage{suffix}", UnitUsage(size))

        for name in ("num_examples", "num_masked_frames", "num_frames", "audio_seconds", "padded_seconds"):
            metric_bag.add(name, Sum())

        metric_bag.add("num_skipped", Sum())
        metric_bag.add("total_num_examples", Sum())
        metric_bag.add("total_audio_hours", Sum())

    def set_step_nr(self, step_nr: int) -> None:
        """Say which update the next batches belong to: all batches of an update, on all ranks, drop the same heads."""
        self._step_nr = step_nr

    @override
    def __call__(self, batch: HubertBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        output = self.forward(batch)

        loss = self.compute_loss(output, batch)

        self._update_metrics(metric_bag, batch, output, loss)

        return loss.total, loss.num_targets

    def forward(self, batch: HubertBatch) -> HubertOutput:
        """Run the model on ``batch``."""
        return self._module(  # type: ignore[no-any-return]
            batch.waveforms,
            batch.num_samples if batch.padded else None,
            temporal_mask=batch.temporal_mask,
            masked_indices=batch.masked_indices,
            unmasked_indices=batch.unmasked_indices,
            unmasked_grad=self._alpha < 1.0,
            heads=self._draw_heads(),
        )

    def _draw_heads(self) -> list[int] | None:
        num_dropped = self._base_model.config.num_dropped_heads

        if not self._base_model.training or num_dropped == 0:
            return None

        return draw_heads(len(self._sizes), num_dropped, self._step_nr)

    def compute_loss(self, output: HubertOutput, batch: HubertBatch) -> MaskedLoss:
        """Return the loss of ``output``."""
        alpha, views = self._alpha, output.num_views

        masked = [
            cross_entropy(logits, _repeat(batch.masked_targets[k], views), reduction="sum")
            for k, logits in zip(output.heads, output.masked_logits, strict=True)
        ]

        unmasked = [
            cross_entropy(logits, _repeat(batch.unmasked_targets[k], views), reduction="sum")
            for k, logits in zip(output.heads, output.unmasked_logits, strict=False)
        ]

        # Both counts came with the batch from the CPU: no host synchronisation.
        num_targets = 0

        if alpha > 0.0:
            num_targets += views * batch.num_masked

        if alpha < 1.0:
            num_targets += views * batch.num_unmasked

        weights = [self._weights[k] for k in output.heads]

        feature_penalty = self._penalty_weight * num_targets * output.feature_penalty

        total = feature_penalty

        for weight, loss in zip(weights, masked, strict=True):
            # With α = 0 the masked frames' projections must still get (zero) gradients in data-parallel training.
            total = total + (alpha * weight) * loss

        if alpha < 1.0:
            for weight, loss in zip(weights, unmasked, strict=False):
                total = total + ((1.0 - alpha) * weight) * loss

        return MaskedLoss(total, masked, unmasked, feature_penalty, num_targets)

    @torch.inference_mode()
    def _update_metrics(
        self, metric_bag: MetricBag, batch: HubertBatch, output: HubertOutput, loss: MaskedLoss
    ) -> None:
        def mean(name: str, total: Tensor, count: int) -> None:
            if count > 0:
                metric_bag.get(name, Mean).update(total.detach() / count, weight=count)

        # Bits per frame of label set 0, as fairseq logs (DESIGN, decision 9).
        mean("loss", loss.total / math.log(2), loss.num_targets)
        mean("feature_penalty", loss.feature_penalty / math.log(2), loss.num_targets)

        views = output.num_views

        kinds = (
            ("masked", output.masked_logits, batch.masked_targets, loss.masked, views * batch.num_masked),
            ("unmasked", output.unmasked_logits, batch.unmasked_targets, loss.unmasked, views * batch.num_unmasked),
        )

        for kind, all_logits, all_targets, losses, count in kinds:
            for k, logits, value in zip(output.heads, all_logits, losses, strict=False):
                suffix = self._suffixes[k]

                units = logits.argmax(dim=-1)

                mean(f"{kind}_loss{suffix}", value / math.log(2), count)
                mean(f"{kind}_accuracy{suffix}", (units == _repeat(all_targets[k], views)).sum(), count)

                if kind == "masked":
                    metric_bag.get(f"unit_usage{suffix}", UnitUsage).update(units)

        metric_bag.get("num_examples", Sum).update(batch.num_examples)
        metric_bag.get("num_masked_frames", Sum).update(batch.num_masked)
        metric_bag.get("num_frames", Sum).update(batch.num_masked + batch.num_unmasked)
        metric_bag.get("audio_seconds", Sum).update(batch.audio_seconds)
        metric_bag.get("padded_seconds", Sum).update(batch.padded_seconds)
        metric_bag.get("num_skipped", Sum).update(batch.num_skipped)
        metric_bag.get("total_num_examples", Sum).update(batch.num_examples)
        metric_bag.get("total_audio_hours", Sum).update(batch.audio_seconds / 3600)

    @override
    def process_metric_values(self, values: dict[str, object]) -> None:
        def pop(name: str) -> float:
            return float(str(_item(values.pop(name, 0.0))))

        padded, audio, num_frames = pop("padded_seconds"), pop("audio_seconds"), pop("num_frames")

        for suffix in self._suffixes:
            # A head that took no part since the last report has nothing to tell.
            if float(str(_item(values.get(f"unit_usage{suffix}", 1.0)))) == 0.0:
                for name in HEAD_METRICS:
                    values.pop(name + suffix, None)

        values["padding_share"] = padded / (padded + audio) if padded + audio > 0 else 0.0
        values["audio_seconds"] = audio
        values["masked_share"] = float(str(_item(values["num_masked_frames"]))) / num_frames if num_frames else 0.0


def draw_heads(num_heads: int, num_dropped: int, step_nr: int) -> list[int]:
    """Return the indices, ascending, of the heads that take part in an update.

    Nothing but the number of the update decides, so that all ranks agree without a word, and a resumed run goes on with
    the same draws. At least one head takes part.
    """
    rng = np.random.default_rng([_HEAD_STREAM, step_nr])

    kept: list[int] = rng.permutation(num_heads)[: max(num_heads - num_dropped, 1)].tolist()

    return sorted(kept)


def _repeat(targets: Tensor, num_views: int) -> Tensor:
    return targets if num_views == 1 else targets.repeat(num_views)


def _item(value: object) -> object:
    return value.item() if isinstance(value, Tensor) else value


def register_masked_cross_entropy(container: DependencyContainer) -> None:
    """Register the criterion under ``masked_cross_entropy``."""

    def create(resolver: DependencyResolver, config: MaskedCrossEntropyConfig) -> object:
        def build(module: Module, base_model: HubertModel) -> Criterion:
            return MaskedCrossEntropy(module, base_model, config)

        return build

    register_criterion(container, MASKED_CROSS_ENTROPY, MaskedCrossEntropyConfig, create)
