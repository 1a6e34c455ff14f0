"""The tri-stage schedule by numbers of updates: fairseq2's own, whose stages may be longer than the training.

fairseq2's ``tri_stage`` divides ``regime.num_steps`` by ratios. fairseq's ``base_10h.yaml`` says 8,000 and 72,000
updates and stops after 25,000 of them (FACTS 1.5), which ratios cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fairseq2.optim.lr_schedulers import LRScheduler, TriStageLR
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import COSINE_ANNEALING_LR, LRSchedulerSection, PolynomialDecayLRConfig
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from torch.optim import Optimizer
from typing_extensions import override

from hubert_plugin.registry import prepare_section
from hubert_plugin.tasks.rate_limits import schedule_problems

TRI_STAGE_STEPS: Final = "tri_stage_steps"


@dataclass(kw_only=True)
class TriStageStepsConfig(Validatable):
    """Holds the configuration of the schedule ``tri_stage_steps``."""

    num_warmup_steps: int = 8000
    """The updates in which the learning rate rises to its highest value, linearly."""

    num_hold_steps: int = 0
    """The updates in which it stays there."""

    num_decay_steps: int = 72000
    """The updates in which it falls to its final value, exponentially."""

    start_lr_scale: float = 0.01
    """The learning rate of the first update, as a share of the highest."""

    final_lr_scale: float = 0.05
    """The final learning rate, as a share of the highest."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("num_warmup_steps", "num_hold_steps", "num_decay_steps"):
            if getattr(self, name) < 0:
                result.add_error(f"`{name}` must not be negative, but is {getattr(self, name)} instead.")

        if self.num_warmup_steps + self.num_hold_steps + self.num_decay_steps < 1:
            result.add_error("The three stages must have at least one update together.")

        return result


@dataclass(kw_only=True)
class HubertLRSchedulerSection(LRSchedulerSection, Validatable):
    """Selects a schedule: one of fairseq2's, or ``tri_stage_steps``. A preset may name another than the default's."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        self.config = choose_final_rate(self.name, self.config)

        prepare_section(self, resolver, LRScheduler)

        super().structure(resolver)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        is_three_stages = isinstance(self.config, TriStageStepsConfig)

        for problem in schedule_problems(self.config, final_scale_is_exponent=is_three_stages):
            result.add_error(problem)

        return result


def choose_final_rate(name: str, config: object) -> object:
    """Return the options of the schedule ``name`` without a second final learning rate that nobody asked for.

    Options that the default's schedule has in common with the chosen one are kept. Of ``cosine_annealing``, which takes
    either ``final_lr`` or ``final_lr_scale`` and has a default for the latter, ``polynomial_decay`` has the one and
    ``tri_stage`` the other: what the default does not have is the user's, and holds.
    """
    if name != COSINE_ANNEALING_LR or not isinstance(config, Mapping):
        return config

    rate, scale = config.get("final_lr"), config.get("final_lr_scale")

    # Options that only these schedules have tell which was the default.
    if "power" in config and rate is not None:
        if scale is None:
            return {**config, "final_lr_scale": None}

        # Another rate than the default's was asked for, too: that is a contradiction, which is refused.
        return {**config, "final_lr": None} if rate == PolynomialDecayLRConfig().final_lr else config

    if "stage_ratio" in config and rate is not None:
        return {**config, "final_lr_scale": None}

    return config


def create_tri_stage(optimizer: Optimizer, config: TriStageStepsConfig) -> TriStageLR:
    """Return the schedule."""
    steps = [config.num_warmup_steps, config.num_hold_steps, config.num_decay_steps]

    total = sum(steps)

    schedule = TriStageLR(
        optimizer,
        total,
        (steps[0] / total, steps[1] / total, steps[2] / total),
        start_lr_scale=config.start_lr_scale,
        final_lr_scale=config.final_lr_scale,
    )

    # Ratios round down.
    schedule.num_stage_steps = steps

    return schedule


def register_tri_stage_steps(container: DependencyContainer) -> None:
    """Register the schedule under ``tri_stage_steps``."""

    def create(resolver: DependencyResolver, config: TriStageStepsConfig) -> LRScheduler:
        return create_tri_stage(resolver.resolve(Optimizer), config)

    register_component(container, LRScheduler, TRI_STAGE_STEPS, TriStageStepsConfig, create)
