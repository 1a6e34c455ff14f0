"""The learning rate of recognition, by updates."""

from __future__ import annotations

import math

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture

from hubert_plugin.tasks.tri_stage import TriStageStepsConfig, create_tri_stage

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
