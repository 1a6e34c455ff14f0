"""Memory that is short: which batch asked for it, and what to lower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import make_batch, tiny_config
from fairseq2.metrics import MetricBag
from fairseq2.recipe.config import TrainerSection

from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.errors import TrainingError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.tasks.hubert_pretrain import HubertPretrainTaskConfig
from hubert_plugin.tasks.training import TrainingTask, describe_memory_error


class ShortOfMemory:
    """A criterion on a device that has no memory for the second batch."""

    def __init__(self, inner: MaskedCrossEntropy, allocate: Callable[[], object]) -> None:
        self.inner, self.allocate, self.calls = inner, allocate, 0

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        self.inner.prepare_metric_bag(bag)

    def __call__(self, batch: Any, bag: MetricBag) -> Any:
        self.calls += 1

        if self.calls == 2:
            self.allocate()

        return self.inner(batch, bag)


class FakeTrainer:
    """What :class:`TrainingTask` needs of a trainer: one that reads two batches, and validates on the second."""

    def __init__(self, step: TrainStep, eval_step: EvalStep, *, validates: bool) -> None:
        self.step, self.eval_step, self.validates = step, eval_step, validates

    def run(self) -> None:
        bag = MetricBag(device=torch.device("cpu"))

        self.step.prepare_metric_bag(bag)

        self.step.set_step_nr(7)

        self.step.process_batch(make_batch([8_000]), bag)

        batch = make_batch([32_000, 31_000])

        if self.validates:
            self.eval_step.process_batch(batch, bag)
        else:
            self.step.process_batch(batch, bag)


GANGS: Any = SimpleNamespace(root=SimpleNamespace(rank=0))


def allocate_too_much_on_gpu() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")


def allocate_too_much_on_cpu() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [allocate_too_much_on_gpu, allocate_too_much_on_cpu])
@pytest.mark.parametrize(
    ("validates", "changes", "phrases"),
    [
        (
            False,
            {},
            [
                "in step 7", "2 x 2 s", "bucket of 99 frames", "4 s in all",
                "`task.config.batching.batch_seconds`, now 87.5", "to 43.75", "activation_checkpointing.mode=layerwise",
                "data_parallelism=fsdp", "checkpoint is untouched",
            ],
        ),
        (False, {"global_batch_seconds": 2800.0}, ["accumulation grows"]),
        (True, {"valid_batch_seconds": 60.0}, ["validation after step 7", "`task.config.valid_batch_seconds`, now 60"]),
    ],
)  # fmt: skip
def test_out_of_memory_names_the_batch_and_what_to_lower(
    allocate: Callable[[], object], validates: bool, changes: dict[str, Any], phrases: Sequence[str]
) -> None:
    model = create_hubert_model(tiny_config())

    criterion: Any = ShortOfMemory(MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig()), allocate)

    step, eval_step = TrainStep(criterion, lambda: 0.0), EvalStep(criterion)

    trainer: Any = FakeTrainer(step, eval_step, validates=validates)

    def describe() -> str:
        return describe_memory_error(step, eval_step, HubertPretrainTaskConfig(**changes), TrainerSection())

    with pytest.raises(TrainingError) as info:
        TrainingTask(trainer, GANGS, None, describe).run()

    for phrase in phrases:
        assert phrase in str(info.value)
