"""The closing line of a run: whether units became better from round to round, in numbers that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hubert_plugin.refinement.choice import layer_values
from hubert_plugin.refinement.config import MFCC
from hubert_plugin.refinement.units import num_units
from hubert_plugin.refinement.workshop import Workshop


def summarize(shop: Workshop) -> list[str]:
    """Compare the best layers of all rounds with MFCC, and with the units they learned from, by PNMI, at the largest
    number of units that all were measured at; nothing where phone times are not known."""
    config = shop.config

    analyses: dict[str, Mapping[str, Any]] = {}

    for idx in range(len(config.rounds)):
        name = config.round_name(idx)

        try:
            analyses[name] = json.loads((shop.out / name / "analyze/analysis.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []

    wanted = num_units(config.units_of(len(config.rounds) - 1))

    sizes = set.intersection(*(_sizes(a) for a in analyses.values()))

    if not sizes:
        return []

    size = wanted if wanted in sizes else max(sizes)

    parts: list[str] = []

    for name, analysis in analyses.items():
        values = layer_values(analysis, size)

        if not values:
            return []

        if not parts and (mfcc := _mfcc(analysis, size)) is not None:
            parts.append(f"MFCC {mfcc:.3f}")

        best = max(values, key=lambda space: values[space])

        learned_from = _labels(analysis, size)

        units = "" if learned_from is None else f", from units of {learned_from:.3f}"

        parts.append(f"{name} {values[best]:.3f} ({best}{units})")

    return [f"PNMI of the best layers at K = {size}, on the validation split: {', '.join(parts)}."]


def _sizes(analysis: Mapping[str, Any]) -> set[int]:
    return {int(k) for space in analysis.get("spaces", {}).values() for k in space.get("units", {})}


def _mfcc(analysis: Mapping[str, Any], size: int) -> float | None:
    value = analysis.get("spaces", {}).get(MFCC, {}).get("units", {}).get(str(size), {}).get("pnmi")

    return float(value) if isinstance(value, (int, float)) else None


def _labels(analysis: Mapping[str, Any], size: int) -> float | None:
    """Return the PNMI of the label set that a round learned from, if it has one and of that size."""
    found = [values.get("quality") or {} for values in analysis.get("label_sets", {}).values()]

    if len(found) != 1 or found[0].get("num_units") != size:
        return None

    value = found[0].get("pnmi")

    return float(value) if isinstance(value, (int, float)) else None
