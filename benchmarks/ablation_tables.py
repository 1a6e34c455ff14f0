"""The cells of the ablations, their tables, and what agrees with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOISE = 0.004
"""PNMI that other seeds of k-means move a number by on this corpus: what differs by less is called equal."""


@dataclass(frozen=True)
class Units:
    """How labels are made."""

    name: str

    options: tuple[str, ...]
    """Options of ``cluster``."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    name: str

    title: str

    tables: tuple[str, ...]

    units: Units

    labels: tuple[str, ...]

    options: tuple[str, ...] = ()
    """Options of ``pretrain``."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper's numbers say: the first is better than the second."""

    text: str

    better: str

    worse: str

    paper: str
    """The paper's numbers."""


# The papers' MFCC are as they are. The demo corpus needs them normalised in each utterance (benchmarks/README.md), and
# `pretrain` makes its labels so.
ENSEMBLE = Units(
    "mfcc_ensemble",
    (
        "features.name=mfcc",
        "features.config={rate: 100, utterance_norm: mean_variance}",
        "units.name=kmeans_ensemble",
        "units.config.label_set=km",
        "units.config.num_clusters=[50,100,500]",
    ),
)

PRODUCT = Units(
    "mfcc_product",
    (
        "features.name=mfcc",
        "features.config={rate: 100, splice: 3, utterance_norm: mean_variance}",
        "units.name=product",
        "units.config.label_set=pq",
        "units.config.num_clusters=100",
    ),
)

HIERARCHY = Units(
    "mfcc_hierarchy",
    (
        "features.name=mfcc",
        "features.config={rate: 100, utterance_norm: mean_variance}",
        "units.name=hierarchy",
        "units.config.label_set=km",
        "units.config.num_clusters=[100,50,25]",
    ),
)

SIZES = (50, 100, 500)

ALPHAS = ("1", "0.5", "0")

CODEBOOKS = ("pq_static", "pq_delta", "pq_delta2")

MIXED = "criterion.config.alpha=0.5"
"""The other tables have the paper's alpha of 1 there. With it, a toy model does not leave the plateau of its loss in a
thousand updates (docs/analysis.md), so that nothing could be compared."""


def alpha_cell(k: int, alpha: str) -> Cell:
    return Cell(
        f"k{k}_alpha{alpha}",
        f"k-means, K = {k}, alpha = {alpha}",
        ("V", "VI", "MS") if alpha == "0.5" and k == 100 else ("V",),
        ENSEMBLE,
        (f"km{k}",),
        (f"criterion.config.alpha={alpha}",),
    )


def mixed_cell(name: str, title: str, units: Units, labels: tuple[str, ...]) -> Cell:
    return Cell(name, title, ("VI",), units, labels, (MIXED,))


MULTICLUSTER = ("model.config_overrides.head_layers=spread", "model.config_overrides.num_dropped_heads=1")

CELLS: tuple[Cell, ...] = (
    *(alpha_cell(k, alpha) for k in SIZES for alpha in ALPHAS),
    mixed_cell("ensemble_50_100", "ensemble {50, 100}", ENSEMBLE, ("km50", "km100")),
    mixed_cell("ensemble_50_100_500", "ensemble {50, 100, 500}", ENSEMBLE, ("km50", "km100", "km500")),
    *(mixed_cell(f"product_{nr}", f"product codes, {name[3:]}", PRODUCT, (name,)) for nr, name in enumerate(CODEBOOKS)),
    mixed_cell("product_012", "product codes, all three", PRODUCT, CODEBOOKS),
    Cell(
        "multicluster",
        "nested units 25, 50, 100 on three layers",
        ("MS",),
        HIERARCHY,
        ("km100", "km50", "km25"),
        (MIXED, *MULTICLUSTER),
    ),
    Cell(
        "ms_hubert",
        "MS-HuBERT: the same with swap",
        ("MS",),
        HIERARCHY,
        ("km100", "km50", "km25"),
        (MIXED, *MULTICLUSTER, "model.config_overrides.swap=true"),
    ),
)

PAPER_WER: Mapping[str, float] = {
    # Word error rates on dev-other, 100,000 updates, fine-tuned on 10 hours (arXiv:2106.07447). Those of Table VI are
    # with alpha = 1.
    "k100_alpha1": 17.86,
    "k100_alpha0.5": 29.57,
    "k100_alpha0": 96.37,
    "ensemble_50_100": 17.81,
    "ensemble_50_100_500": 17.56,
    "product_0": 19.26,
    "product_1": 17.64,
    "product_2": 18.46,
    "product_012": 16.73,
}

PAPER_SINGLE = 17.86
"""Table VI: K = 100 alone."""

