"""What changes lead to: a plan's states of steps that read what will, or may, be made again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, final

from hubert_plugin.refinement.config import UnitsSection
from hubert_plugin.refinement.judge import Judgement
from hubert_plugin.refinement.record import Fingerprint, Record
from hubert_plugin.refinement.settings import apply_overrides, flow_yaml
from hubert_plugin.refinement.steps import Step
from hubert_plugin.refinement.units import label_set_names, num_units
from hubert_plugin.refinement.workshop import UNKNOWN


@final
class Outlook:
    """Is told of all steps in their order."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, bool]] = {}
        """By key, steps that will or may be done (again), in order: title, and whether what they leave will surely be
        another result than the one that is there."""

    def state(
        self, step: Step, reads: Collection[str], judgement: Judgement, now: Fingerprint, record: Record | None
    ) -> str:
        """Return what a run would do with a step, and why; the nearest cause is named.

        :param reads: The steps whose results it reads.
        """
        causes = [found for key, found in self._open.items() if key in reads]

        sure = [title for title, is_sure in causes if is_sure]

        if judgement.action != "keep" or causes:
            self._open[step.key] = step.title, bool(sure) or _has_other_units(step, now, record)

        match judgement.action:
            case "keep" if sure:
                return f"again, because {sure[-1]} will give another result"
            case "keep":
                return f"done; again if {causes[-1][0]} gives another result" if causes else "done"
            case "run":
                return f"to do: {judgement.reason}" if judgement.reason else "to do"
            case "redo" if UNKNOWN in now.inputs.values():
                return "again, because what it reads is not there"

        return f"again, because {judgement.reason}"


def _has_other_units(step: Step, now: Fingerprint, record: Record | None) -> bool:
    """Return whether a step fits units of another kind, or of other label sets, than those that are there."""
    if step.verb != "cluster" or record is None:
        return False

    units, before = (_units_of(f.settings) for f in (now, record.fingerprint))

    return (units.name, label_set_names(units), num_units(units)) != (
        before.name,
        label_set_names(before),
        num_units(before),
    )


def _units_of(settings: Mapping[str, Any]) -> UnitsSection:
    items = [f"{k}={flow_yaml(v)}" for k, v in settings.items() if k.startswith("units.config.")]

    nested = apply_overrides({}, items).get("units", {})

    return UnitsSection(name=str(settings.get("units.name")), config=nested.get("config", {}))
