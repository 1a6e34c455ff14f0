"""Limits of the options of fairseq2's optimizers and schedules: PyTorch checks them late, or never."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fairseq2.recipe.config import (
    AdafactorConfig,
    AdamWConfig,
    CosineAnnealingLRConfig,
    MyleLRConfig,
    PolynomialDecayLRConfig,
    TriStageLRConfig,
)

_NOT_NEGATIVE: Final = ("lr", "eps", "weight_decay", "d")

_SCHEDULES: Final = (CosineAnnealingLRConfig, MyleLRConfig, PolynomialDecayLRConfig, TriStageLRConfig)

_SCHEDULE_NOT_NEGATIVE: Final = ("start_lr", "final_lr", "start_lr_scale", "power", "stage_ratio")


def optimizer_problems(config: object) -> list[str]:
    """Return what is wrong with the options of an optimizer of fairseq2's, those of its groups included."""
    if not isinstance(config, (AdamWConfig, AdafactorConfig)):
        return []

    problems = _group_problems(config, "config")

    for idx, group in enumerate(config.groups):
        problems += _group_problems(group, f"config.groups[{idx}]")

    return problems


def _group_problems(group: Any, where: str) -> list[str]:
    problems = [
        _negative(name, value) for key in _NOT_NEGATIVE for name, value in _numbers(group, key, where) if value < 0.0
    ]

    for name, value in _numbers(group, "betas", where):
        if not 0.0 <= value < 1.0:
            problems.append(f"`{name}` must be at least 0 and below 1, but is {value} instead.")

    for name, value in _numbers(group, "beta2_decay", where):
        if value > 0.0:
            problems.append(f"`{name}` must be 0 or less, but is {value} instead.")

    return problems


def schedule_problems(config: object, final_scale_is_exponent: bool = False) -> list[str]:
    """Return what is wrong with the options of a schedule.

    :param final_scale_is_exponent: It is of three stages, though not fairseq2's own.
    """
    if not isinstance(config, _SCHEDULES) and not final_scale_is_exponent:
        return []

    problems = [
        _negative(name, value)
        for key in _SCHEDULE_NOT_NEGATIVE
        for name, value in _numbers(config, key, "config")
        if value < 0.0
    ]

    falls_exponentially = final_scale_is_exponent or isinstance(config, TriStageLRConfig)

    for name, value in _numbers(config, "final_lr_scale", "config"):
        if falls_exponentially and value <= 0.0:
            problems.append(f"`{name}` must be greater than 0 (the rate falls exponentially), but is {value} instead.")
        elif value < 0.0:
            problems.append(_negative(name, value))

    for name, value in _numbers(config, "cycle_len", "config"):
        if value < 1:
            problems.append(f"`{name}` must be 1 or greater, but is {value} instead.")

    return problems


def _negative(name: str, value: float) -> str:
    return f"`{name}` must not be negative, but is {value} instead."


def _numbers(section: object, key: str, where: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers that ``key`` has; groups may leave an option to the top level."""
    value = getattr(section, key, None)

    if isinstance(value, Sequence) and not isinstance(value, str):
        for idx, item in enumerate(value):
            if isinstance(item, (int, float)):
                yield f"{where}.{key}[{idx}]", item
    elif isinstance(value, (int, float)):
        yield f"{where}.{key}", value
