"""Measures against the layer, in the form of the HuBERT paper's figure 2: of one round by number of units, and of all
rounds side by side, with MFCC as dashed lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hubert_plugin.analysis.page.axes import show
from hubert_plugin.analysis.page.data import Baseline, Round, SpaceQuality, SpaceScore
from hubert_plugin.analysis.page.figures import Table, figure, missing_figure
from hubert_plugin.analysis.page.markup import Markup
from hubert_plugin.analysis.page.svg import Chart, Series

MEASURES: Final = (
    ("pnmi", "PNMI", "PNMI"),
    ("phone_purity", "Phone purity", "share of frames"),
    ("cluster_purity", "Cluster purity", "share of frames"),
)
"""Fields of :class:`SpaceQuality`, their names, and what their axes say."""

_SIZE: Final = (560, 300)

_SMALL: Final = (400, 280)


def layer_of(space: str) -> int | None:
    """Return the layer of a space such as ``L6``; ``None`` of another."""
    return int(space[1:]) if space[:1] == "L" and space[1:].isdigit() else None


def best(qualities: Iterable[SpaceQuality], num_clusters: int) -> SpaceQuality | None:
    """Return what has the highest PNMI at a number of units; ``None`` where PNMI is not known."""
    measured = [q for q in qualities if q.num_clusters == num_clusters and q.pnmi is not None]

    return max(measured, key=lambda q: q.pnmi or 0.0) if measured else None


def quality_charts(round_: Round, baseline: Baseline, criterion_name: str) -> list[Markup]:
    """Return the quality of units against the layer, a line for each K: the form of the paper's figure 2."""
    charts = [
        _quality_chart(round_.quality, baseline.quality, *measure)
        or missing_figure(measure[1], "no phone times, or no analysis of this round")
        for measure in MEASURES
    ]

    if any(q.criterion is not None for q in round_.quality):
        chart = _quality_chart(
            round_.quality, baseline.quality, "criterion", "Without phone times", criterion_name or "criterion"
        )

        charts += [chart] if chart else []

    for title, scores, mfcc, label, scale in (
        ("ABX error", round_.abx, baseline.abx, "error (%)", 100.0),
        ("Correlation with words and phones", round_.cca, baseline.cca, "PWCCA", 1.0),
    ):
        if chart := _score_chart(title, scores, mfcc, label, scale):
            charts.append(chart)

    return charts


def comparison_charts(rounds: Sequence[Round], baseline: Baseline) -> list[Markup]:
    """Return PNMI against the layer with a line for each round, at each K that all have; and ABX likewise."""
    charts = []

    measured = [r for r in rounds if any(q.pnmi is not None and layer_of(q.space) is not None for q in r.quality)]

    nums = [{q.num_clusters for q in r.quality if q.pnmi is not None} for r in measured]

    for k in sorted(set.intersection(*nums)) if nums else []:
        lines = {
            r.name: {q.space: (q.pnmi, q.pnmi_std) for q in r.quality if q.num_clusters == k and q.pnmi is not None}
            for r in measured
        }

        mfcc = next((q.pnmi for q in baseline.quality if q.num_clusters == k and q.pnmi is not None), None)

        chart = _layer_chart(f"PNMI of the rounds, K = {k}", MEASURES[0][2], lines, {"MFCC": mfcc}, own_colors=True)

        charts += [chart] if chart else []

    tasks = dict.fromkeys(s.task for r in rounds for s in r.abx)

    for task in tasks:
        errors = {
            r.name: {s.space: (100 * s.value, None) for s in r.abx if s.task == task and s.value is not None}
            for r in rounds
        }

        mfcc = next((100 * s.value for s in baseline.abx if s.task == task and s.value is not None), None)

        chart = _layer_chart(f"ABX error of the rounds, {task}", "error (%)", errors, {"MFCC": mfcc}, own_colors=True)

        charts += [chart] if chart else []

    return charts


