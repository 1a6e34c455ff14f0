"""Which layer the next round clusters: decided by measure, and said with the numbers.

In this order, unless the configuration says otherwise: PNMI with phones, where phone times are known (HuBERT paper,
figure 2); ABX error, where there are item files; where there is neither, the view consistency of
``analysis/unsupervised.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.refinement.config import AUTO, ChoiceSection

CHOICE_FILE: Final = "choice.json"

_NAMES: Final = {"pnmi": "PNMI", "abx": "ABX error", "unsupervised": "view consistency"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A layer, and why."""

    layer: int

    measure: str
    """``pnmi``, ``abx`` or ``unsupervised``."""

    reason: str
    """A sentence with the numbers."""

    num_clusters: int | None
    """The number of units that the layers were compared at; ``None`` for ABX, which needs none."""

    values: Mapping[str, float]
    """The measure by layer (``L3``)."""

    source: str
    """The step that measured."""

    @property
    def name(self) -> str:
        """The name of the measure for people."""
        return _NAMES[self.measure]

    def save(self, folder: Path) -> None:
        """Write ``choice.json``, if it is not there as it should be."""
        text = json.dumps(asdict(self), indent=2) + "\n"

        path = folder / CHOICE_FILE

        try:
            if path.read_text(encoding="utf-8") == text:
                return
        except (OSError, ValueError):
            pass

        write_text_atomic(path, text)


def choose_layer(
    analysis: Mapping[str, Any], section: ChoiceSection, *, num_clusters: int | None, source: str
) -> Choice:
    """Return the best layer of an ``analysis.json``.

    Of layers with equal values the lowest is taken.

    :param num_clusters: The number of units of the round to come: layers are compared at this or, if it was not
        measured, the next lower (else the lowest) one.
    :raises ConfigError: There is nothing to choose by.
    """
    spaces = {k: v for k, v in analysis.get("spaces", {}).items() if _layer(k) is not None}

    if section.layers is not None:
        spaces = {k: v for k, v in spaces.items() if _layer(k) in section.layers}

        if not spaces:
            raise ConfigError(
                f"`choice.layers` allows {section.layers}, but {source} measured "
                f"{', '.join(k for k in analysis.get('spaces', {}) if _layer(k) is not None) or 'no layer'}."
            )

    measures = [section.measure] if section.measure != AUTO else ["pnmi", "abx", "unsupervised"]

    for measure in measures:
        if measure == "abx":
            values, k = _abx(spaces), None
        else:
            k = _nearest(_sizes(spaces), num_clusters)

            values = _of_units(spaces, k, "pnmi" if measure == "pnmi" else "criterion")

        if values:
            return _decide(measure, values, k, source, num_clusters, forced=section.measure != AUTO)

    raise ConfigError(
        f"No layer can be chosen by {' or '.join(_NAMES[m] for m in measures)}: {source}/analysis.json holds no such "
        "numbers. Give phone times (`dataset.alignment`) or item files (`dataset.items`), or name the layer "
        "(`features.layer`)."
    )


def layer_values(analysis: Mapping[str, Any], num_clusters: int) -> dict[str, float]:
    """Return the PNMI of all layers at a number of units; empty where phone times are not known."""
    spaces = {k: v for k, v in analysis.get("spaces", {}).items() if _layer(k) is not None}

    return _of_units(spaces, num_clusters, "pnmi")


def _decide(
    measure: str, values: Mapping[str, float], k: int | None, source: str, wanted: int | None, *, forced: bool
) -> Choice:
    lower_is_better = measure == "abx"

    order = sorted(values, key=lambda s: (values[s] if lower_is_better else -values[s], _layer(s)))

    best = order[0]

    def show(space: str) -> str:
        return f"{100 * values[space]:.2f} %" if measure == "abx" else f"{values[space]:.3f}"

    at = "" if k is None else f" at K = {k}"

    why = {
        "pnmi": "phone times are known",
        "abx": "there are item files, but no phone times",
        "unsupervised": "neither phone times nor item files are known",
    }[measure]

    why = "as `choice.measure` says" if forced else f"since {why}"

    others = ", ".join(f"{s} {show(s)}" for s in sorted(values, key=lambda s: _layer(s) or 0))

    reason = (
        f"Layer {_layer(best)} has the {'lowest' if lower_is_better else 'highest'} {_NAMES[measure]}{at}, "
        f"{show(best)} ({others}); decided by {_NAMES[measure]}, {why}."
    )

    if k is not None and wanted is not None and k != wanted:
        reason += f" The round has {wanted} units, which were not measured."

    layer = _layer(best)

    assert layer is not None

    return Choice(layer=layer, measure=measure, reason=reason, num_clusters=k, values=dict(values), source=source)


def _layer(space: str) -> int | None:
    return int(space[1:]) if space[:1] == "L" and space[1:].isdecimal() else None


def _sizes(spaces: Mapping[str, Any]) -> list[int]:
    return sorted({int(k) for v in spaces.values() for k in v.get("units", {})})


def _nearest(sizes: Sequence[int], wanted: int | None) -> int | None:
    if not sizes:
        return None

    if wanted is None:
        return sizes[-1]

    return max((k for k in sizes if k <= wanted), default=sizes[0])


def _of_units(spaces: Mapping[str, Any], k: int | None, name: str) -> dict[str, float]:
    if k is None:
        return {}

    found = {space: _number(v.get("units", {}).get(str(k), {}).get(name)) for space, v in spaces.items()}

    return {space: value for space, value in found.items() if value is not None}


def _abx(spaces: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean error over the tasks that all layers have."""
    tasks = [set(v.get("abx", {})) for v in spaces.values()]

    common = sorted(set.intersection(*tasks)) if tasks else []

    result = {}

    for space, v in spaces.items():
        errors = [e for t in common if (e := _number(v["abx"][t].get("error"))) is not None]

        if errors:
            result[space] = fmean(errors)

    return result


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None

    return float(value)
