"""A run that goes on with other options of schedule or optimizer follows the new ones, and says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import NO_DROPOUT, make_corpus, pretrain_config, read_metrics, write_config
from fairseq2.optim.lr_schedulers import CosineAnnealingLR, LRScheduler, PolynomialDecayLR, TriStageLR
from processes import command_server
from torch.optim import AdamW, Optimizer

from hubert_plugin.errors import ConfigError
from hubert_plugin.tasks import resumed_rates
from hubert_plugin.tasks.resumed_rates import keep_configured_rates
from hubert_plugin.tasks.tri_stage import TriStageStepsConfig, create_tri_stage

Schedules = Callable[[Optimizer], LRScheduler]


def linear(num_steps: int) -> Schedules:
    return lambda optimizer: PolynomialDecayLR(optimizer, num_steps, 1)


class Training:
    """An optimizer and its schedule, of two groups."""

    def __init__(self, create_schedule: Schedules, **options: Any) -> None:
        params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]

        groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]

        self.optimizer = AdamW(groups, **{"lr": 0.01, **options})
        self.schedule = create_schedule(self.optimizer)
        self.params = params

        keep_configured_rates(self.optimizer, self.schedule)

    def run(self, num_steps: int) -> list[list[float]]:
        rates = []

        for _ in range(num_steps):
            for param in self.params:
                param.grad = torch.sin(param.detach())

            self.optimizer.step()

            rates.append(self.schedule.get_last_lr())

            self.schedule.step()

        return rates

    def load(self, other: Training) -> None:
        """In the order of fairseq2's trainer."""
        self.schedule.load_state_dict(copy.deepcopy(other.schedule.state_dict()))
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))

        with torch.no_grad():
            for ours, theirs in zip(self.params, other.params, strict=True):
                ours.copy_(theirs)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    logged: list[str] = []

    class Log:
        def info(self, text: str, *args: object) -> None:
            logged.append(text.format(*args))

    monkeypatch.setattr(resumed_rates, "log", Log())

    return logged


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (linear(4), linear(8), "num_steps 8 (was 4)"),
        (
            lambda o: TriStageLR(o, 10, (0.2, 0.3, 0.5)),
            lambda o: TriStageLR(o, 20, (0.2, 0.3, 0.5)),
            "num_stage_steps [4, 6, 10] (was [2, 3, 5])",
        ),
        (
            lambda o: create_tri_stage(o, TriStageStepsConfig(num_warmup_steps=2, num_decay_steps=4)),
            lambda o: create_tri_stage(
                o, TriStageStepsConfig(num_warmup_steps=2, num_decay_steps=4, final_lr_scale=0.5)
            ),
            "final_lr_scales [0.5, 0.5] (was [0.05, 0.05])",
        ),
        (lambda o: CosineAnnealingLR(o, 4, 1), lambda o: CosineAnnealingLR(o, 12, 1), "cycle_len 12 (was 4)"),
        (
            linear(4),
            lambda o: CosineAnnealingLR(o, 12, 1),
            "learning rate of the next step [0.00853553, 0.0170711] (was [0, 0])",
        ),
    ],
    ids=["linear", "tri_stage", "tri_stage_steps", "cosine", "another"],
)
def test_the_new_schedule_is_followed_from_where_the_old_one_was(
    old: Schedules, new: Schedules, words: str, messages: list[str]
) -> None:
    before, expected, resumed = Training(old), Training(new), Training(new)

    before.run(4)

    resumed.load(before)

    assert resumed.run(4) == expected.run(8)[4:]

    assert resumed.schedule.state_dict().keys() == expected.schedule.state_dict().keys()

    assert len(messages) == 1
    assert words in messages[0]


def test_other_options_of_the_optimizer_are_followed(messages: list[str]) -> None:
    before = Training(linear(8))

    resumed = Training(linear(8), lr=0.005, betas=(0.8, 0.98), weight_decay=0.25)

    before.run(4)

    resumed.load(before)

    first, second = resumed.optimizer.param_groups

    assert (first["lr"], second["lr"]) == (0.005 * 4 / 7, 0.02 * 4 / 7)
    assert first["betas"] == second["betas"] == (0.8, 0.98)
    assert first["weight_decay"] == 0.25

    # The averages are the checkpoint's.
    assert torch.equal(
        resumed.optimizer.state[resumed.params[0]]["exp_avg"], before.optimizer.state[before.params[0]]["exp_avg"]
    )

    assert "learning rate [0.005, 0.02] (was [0.01, 0.02])" in messages[0]
    assert "weight_decay of parameter group 1 0.25 (was 0.01)" in messages[0]


def test_nothing_changes_where_nothing_was_changed(messages: list[str]) -> None:
    expected, resumed, before = Training(linear(8)), Training(linear(8)), Training(linear(8))

    before.run(4)

    resumed.load(before)

    assert resumed.optimizer.state_dict()["param_groups"] == before.optimizer.state_dict()["param_groups"]
    assert resumed.schedule.state_dict() == before.schedule.state_dict()

    assert resumed.run(4) == expected.run(8)[4:]

    for ours, theirs in zip(resumed.params, expected.params, strict=True):
        assert torch.equal(ours, theirs)

    assert messages == []


def test_maxima_that_the_checkpoint_has_not_are_asked_for() -> None:
    before = Training(linear(8))

    before.run(1)

    with pytest.raises(ConfigError, match=r"`optimizer.config.amsgrad` is true, but the run was begun without"):
        Training(linear(8), amsgrad=True).load(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            make_corpus(tmp_path / "corpus", num_train=4, num_valid=1, seconds=(1.0, 1.01)),
            model={"config_overrides": NO_DROPOUT},
            dataset={"valid_split": None},
            optimizer={"name": "adamw", "config": {"lr": 0.001}},
            lr_scheduler={"config": {"num_warmup_steps": 1}},
            regime={
                "score_metric": None,
                "keep_best_n_checkpoints": None,
                "validate_every_n_steps": None,
                "checkpoint_every_n_steps": 2,
            },
        ),
    )


def test_a_cosine_in_the_place_of_the_defaults_schedule_ends_where_that_does(config: Path, tmp_path: Path) -> None:
    run = command_server().pretrain(
        tmp_path / "out", config, "lr_scheduler.name=cosine_annealing", "regime.num_steps=3"
    )

    assert run.wait() == 0, run.raw

    rates = [r["Learning Rate"] for r in read_metrics(tmp_path / "out") if "Loss" in r]

    assert rates == pytest.approx([0.0, 0.001, 0.0005], rel=1e-6)


def test_a_run_that_goes_on_for_more_steps_goes_on_learning(config: Path, tmp_path: Path) -> None:
    """The old schedule ends at 0."""
    out = tmp_path / "out"

    for num_steps, lr in ((4, 0.001), (8, 0.002)):
        run = command_server().pretrain(out, config, f"regime.num_steps={num_steps}", f"optimizer.config.lr={lr}")

        assert run.wait() == 0, run.raw

    words = "num_steps 8 (was 4), learning rate 0.002 (was 0.001), learning rate of the next step 0.00114286 (was 0)"

    assert words in " ".join(run.raw.split()), run.raw

    rates = {r["Step"]: r["Learning Rate"] for r in read_metrics(out) if "Loss" in r}

    first = [rate[0] if isinstance(rate, list) else rate for _, rate in sorted(rates.items())]

    assert first[4:] == pytest.approx([0.002 * (8 - done) / 7 for done in range(4, 8)], rel=1e-6)