def _quality_chart(
    quality: Sequence[SpaceQuality], baseline: Sequence[SpaceQuality], field: str, title: str, y_label: str
) -> Markup | None:
    lines: dict[str, dict[str, tuple[float, float | None]]] = {}

    for k in sorted({q.num_clusters for q in quality}):
        lines[f"K = {k}"] = {
            q.space: (value, q.pnmi_std if field == "pnmi" else None)
            for q in quality
            if q.num_clusters == k and (value := getattr(q, field)) is not None
        }

    mfcc = {f"K = {q.num_clusters}": getattr(q, field) for q in baseline}

    return _layer_chart(title, y_label, lines, mfcc, size=_SMALL)


def _score_chart(
    title: str, scores: Sequence[SpaceScore], baseline: Sequence[SpaceScore], y_label: str, scale: float
) -> Markup | None:
    lines: dict[str, dict[str, tuple[float, float | None]]] = {}

    for s in scores:
        if s.value is not None:
            std = None if s.std is None else scale * s.std

            lines.setdefault(s.task, {})[s.space] = (scale * s.value, std)

    mfcc = {s.task: scale * s.value for s in baseline if s.value is not None}

    return _layer_chart(title, y_label, lines, mfcc, size=_SMALL)


def _layer_chart(
    title: str,
    y_label: str,
    lines: Mapping[str, Mapping[str, tuple[float | None, float | None]]],
    mfcc: Mapping[str, float | None],
    *,
    own_colors: bool = False,
    size: tuple[int, int] = _SIZE,
) -> Markup | None:
    """Return values against layers, with MFCC as dashed lines; ``None`` if there is no value of a layer.

    :param lines: By name of the line, the value and its spread by space.
    :param mfcc: By name of the line it belongs to, MFCC's value.
    :param own_colors: Whether MFCC's lines have colours of their own.
    """
    series, rows, description = [], [], []

    for nr, (name, values) in enumerate(lines.items()):
        points = sorted(
            (layer, value, std)
            for space, (value, std) in values.items()
            if (layer := layer_of(space)) is not None and value is not None
        )

        if not points:
            continue

        series.append(
            Series(
                name=name,
                x=[p[0] for p in points],
                y=[p[1] for p in points],
                spread=[p[2] for p in points],
                color=nr,
                tips=[f"{name}, layer {layer}: {_spread(value, std)}" for layer, value, std in points],
            )
        )

        rows += [[f"layer {layer}", name, _spread(value, std)] for layer, value, std in points]

        low, high = min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])

        description.append(f"{name}: {show(low[1])} (layer {low[0]}) to {show(high[1])} (layer {high[0]})")

    if not series:
        return None

    colors = {s.name: s.color for s in series}

    has_mfcc = False

    for name, baseline in mfcc.items():
        if baseline is None or (not own_colors and name not in colors):
            continue

        has_mfcc = True

        full_name = name if own_colors else f"MFCC, {name}"

        color = 5 if own_colors else colors[name]

        line = _across(full_name if own_colors else "", baseline, color, f"{full_name}: {show(baseline)}")

        series.append(line)
        rows.append(["MFCC", "" if own_colors else name, show(baseline)])
        description.append(f"{full_name}: {show(baseline)}")

    layers = sorted({int(x) for s in series if s.kind != "across" for x in s.x})

    return figure(
        Chart(
            title=title,
            description="; ".join(description) + ".",
            x_label="layer",
            y_label=y_label,
            series=series,
            x_ticks=layers,
            x_names=[str(layer) for layer in layers],
            note="dashed: MFCC" if has_mfcc and not own_colors else None,
            width=size[0],
            height=size[1],
        ),
        Table(["features", "line", title], rows),
    )


def _across(name: str, value: float, color: int, tip: str) -> Series:
    return Series(name=name, x=[0], y=[value], color=color, kind="across", tips=[tip])


def _spread(value: float, std: float | None) -> str:
    return show(value) if std is None else f"{show(value)} ± {show(std)}"
