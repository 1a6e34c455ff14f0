"""What a unit model's options say of its label sets, before it is fitted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubert_plugin.refinement.config import UnitsSection

_SIZES: dict[str, Any] = {
    "kmeans": 100,
    "kmeans_ensemble": [50, 100, 500],
    "product": 100,
    "hierarchy": [1000, 500, 250, 125, 50, 25],
}
"""The defaults of `num_clusters`."""


def label_set_names(units: UnitsSection, unit_model: Path | None = None) -> list[str] | None:
    """Return the names of the label sets, the one that counts first; ``None`` if only the fitted model tells.

    :param unit_model: The fitted model, which is asked where another package's kind of units is named.
    """
    prefix = str(units.config.get("label_set", "pq" if units.name == "product" else "km"))

    sizes = units.config.get("num_clusters", _SIZES.get(units.name))

    match units.name:
        case "kmeans":
            return [prefix]
        case "kmeans_ensemble" | "hierarchy" if isinstance(sizes, Sequence):
            return [f"{prefix}{k}" for k in sizes]
        case "product":
            subspaces = units.config.get("subspaces") or ("static", "delta", "delta2")

            return [f"{prefix}_{name}" for name in subspaces]  # type: ignore[attr-defined]

    return None if unit_model is None else _stored_names(unit_model)


def num_units(units: UnitsSection) -> int | None:
    """Return the size of the largest label set; ``None`` if the options do not tell."""
    sizes = units.config.get("num_clusters", _SIZES.get(units.name))

    if isinstance(sizes, Sequence):
        return max((k for k in sizes if isinstance(k, int)), default=None)

    return sizes if isinstance(sizes, int) else None


def describe_units(units: UnitsSection) -> str:
    """Say in words what is fitted."""
    names = {"kmeans": "k-means", "kmeans_ensemble": "k-means ensemble", "product": "product quantizer"}

    sizes = units.config.get("num_clusters", _SIZES.get(units.name))

    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        sizes = ", ".join(map(str, sizes))

    name = names.get(units.name, units.name)

    return name if sizes is None else f"{name}, K = {sizes}"


def _stored_names(path: Path) -> list[str] | None:
    """Return the label sets that the header of a unit model tells."""
    try:
        with path.open("rb") as fp:
            header = json.loads(fp.read(int.from_bytes(fp.read(8), "little")))

        record = json.loads(next(v for v in header["__metadata__"].values() if v.startswith("{")))

        return [str(s["name"]) for s in record["label_sets"]]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, AttributeError):
        return None
