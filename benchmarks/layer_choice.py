"""How well the criteria that need no phone times agree with PNMI: which layer they would choose, and what that costs.

    fairseq2 recipe hubert analyze out/a --config model=RUN_A criterion=true trials=3 'layers=[0,1,2,3,4]'
    python -m benchmarks.layer_choice out/*/analysis.json

reads what ``analyze`` measured of some models, and prints for each number of units: the rank correlation of each
criterion with PNMI over the layers of one model (mean over models), over all layers of all models, and the *regret*:
how much PNMI the layer chosen lacks to the best one, beside that of a layer taken at random.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr

from benchmarks.ablation_tables import markdown

CRITERIA = ("criterion", "persistence", "agreement")

REGRETS = ("regret", "random_regret")

NAMES = {"criterion": "view consistency", "persistence": "persistence", "agreement": "agreement of fits"}


def main() -> None:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False, prog="python -m benchmarks.layer_choice")

    parser.add_argument("analyses", nargs="+", type=Path, help="`analysis.json` files, one for each model")
    parser.add_argument("--json", type=Path, help="where to write all numbers")

    args = parser.parse_args()

    models = {str(path.parent): json.loads(path.read_text())["spaces"] for path in args.analyses}

    result = {k: compare(models, k) for k in sizes(models)}

    for k, numbers in result.items():
        print(render(k, numbers), end="\n\n")

    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def sizes(models: Mapping[str, Any]) -> list[str]:
    """Return the numbers of units that all models' layers have."""
    return sorted(
        set.intersection(*(set(s["units"]) for spaces in models.values() for s in spaces.values() if "units" in s)),
        key=int,
    )


def layers_of(spaces: Mapping[str, Any], k: str) -> dict[str, Any]:
    """Return the layers of a model that have a PNMI at a number of units."""
    return {name: s["units"][k] for name, s in spaces.items() if name != "mfcc" and s["units"][k]["pnmi"] is not None}


def compare(models: Mapping[str, Any], k: str) -> dict[str, Any]:
    """Return the layers' numbers, and what each criterion is worth."""
    layers = {model: layers_of(spaces, k) for model, spaces in models.items()}

    worth = {}

    for criterion in CRITERIA:
        known = {
            model: [(u[criterion], u["pnmi"]) for u in units.values()]
            for model, units in layers.items()
            if len(units) > 2 and all(u[criterion] is not None for u in units.values())
        }

        if known:
            worth[criterion] = {
                "within": {model: rank_correlation(pairs) for model, pairs in known.items()},
                "pooled": rank_correlation([p for pairs in known.values() for p in pairs]),
                "regret": fmean(regret(pairs) for pairs in known.values()),
                "random_regret": fmean(random_regret(pairs) for pairs in known.values()),
            }

    return {"layers": layers, "worth": worth}


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Return Spearman's correlation of criterion and PNMI."""
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def regret(pairs: Sequence[tuple[float, float]]) -> float:
    """Return how much PNMI the layer with the highest criterion lacks to the best."""
    return max(pnmi for _, pnmi in pairs) - max(pairs)[1]


def random_regret(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the same of a layer taken at random."""
    return max(pnmi for _, pnmi in pairs) - fmean(pnmi for _, pnmi in pairs)


def render(k: str, numbers: Mapping[str, Any]) -> str:
    layers = [
        [model, name, f"{u['pnmi']:.3f}", *(show(u[c]) for c in CRITERIA)]
        for model, units in numbers["layers"].items()
        for name, u in units.items()
    ]

    worth = [
        [NAMES[c], f"{fmean(w['within'].values()):.2f}", f"{w['pooled']:.2f}", *(f"{w[r]:.4f}" for r in REGRETS)]
        for c, w in numbers["worth"].items()
    ]

    return "\n\n".join(
        (
            f"K = {k}",
            markdown([["model", "layer", "PNMI", *(NAMES[c] for c in CRITERIA)], *layers]),
            markdown([["criterion", "correlation in a model", "over all", "regret", "regret at random"], *worth]),
        )
    )


def show(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
