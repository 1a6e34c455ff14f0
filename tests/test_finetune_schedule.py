"""The learning rate of recognition, by updates; limits of the options of optimizers and schedules."""

from __future__ import annotations

import math
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
from hubert_plugin.tasks.tri_stage import HubertLRSchedulerSection, TriStageStepsConfig, create_tri_stage

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
