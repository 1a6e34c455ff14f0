"""What is logged of every head: losses in bits, accuracies, and how many units the predictions use."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from builders import make_batch, one_thread, tiny_config  # noqa: F401 - a fixture
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.recorders import MetricDescriptor, MetricDescriptorRegistry
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.criteria.head_metrics import UnitUsage, describe_heads
from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig, draw_heads
from hubert_plugin.criteria.quiet_mean import QuietMean
from hubert_plugin.criteria.steps import TrainStep
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.config import HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (4, 7, 9)

CPU = torch.device("cpu")


def create(**overrides: Any) -> HubertModel:
    torch.manual_seed(0)

    heads = [HubertHeadConfig(label_set=f"km{size}", size=size, weight=0.5 + i) for i, size in enumerate(SIZES)]

    return create_hubert_model(tiny_config(heads=heads, **overrides)).train()


def measure(model: HubertModel, batches: Sequence[HubertBatch], step_nr: int = 1) -> dict[str, float]:
    """The values that are published after an update of these batches."""
    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig())

    step = TrainStep(criterion, lambda: 0.0)

    bag = MetricBag(device=CPU)

    step.prepare_metric_bag(bag)

    step.set_step_nr(step_nr)

    for batch in batches:
        step.process_batch(batch, bag)

    values: dict[str, object] = {name: m.compute() for name, m in bag.metrics.items()}

    step.process_metric_values(values)

    return {k: float(v) for k, v in values.items()}  # type: ignore[arg-type]


def expected_of_head(model: HubertModel, batches: Sequence[HubertBatch], k: int, views: int = 1) -> dict[str, float]:
    """Losses, accuracies and usage of head ``k``, frame by frame."""
    totals: Counter[str] = Counter()

    used: Counter[int] = Counter()

    for batch in batches:
        output = model(
            batch.waveforms,
            batch.num_samples if batch.padded else None,
            temporal_mask=batch.temporal_mask,
            masked_indices=batch.masked_indices,
            unmasked_indices=batch.unmasked_indices,
        )

        for kind, logits, targets in (
            ("masked", output.masked_logits[k], batch.masked_targets[k]),
            ("unmasked", output.unmasked_logits[k], batch.unmasked_targets[k]),
        ):
            for row, unit in zip(logits, targets.tolist() * views, strict=True):
                totals[f"{kind}_loss"] -= float(row.double().log_softmax(dim=0)[unit]) / math.log(2)
                totals[f"{kind}_accuracy"] += int(row.argmax()) == unit
                totals[kind] += 1

                if kind == "masked":
                    used[int(row.argmax())] += 1

    result = {f"{kind}_{what}": totals[f"{kind}_{what}"] / totals[kind]
              for kind in ("masked", "unmasked") for what in ("loss", "accuracy")}  # fmt: skip

    shares = [count / used.total() for count in used.values()]

    return {**result, "unit_usage": math.exp(-sum(p * math.log(p) for p in shares))}


@pytest.mark.parametrize("swap", [False, True])
def test_every_head_tells_losses_accuracies_and_usage(swap: bool) -> None:
    model = create(swap=swap)

    batches = [make_batch([6_000, 9_000], sizes=SIZES), make_batch([8_000], sizes=SIZES, seed=1)]

    values = measure(model, batches)

    for k, suffix in enumerate(["", "/km7", "/km9"]):
        for name, value in expected_of_head(model, batches, k, views=2 if swap else 1).items():
            assert values[name + suffix] == pytest.approx(value, rel=1e-5), name + suffix

    frames = sum(b.num_masked for b in batches)

    weighted = sum((0.5 + k) * values["masked_loss" + s] for k, s in enumerate(["", "/km7", "/km9"]))

    assert values["num_masked_frames"] == frames
    assert values["loss"] == pytest.approx(weighted + values["feature_penalty"], rel=1e-5)


def test_head_that_takes_no_part_tells_nothing() -> None:
    (dropped,) = {0, 1, 2} - set(draw_heads(3, 1, step_nr=5))

    values = measure(create(num_dropped_heads=1), [make_batch([8_000], sizes=SIZES)], step_nr=5)

    for k, suffix in enumerate(["", "/km7", "/km9"]):
        for name in ("masked_loss", "masked_accuracy", "unmasked_loss", "unmasked_accuracy", "unit_usage"):
            assert (name + suffix in values) == (k != dropped)


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(st.lists(st.integers(0, 9), max_size=20), min_size=1, max_size=3))
def test_usage_is_the_perplexity_over_all_ranks(parts: list[list[int]]) -> None:
    metrics = []

    for units in parts:
        metric = UnitUsage(10)

        metric.update(torch.tensor(units, dtype=torch.int64))

        metrics.append(metric)

    value = float(metrics[0].merge_state(metrics[1:]).compute())

    every = [u for units in parts for u in units]

    if not every:
        assert value == 0.0
    else:
        shares = [every.count(u) / len(every) for u in set(every)]

        assert value == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-9)


def test_usage_survives_a_checkpoint_and_begins_anew_after_a_report() -> None:
    metric = UnitUsage(4)

    metric.update(torch.tensor([0, 1, 1]))

    copy = UnitUsage(4)

    copy.load_state_dict(metric.state_dict())

    assert torch.equal(copy.update(torch.tensor([3])).counts, torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64))

    assert float(copy.reset().compute()) == 0.0


def test_metrics_of_further_heads_are_shown_like_those_of_the_first() -> None:
    base = MetricDescriptor("masked_accuracy", "Masked Accuracy", 94, lambda value: f"<{value}>", higher_better=True)

    registry = MetricDescriptorRegistry([base])

    describe_heads(registry, ["km50", "km100"])

    described = registry.maybe_get("masked_accuracy/km100")

    assert described is not None
    assert (described.display_name, described.priority, described.higher_better) == ("Masked Accuracy km100", 94, True)
    assert described.formatter(1) == "<1>"
    assert registry.maybe_get("masked_accuracy/km50") is None
    assert registry.maybe_get("masked_accuracy") is base


def test_metrics_that_are_not_finite_begin_anew_and_the_others_stay() -> None:
    class Poisoned:
        def prepare_metric_bag(self, bag: MetricBag) -> None:
            from fairseq2.metrics import Mean, Sum

            bag.add("loss", Mean())
            bag.add("count", Sum())

        def __call__(self, value: float, bag: MetricBag) -> tuple[Tensor, int]:
            from fairseq2.metrics import Mean, Sum

            bag.get("loss", Mean).update(value)
            bag.get("count", Sum).update(1)

            return torch.tensor(value), 1

    step = TrainStep(Poisoned(), lambda: 0.0)  # type: ignore[arg-type]

    bag = MetricBag(device=CPU)

    step.prepare_metric_bag(bag)

    for value in (1.0, float("nan")):
        step.process_batch(value, bag)

    step.forget_nonfinite_metrics()

    step.process_batch(3.0, bag)

    assert (float(bag.metrics["loss"].compute()), float(bag.metrics["count"].compute())) == (3.0, 3.0)


def test_a_loss_without_targets_has_no_gradient_and_counts_next_to_nothing() -> None:
    weight = torch.ones((), requires_grad=True)

    class Careless:
        """A criterion of another package: it adds a penalty, whether there is something to predict or not."""

        def prepare_metric_bag(self, bag: MetricBag) -> None: ...

        def __call__(self, num_targets: int, bag: MetricBag) -> tuple[Tensor, int]:
            return 5.0 * weight, num_targets

    step = TrainStep(Careless(), lambda: 0.0)  # type: ignore[arg-type]

    for num_targets, gradient in ((0, 0.0), (3, 5.0)):
        loss, count = step.process_batch(num_targets, MetricBag(device=CPU))

        assert count is not None
        assert torch.autograd.grad(loss, weight)[0].item() == gradient
        assert 0 < count < 1e-6 if num_targets == 0 else count == 3.0


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 1000)), min_size=1))
def test_quiet_mean_is_the_mean(items: Sequence[tuple[float, int]]) -> None:
    ours, theirs = QuietMean(), Mean()

    for value, weight in items:
        ours.update(value, weight=weight)
        theirs.update(value, weight=weight)

    assert torch.equal(ours.compute(), theirs.compute())

    # Checkpoints and other ranks take the one for the other.
    theirs.load_state_dict(ours.state_dict())

    assert torch.equal(ours.merge_state([ours]).compute(), theirs.merge_state([theirs]).compute())


def test_heads_that_take_no_part_are_not_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        values = measure(create(num_dropped_heads=2), [make_batch([16_000], sizes=SIZES)])

    assert sum(name.startswith("masked_loss") for name in values) == 1
    assert not caplog.records
