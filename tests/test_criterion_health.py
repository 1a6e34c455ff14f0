"""Training that goes wrong: updates that are not finite, and memory that is short."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from builders import (
    NO_DROPOUT,
    load_weights,
    make_batch,
    make_corpus,
    pretrain_config,
    read_metrics,
    tiny_config,
    write_config,
)
from fairseq2.metrics import MetricBag
from fairseq2.recipe.config import TrainerSection
from processes import command_server, pretrain_args, start_pretrain_ranks, wait_for_all

from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.errors import TrainingError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.tasks.hubert_pretrain import HubertPretrainTaskConfig
from hubert_plugin.tasks.training import TrainingTask, describe_memory_error


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("health"))


def poison(folder: Path, names: Sequence[str]) -> None:
    """Make waveforms so loud that their sums overflow: finite samples, no finite loss."""
    for name in names:
        waveform, rate = sf.read(folder / "wav" / name, dtype="float32")

        sf.write(folder / "wav" / name, np.abs(waveform) * 1e38, rate, subtype="FLOAT")


def assert_finite(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_weights(folder)

    assert all(bool(w.isfinite().all()) for w in weights.values())

    return weights


# Updates that are not finite


def test_update_on_poisoned_audio_is_skipped_counted_and_named(corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")

    poison(folder, ["s1/train04.wav", "s2/train05.wav"])

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(folder, regime={"num_steps": 20, "validate_every_n_steps": 20, "checkpoint_every_n_steps": 20}),
    )

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 0, run.raw[-3000:]

    assert_finite(tmp_path / "out/checkpoints/step_20")

    # One epoch has 20 batches or less, so each was seen.
    records = read_metrics(tmp_path / "out")

    assert sum(r["Skipped Updates"] for r in records) >= 2

    # Reports of the other updates, and of the gradients' norm, stay finite.
    for record in records:
        for key in ("Loss", "Gradient Norm"):
            assert float(record[key]) < 1e6, record

    # Of a batch, only the utterance that is to blame is named.
    warnings = [line for line in run.text.split("WARNING") if "is skipped" in line]

    assert warnings and all("loss is not finite" in w for w in warnings)

    named = {n for w in warnings for n in ("s1/train04.wav", "s2/train05.wav") if n in w}

    assert named == {"s1/train04.wav", "s2/train05.wav"}
    assert not any("train06" in w or "train03" in w for w in warnings)


def test_run_stops_when_no_update_is_finite(corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")

    poison(folder, [f"s{i % 3}/train{i:02}.wav" for i in range(24)])

    config = write_config(tmp_path / "config.yaml", pretrain_config(folder, nonfinite={"max_in_a_row": 3}))

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 2, run.raw[-3000:]

    for phrase in ("Training has stopped at step 3", "last 3 updates were not finite", "optimizer.config.lr", ".wav"):
        assert phrase in run.text, run.raw[-3000:]

    assert "Traceback" not in run.raw


def test_parameters_that_are_not_finite_are_told_from_audio(corpus: Path, tmp_path: Path) -> None:
    """A learning rate of 1e30 makes parameters that overflow everything after them."""
    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus, optimizer={"config": {"lr": 1e38}}, lr_scheduler={"config": {"num_warmup_steps": 0}},
            nonfinite={"max_in_a_row": 4}, regime={"num_steps": 40, "validate_every_n_steps": 40,
                                                   "checkpoint_every_n_steps": 40},
        ),
    )  # fmt: skip

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 2, run.raw[-3000:]
    assert "last 4 updates were not finite" in run.text, run.raw[-3000:]


def test_all_ranks_skip_together(corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")

    poison(folder, ["s1/train04.wav"])

    changes: dict[str, Any] = {
        "model": {"config_overrides": NO_DROPOUT},
        "regime": {"num_steps": 12, "validate_every_n_steps": 12, "checkpoint_every_n_steps": 12},
    }

    config = write_config(tmp_path / "config.yaml", pretrain_config(folder, **changes))

    two = start_pretrain_ranks(tmp_path / "two", config, 2)

    one = command_server().start(*pretrain_args(tmp_path / "one", config, "trainer.grad_accumulation.num_batches=2"))

    wait_for_all([one, *two])

    weights = [assert_finite(tmp_path / name / "checkpoints/step_12") for name in ("one", "two")]

    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda m, k=name: f"{k}: {m}")

    skipped = [[r["Skipped Updates"] for r in read_metrics(tmp_path / name)] for name in ("one", "two")]

    assert skipped[0] == skipped[1] and sum(skipped[0]) >= 1

    # The rank that read the utterance names it; the other says nothing of its own losses.
    assert sum("s1/train04.wav" in run.raw for run in two) >= 1


def test_guard_changes_nothing_where_all_is_finite(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 4}))

    runs = [
        command_server().start(*pretrain_args(tmp_path / name, config, f"nonfinite.max_in_a_row={value}"))
        for name, value in (("guarded", "10"), ("bare", "null"))
    ]

    wait_for_all(runs)

    guarded, bare = (load_weights(tmp_path / name / "checkpoints/step_4") for name in ("guarded", "bare"))

    assert all(torch.equal(value, bare[name]) for name, value in guarded.items())

    assert "Skipped Updates" in read_metrics(tmp_path / "guarded")[0]
    assert "Skipped Updates" not in read_metrics(tmp_path / "bare")[0]


# Memory


class ShortOfMemory:
    """A criterion on a device that has no memory for the second batch."""

    def __init__(self, inner: MaskedCrossEntropy) -> None:
        self.inner, self.calls = inner, 0

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        self.inner.prepare_metric_bag(bag)

    def __call__(self, batch: Any, bag: MetricBag) -> Any:
        self.calls += 1

        if self.calls == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

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
    validates: bool, changes: dict[str, Any], phrases: Sequence[str]
) -> None:
    model = create_hubert_model(tiny_config())

    criterion: Any = ShortOfMemory(MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig()))

    step, eval_step = TrainStep(criterion, lambda: 0.0), EvalStep(criterion)

    trainer: Any = FakeTrainer(step, eval_step, validates=validates)

    def describe() -> str:
        return describe_memory_error(step, eval_step, HubertPretrainTaskConfig(**changes), TrainerSection())

    with pytest.raises(TrainingError) as info:
        TrainingTask(trainer, GANGS, None, describe).run()

    for phrase in phrases:
        assert phrase in str(info.value)
