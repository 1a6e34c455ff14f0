"""Training that goes wrong: updates that are not finite."""

from __future__ import annotations

import re
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
    make_corpus,
    pretrain_config,
    read_metrics,
    tiny_config,
    write_config,
)
from fairseq2.gang import create_fake_gangs
from fairseq2.optim.fp16_loss_scaler import Float16LossScaleResult, StandardFloat16LossScaler
from processes import assert_answer, command_server, pretrain_args, start_pretrain_ranks, wait_for_all

from hubert_plugin.criteria.steps import ProcessedBatch, TrainStep
from hubert_plugin.errors import TrainingError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.tasks.nonfinite import NonFiniteSection, guard_updates


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
            # Where no update was made, there is none to tell of.
            assert key not in record if record["Skipped Updates"] else float(record[key]) < 1e6, record

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

    assert_answer(
        run, ["Training has stopped at step 3", "last 3 updates were not finite", "optimizer.config.lr", ".wav"]
    )

    # All updates are told, each with its utterances, in the answer as in the warnings; there is no checkpoint yet.
    answer, named = run.text.split("Training has stopped")[1], re.findall(r"s\d/train\d\d\.wav", run.text)

    assert all(f"update {n}: the loss is not finite" in answer for n in (1, 2, 3))
    assert len(set(named)) >= 6 and set(named) == set(re.findall(r"s\d/train\d\d\.wav", answer))
    assert "checkpoints of step" not in answer

    # torcheval has nothing to complain of.
    assert "No calls to update()" not in run.raw


def test_all_ranks_stop_and_tell_the_utterances_of_all(corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")

    names = [f"s{i % 3}/train{i:02}.wav" for i in range(24)]

    poison(folder, names)

    config = write_config(tmp_path / "config.yaml", pretrain_config(folder, nonfinite={"max_in_a_row": 2}))

    runs = start_pretrain_ranks(tmp_path / "out", config, 2)

    for run in runs:
        run.wait()

        assert_answer(run, [])

    # Rank 0's log is what is shown; it warns of the other's utterances, too.
    warnings = [line for line in runs[0].text.split("WARNING") if "is skipped" in line]

    assert warnings and all("on rank 1, the loss" in w for w in warnings)

    # fairseq2 shows what rank 0 logs, and keeps the others' logs in files.
    answers = [
        text.split("Training has stopped at step 2")[1]
        for text in (runs[0].text, (tmp_path / "out/logs/rank_1.log").read_text())
    ]

    assert all(f"on rank {rank}, the loss is not finite" in a for rank in (0, 1) for a in answers)

    told = [set(re.findall(r"s\d/train\d\d\.wav", a)) for a in answers]

    assert told[0] == told[1] and len(told[0]) >= 4


def test_stop_tells_which_checkpoints_hold_the_parameters_it_began_with(corpus: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optimizer": {"config": {"lr": 1e38}}, "lr_scheduler": {"config": {"num_warmup_steps": 0}},
        "nonfinite": {"max_in_a_row": 4},
        "regime": {"num_steps": 40, "validate_every_n_steps": 1, "checkpoint_every_n_steps": 1},
    }  # fmt: skip

    run = command_server().pretrain(
        tmp_path / "out", write_config(tmp_path / "c.yaml", pretrain_config(corpus, **changes))
    )

    first = int(re.findall(r"Update (\d+) is skipped \(1 of", run.text)[-1])

    assert_answer(run, [f"checkpoints of step {first - 1} and later have the parameters"])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_loss_that_is_not_finite_stops_float16_too(num_ranks: int, corpus: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus, tmp_path / "corpus")

    poison(folder, [f"s{i % 3}/train{i:02}.wav" for i in range(24)])

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            folder, trainer={"mixed_precision": {"mode": "auto", "dtype": "float16"}}, nonfinite={"max_in_a_row": 3}
        ),
    )

    runs = start_pretrain_ranks(tmp_path / "out", config, num_ranks)

    for run in runs:
        run.wait()

        assert_answer(run, [])

    assert_answer(runs[0], ["last 3 updates were not finite", "the loss is not finite; utterances: s"])

    assert "is skipped (1 of at most 3 in a row)" in runs[0].text
    assert [r["Skipped Updates"] for r in read_metrics(tmp_path / "out")] == [1, 1]


class OneWeight:
    """A model of one weight, an optimizer, and float16's loss scaler on a CPU."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)

        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

        self.scaler = StandardFloat16LossScaler(create_fake_gangs(torch.device("cpu")))

        # PyTorch's default is one for GPUs, idle here.
        self.scaler._grad_scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=2.0**16)

        self.step = TrainStep(SimpleNamespace(prepare_metric_bag=None), lambda: 0.0)  # type: ignore[arg-type]

        base: Any = create_hubert_model(tiny_config())

        guard = guard_updates(
            NonFiniteSection(max_in_a_row=2), self.model, base, create_fake_gangs(torch.device("cpu")), self.step
        )

        assert guard is not None

        self.guard = guard

        self.guard.leave_gradients_to(self.scaler)

    def update(self, factor: float) -> Float16LossScaleResult:
        """Do what fairseq2's trainer does, with ``factor`` times the weight as the loss."""
        loss = (self.model.weight * factor).sum()

        self.step.step_nr += 1

        self.step.processed = [ProcessedBatch(None, loss.detach())]

        self.scaler.backward(loss)

        self.scaler.unscale_grads_(self.optimizer)

        self.guard.clip_grad_norm(1.0)

        result = self.scaler.run_optimizer_step(self.optimizer)

        self.optimizer.zero_grad(set_to_none=True)

        return result


def test_loss_scaler_keeps_gradients_that_overflow_and_no_loss_that_is_not_finite() -> None:
    run = OneWeight()

    run.model.weight.data.fill_(0.5)

    # 1e37 times the scale is infinite in float32; the loss is not.
    result = run.update(1e37)

    assert result.overflowed and result.new_scale == 2.0**15
    assert run.guard.pop_num_skipped() == 0

    result = run.update(float("nan"))

    assert not result.overflowed and result.new_scale == 2.0**15
    assert run.guard.pop_num_skipped() == 1 and run.model.weight.item() == 0.5

    # The count starts anew after an update that was made.
    assert not run.update(1.0).overflowed and run.model.weight.item() < 0.5

    run.update(float("inf"))

    with pytest.raises(TrainingError, match="last 2 updates were not finite"):
        run.update(float("nan"))


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
