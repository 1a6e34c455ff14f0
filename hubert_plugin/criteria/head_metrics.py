"""Metrics of target heads: names, how they are shown, and how many units the predictions use.

The metrics of the first head have plain names (DESIGN, decision 9); those of the others end in the name of their label
set, such as ``masked_accuracy/km500``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, final

import torch
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from torcheval.metrics import Metric
from typing_extensions import Self, override

HEAD_METRICS: Final = (
    "masked_loss",
    "unmasked_loss",
    "masked_accuracy",
    "unmasked_accuracy",
    "unit_usage",
)
"""What is measured of every head."""


def metric_suffixes(label_sets: Sequence[str]) -> list[str]:
    """Return what is put behind the names of the metrics of each head."""
    return ["", *(f"/{name}" for name in label_sets[1:])]


@final
class UnitUsage(Metric[Tensor]):
    """The perplexity of the distribution of predicted units: K if all K are predicted alike often, 1 if one always is.

    ``exp(−Σ p log p)`` over the frames since the last report (0 if there were none). A model that has collapsed onto
    few units shows here first.
    """

    counts: Tensor

    def __init__(self, num_units: int, *, device: torch.device | None = None) -> None:
        super().__init__(device=device)

        self._add_state("counts", torch.zeros(num_units, dtype=torch.float64, device=self.device))

    @override
    @torch.inference_mode()
    def update(self, units: Tensor) -> Self:
        """Count predicted units. *Shape:* (S), int64."""
        # Unlike `bincount`, this waits for no other device.
        self.counts.index_add_(0, units, torch.ones_like(units, dtype=self.counts.dtype))

        return self

    @override
    @torch.inference_mode()
    def compute(self) -> Tensor:
        total = self.counts.sum()

        p = self.counts / total.clamp(min=1.0)

        entropy = -(p * p.clamp(min=1e-30).log()).sum()

        return torch.where(total > 0, entropy.exp(), torch.zeros_like(entropy))

    @override
    @torch.inference_mode()
    def merge_state(self, metrics: Iterable[Self]) -> Self:
        for metric in metrics:
            self.counts += metric.counts.to(self.device)

        return self


def share_metric_descriptors(container: DependencyContainer) -> None:
    """Let all recorders of a run use one registry of descriptors, so that :func:`describe_heads` can add to it."""

    def create(resolver: DependencyResolver) -> MetricDescriptorRegistry:
        return MetricDescriptorRegistry(resolver.collection.resolve(MetricDescriptor))

    # Label sets are known only when the data is open, but fairseq2's container takes nothing new by then, and it makes
    # a registry for each recorder.
    container._registrations.pop((MetricDescriptorRegistry, None), None)

    container.register(MetricDescriptorRegistry, create, singleton=True)


def describe_heads(registry: MetricDescriptorRegistry, label_sets: Sequence[str]) -> None:
    """Say how the metrics of all heads but the first are shown; ``regime.score_metric`` may then name them."""
    for suffix in metric_suffixes(label_sets)[1:]:
        for name in HEAD_METRICS:
            base = registry.maybe_get(name)

            if base is None:
                base = MetricDescriptor(name, name, 99, format_as_float)

            registry._descriptors[name + suffix] = MetricDescriptor(
                name + suffix,
                f"{base.display_name} {suffix[1:]}",
                base.priority,
                base.formatter,
                higher_better=base.higher_better,
            )