CLAIMS: tuple[Claim, ...] = (
    Claim("V: masked frames alone are better than both", "k100_alpha1", "k100_alpha0.5", "17.86 < 29.57"),
    Claim("V: both are better than unmasked frames alone", "k100_alpha0.5", "k100_alpha0", "29.57 < 96.37"),
    Claim("V: masked frames alone are better than unmasked alone", "k100_alpha1", "k100_alpha0", "17.86 < 96.37"),
    Claim("VI: {50, 100} is better than K = 100 alone", "ensemble_50_100", "k100_alpha0.5", "17.81 < 17.86"),
    Claim("VI: {50, 100, 500} is better than {50, 100}", "ensemble_50_100_500", "ensemble_50_100", "17.56 < 17.81"),
    Claim("VI: three codebooks are better than the statics'", "product_012", "product_0", "16.73 < 19.26"),
    Claim("VI: three codebooks are better than the deltas'", "product_012", "product_1", "16.73 < 17.64"),
    Claim("VI: three codebooks are better than the delta-deltas'", "product_012", "product_2", "16.73 < 18.46"),
    Claim("VI: three codebooks are better than K = 100", "product_012", "k100_alpha0.5", "16.73 < 17.86"),
    Claim("VI: three codebooks are better than {50, 100, 500}", "product_012", "ensemble_50_100_500", "16.73 < 17.56"),
    Claim("MS: MS-HuBERT is better than HuBERT", "ms_hubert", "k100_alpha0.5", "10 h: 8.8 < 9.4 on test-other"),
)


def render(results: Mapping[str, Mapping[str, Any]], num_steps: int, eval_clusters: int) -> str:
    """Return the tables of the cells that are known, and what agrees with the paper."""
    if not results:
        return "No cell is known."

    mfcc = next(iter(results.values()))["mfcc_pnmi"]

    parts = [
        f"{num_steps:,} updates each. PNMI of the best layer at K = {eval_clusters} on new speakers (MFCC: "
        f"{mfcc:.3f}), the layer, and accuracy on masked frames of the first label set.",
    ]

    for title, table in (
        ("Table V: what is predicted", alpha_table),
        ("Table VI: ensembles and product codes, alpha = 0.5", ensemble_table),
        ("MS-HuBERT, shrunken, alpha = 0.5", ms_table),
    ):
        if rows := table(results):
            parts.append(f"{title}\n\n{markdown(rows)}")

    if lines := [line for claim in CLAIMS if (line := judge(claim, results)) is not None]:
        parts.append("Against the paper (word error rates: lower is better)\n\n" + "\n".join(lines))

    return "\n\n".join(parts)


def alpha_table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    rows = []

    for k in SIZES:
        cells = [results.get(f"k{k}_alpha{alpha}") for alpha in ALPHAS]

        if known := [c for c in cells if c is not None]:
            label_pnmi = known[0]["label_pnmi"][f"km{k}"]

            rows.append([str(k), f"{label_pnmi:.3f}", *(show(c) for c in cells)])

    if not rows:
        return []

    paper = [[f"paper, K = {k}", "", *(show_paper(f"k{k}_alpha{a}") for a in ALPHAS)] for k in (100,)]

    return [["K", "PNMI of the labels", *(f"alpha = {a}" for a in ALPHAS)], *rows, *paper]


def ensemble_table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    names = [c.name for c in CELLS if "VI" in c.tables]

    return named_table(names, results) if any(n in results for n in names if n != "k100_alpha0.5") else []


def ms_table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    names = [c.name for c in CELLS if "MS" in c.tables]

    return named_table(names, results) if any(n in results for n in names if n != "k100_alpha0.5") else []


def named_table(names: Sequence[str], results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    titles = {c.name: c.title for c in CELLS}

    rows = []

    for name in names:
        if (result := results.get(name)) is None:
            continue

        labels = ", ".join(f"{pnmi:.3f}" for pnmi in result["label_pnmi"].values())

        paper = f"{PAPER_SINGLE:.2f}" if name == "k100_alpha0.5" else show_paper(name)

        rows.append([titles[name], labels, show(result), paper])

    return [["units", "PNMI of the labels", "best layer", "paper: WER"], *rows]


def judge(claim: Claim, results: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say whether the numbers agree with a claim; ``None`` if a cell is not known. Where recognisers were trained,
    their character error rates decide nothing: they are shown, and PNMI decides."""
    if claim.better not in results or claim.worse not in results:
        return None

    a, b = results[claim.better]["best_pnmi"], results[claim.worse]["best_pnmi"]

    if abs(a - b) < NOISE:
        verdict = "too close to tell"
    else:
        verdict = "agrees" if a > b else "does not agree"

    return f"- {claim.text} (paper: {claim.paper}): {verdict} (PNMI {a:.3f} against {b:.3f})"


def show(result: Mapping[str, Any] | None) -> str:
    """Return a cell's numbers."""
    if result is None:
        return "not run"

    accuracy = next(iter(result["masked_accuracy"].values()))

    text = f"{result['best_pnmi']:.3f} ({result['best_layer']}), {100 * accuracy:.1f} %"

    cer = result.get("cer")

    return text if cer is None else f"{text}, CER {cer:.1f} %"


def show_paper(name: str) -> str:
    return f"WER {PAPER_WER[name]:.2f}" if name in PAPER_WER else "–"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]

    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])
