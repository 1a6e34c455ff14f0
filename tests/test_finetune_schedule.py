"""The learning rate of recognition, by updates; limits of the options of optimizers and schedules."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from fairseq2.recipe.config import (
    AdafactorConfig,
    AdamWConfig,
    AdamWGroupConfig,
    CosineAnnealingLRConfig,
    PolynomialDecayLRConfig,
    TriStageLRConfig,
)

from hubert_plugin.tasks.muon import HubertOptimizerSection
from hubert_plugin.tasks.tri_stage import (
    HubertLRSchedulerSection,
    TriStageStepsConfig,
    choose_final_rate,
    create_tri_stage,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tri_stage_by_updates_is_fairseqs_schedule_of_base_10h() -> None:
    """fairseq ``tri_stage_lr_scheduler.py``: linear, flat, exponential; base_10h.yaml ends at 0.49 of the peak. A
    hundred times shorter."""
    param = torch.nn.Parameter(torch.zeros(1))

    optimizer = torch.optim.AdamW([param], lr=2e-5)

    schedule = create_tri_stage(optimizer, TriStageStepsConfig(num_warmup_steps=80, num_decay_steps=720))

    rates = []

    for _ in range(251):
        rates.append(schedule.get_last_lr()[0])

        optimizer.step()

        schedule.step()

    def expected(step: int) -> float:
        if step < 80:
            return 2e-7 + (2e-5 - 2e-7) / 80 * step

        return 2e-5 * math.exp(math.log(0.05) / 720 * (step - 80))

    for step in (0, 1, 40, 79, 80, 81, 250):
        assert rates[step] == pytest.approx(expected(step), rel=1e-9), step

    assert rates[-1] / 2e-5 == pytest.approx(0.49, abs=0.005)  # after 25,000 of fairseq's updates


@pytest.mark.parametrize(
    ("config", "phrase"),
    [
        (AdamWConfig(lr=-1.0), "`config.lr` must not be negative, but is -1.0"),
        (AdamWConfig(betas=(0.9, 1.5)), "`config.betas[1]` must be at least 0 and below 1, but is 1.5"),
        (AdamWConfig(eps=-1e-8), "`config.eps` must not be negative"),
        (AdamWConfig(groups=[AdamWGroupConfig(weight_decay=-0.1)]), "`config.groups[0].weight_decay` must not be"),
        (AdafactorConfig(beta2_decay=0.8), "`config.beta2_decay` must be 0 or less"),
        (TriStageLRConfig(final_lr_scale=0.0), "`config.final_lr_scale` must be greater than 0"),
        (TriStageLRConfig(start_lr_scale=[0.1, -0.1]), "`config.start_lr_scale[1]` must not be negative"),
        (TriStageLRConfig(stage_ratio=(-0.5, 1.0, 0.5)), "`config.stage_ratio[0]` must not be negative"),
        (TriStageStepsConfig(final_lr_scale=-0.5), "`config.final_lr_scale` must be greater than 0"),
        (CosineAnnealingLRConfig(cycle_len=0), "`config.cycle_len` must be 1 or greater"),
        (PolynomialDecayLRConfig(power=-1.0), "`config.power` must not be negative"),
    ],
)
def test_options_that_cannot_be_used_are_named(config: Any, phrase: str) -> None:
    kls = HubertOptimizerSection if isinstance(config, (AdamWConfig, AdafactorConfig)) else HubertLRSchedulerSection

    (error,) = kls(name="any", config=config).validate().errors

    assert phrase in error


@pytest.mark.parametrize("config", [CosineAnnealingLRConfig(final_lr_scale=0.0), PolynomialDecayLRConfig(), None])
def test_options_at_their_limits_are_let_through(config: Any) -> None:
    assert not HubertLRSchedulerSection(name="any", config=config).validate().errors

    assert not HubertOptimizerSection(name="any", config=AdamWConfig(lr=0.0, betas=(0.0, 0.999))).validate().errors


LINEAR = {"num_warmup_steps": 100, "power": 1.0, "start_lr": 0.0, "final_lr": 0.0}
"""What the default of ``pretrain`` leaves beside the options of another schedule."""

STAGES = {"stage_ratio": [0.1, 0.4, 0.5], "start_lr_scale": 0.01, "final_lr_scale": 0.05}
"""What that of ``finetune`` leaves."""


@pytest.mark.parametrize(
    ("config", "final_lr", "final_lr_scale"),
    [
        (LINEAR, 0.0, None),
        ({**LINEAR, "final_lr": 1e-5}, 1e-5, None),
        ({**LINEAR, "final_lr_scale": 0.1}, None, 0.1),
        (STAGES, None, 0.05),
        ({**STAGES, "final_lr": 1e-5}, 1e-5, None),
    ],
)
def test_one_final_rate_is_left_where_a_cosine_takes_the_defaults_place(
    config: dict[str, Any], final_lr: float | None, final_lr_scale: float | None
) -> None:
    cosine = cosine_of(config)

    assert (cosine.final_lr, cosine.final_lr_scale) == (final_lr, final_lr_scale)
    assert not cosine.validate().errors

    # Other schedules are left alone.
    assert choose_final_rate("tri_stage", config) is config


def test_two_final_rates_that_were_asked_for_are_refused() -> None:
    cosine = cosine_of({**LINEAR, "final_lr": 1e-5, "final_lr_scale": 0.1})

    assert "must not be specified at the same time" in str(cosine.validate())


def cosine_of(config: dict[str, Any]) -> CosineAnnealingLRConfig:
    """The schedule from its own options."""
    chosen = choose_final_rate("cosine_annealing", config)

    assert isinstance(chosen, dict)

    known = {f.name for f in fields(CosineAnnealingLRConfig)}

    return CosineAnnealingLRConfig(**{key: value for key, value in chosen.items() if key in known})
