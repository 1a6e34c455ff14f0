"""A run that goes on follows the learning rates and the optimizer's options of its configuration.

Checkpoints hold the state of schedule and optimizer whole, their options too. fairseq2's trainer loads all of it: a run
that was to go on for more steps would do so at the rate with which the old schedule ended, often 0, and other options
would be passed over without a word.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairseq2.logging import log
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.optim.lr_schedulers.lr_scheduler import AbstractLRScheduler
from torch.optim import Optimizer

from hubert_plugin.errors import ConfigError

_NOT_OPTIONS: Final = (
    "params",
    "param_names",
    "is_matrices",
    # Where the schedule stands, and what it starts from.
    "lr",
    "initial_lr",
    # How PyTorch computes: the state has been made for that.
    "foreach",
    "fused",
    "capturable",
    "differentiable",
)
"""Keys of a group of parameters that are not options that a user can change while a run pauses."""


def keep_configured_rates(optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Let ``optimizer`` and ``schedule`` take only their position and averages from a checkpoint, but their options
    from the configuration. What changes by that is logged; where nothing does, what was loaded stays to the last bit.

    The checkpoint's schedule must be loaded before its optimizer, as fairseq2 does.

    Schedules that are not fairseq2's own kind cannot be told from their position: they stay as loaded.
    """
    groups = copy.deepcopy([_options(group) for group in optimizer.param_groups])

    options = copy.deepcopy(_schedule_options(schedule))

    def restore(loaded: Optimizer) -> None:
        changes = _set_group_options(loaded, groups)

        if isinstance(schedule, AbstractLRScheduler):
            changes = _set_schedule_options(schedule, options) + changes

        if changes:
            log.info(
                "The checkpoint was trained with other options; training goes on with those of the configuration: {}.",
                ", ".join(changes),
            )

    optimizer.register_load_state_dict_post_hook(restore)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NOT_OPTIONS}


def _schedule_options(schedule: LRScheduler) -> dict[str, Any]:
    # What PyTorch counts steps and calls with begins with an underscore.
    return {key: value for key, value in schedule.state_dict().items() if key != "last_epoch" and key[0] != "_"}


def _set_group_options(optimizer: Optimizer, configured: Sequence[Mapping[str, Any]]) -> list[str]:
    """:raises ConfigError: The state has not what an option needs."""
    changes = []

    for idx, (group, options) in enumerate(zip(optimizer.param_groups, configured, strict=True)):
        for key, value in options.items():
            loaded = group.get(key)

            if _are_equal(loaded, value):
                continue

            if key == "amsgrad" and value:
                raise ConfigError(
                    "`optimizer.config.amsgrad` is true, but the run was begun without it, and its checkpoint does not "
                    "hold the maxima that it needs. Leave it out, or begin a run in another folder."
                )

            group[key] = value

            where = f" of parameter group {idx}" if len(configured) > 1 else ""

            changes.append(_describe(f"{key}{where}", loaded, value))

    return changes


def _set_schedule_options(schedule: AbstractLRScheduler, configured: Mapping[str, Any]) -> list[str]:
    loaded = _schedule_options(schedule)

    changes = [
        _describe("learning rate" if key == "base_lrs" else key, loaded.get(key), value)
        for key, value in configured.items()
        if not _are_equal(loaded.get(key), value)
    ]

    # Another kind of schedule has other options, which loading leaves beside the configured ones.
    for key in loaded.keys() - configured.keys():
        delattr(schedule, key)

    schedule.__dict__.update(copy.deepcopy(dict(configured)))

    groups = schedule.optimizer.param_groups

    rates = [float(rate) for rate in schedule._compute_lrs()]

    loaded_rates = [float(group["lr"]) for group in groups]

    # Computed once more, on another machine perhaps, the same schedule may differ in its last bit.
    if all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(loaded_rates, rates, strict=True)):
        rates = loaded_rates
    else:
        changes.append(_describe("learning rate of the next step", loaded_rates, rates))

    for group, base, rate in zip(groups, schedule.base_lrs, rates, strict=True):
        group["initial_lr"], group["lr"] = base, rate

    # What the trainer reports of the next step.
    schedule._last_lr = list(rates)

    return changes


def _are_equal(a: object, b: object) -> bool:
    return _plain(a) == _plain(b)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _describe(name: str, old: object, new: object) -> str:
    return f"{name} {_in_words(new)} (was {_in_words(old)})"


def _in_words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        # One for each group of parameters, mostly all the same.
        items = [_in_words(item) for item in value]

        return items[0] if len(items) == 1 else f"[{', '.join(items)}]"

    return f"{value:g}" if isinstance(value, float) else str(value).lower()
