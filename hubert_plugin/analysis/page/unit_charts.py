"""What the units of a label set are like: sizes of clusters, and how long a unit lasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hubert_plugin.analysis.page.axes import show, show_percent
from hubert_plugin.analysis.page.data import UnitSummary
from hubert_plugin.analysis.page.figures import Table, figure, missing_figure
from hubert_plugin.analysis.page.markup import Markup
from hubert_plugin.analysis.page.svg import Chart, Series

_WIDTH: Final = 400

_HEIGHT: Final = 280


def unit_charts(units: UnitSummary) -> list[Markup]:
    """Return the sizes of clusters and the durations of units."""
    total, num_runs = sum(units.counts), sum(units.run_lengths)

    charts = []

    if total:
        order = sorted(range(len(units.counts)), key=lambda u: (-units.counts[u], u))

        shares = [units.counts[u] / total for u in order]

        even = 1 / len(order)

        charts.append(
            figure(
                Chart(
                    title=f"Cluster sizes, {units.name}",
                    description=f"The share of frames of each of {len(order)} units, the largest first. The largest "
                    f"has {show_percent(shares[0])}; equally large ones would have {show_percent(even, 2)}.",
                    x_label="units by size",
                    y_label="frames (%)",
                    series=[
                        Series(
                            name="",
                            x=list(range(1, len(order) + 1)),
                            y=[100 * s for s in shares],
                            kind="bars" if len(order) <= 120 else "area",
                            tips=[f"unit {u}: {show_percent(s, 2)}" for u, s in zip(order, shares, strict=True)],
                        ),
                        Series(
                            name="if all were equally large",
                            x=[0],
                            y=[100 * even],
                            color=1,
                            kind="across",
                            tips=[show_percent(even, 2)],
                        ),
                    ],
                    whole_x=True,
                    from_zero=True,
                    width=_WIDTH,
                    height=_HEIGHT,
                ),
                Table(
                    ["unit", "units counted", "share", "mean stretch"],
                    [
                        [u, f"{units.counts[u]:,}", show_percent(s, 2), _milliseconds(_at(units.unit_run_seconds, u))]
                        for u, s in zip(order, shares, strict=True)
                    ],
                ),
            )
        )

    if num_runs:
        charts.append(_run_chart(units, num_runs))

    points = [
        (100 * n / total, 1000 * seconds, u)
        for u, (n, seconds) in enumerate(zip(units.counts, units.unit_run_seconds, strict=False))
        if seconds is not None
    ]

    if points:
        charts.append(
            figure(
                Chart(
                    title=f"Durations by unit, {units.name}",
                    description="For each unit its share of frames and the mean length of its stretches.",
                    x_label="frames (%)",
                    y_label="mean stretch (ms)",
                    series=[
                        Series(
                            name="",
                            x=[p[0] for p in points],
                            y=[p[1] for p in points],
                            kind="marks",
                            color=2,
                            tips=[f"unit {u}: {y:.0f} ms, {x:.2f} % of frames" for x, y, u in points],
                        )
                    ],
                    from_zero=True,
                    x_from_zero=True,
                    width=_WIDTH,
                    height=_HEIGHT,
                ),
                Table(["unit", "frames (%)", "mean stretch (ms)"], [[u, f"{x:.2f}", f"{y:.0f}"] for x, y, u in points]),
            )
        )

    return charts or [missing_figure(f"Units, {units.name}", "there are none")]


def _run_chart(units: UnitSummary, num_runs: int) -> Markup:
    lengths = [1000 * (i + 1) / units.rate for i in range(len(units.run_lengths))]

    names = [f"{length:.0f}" for length in lengths]

    names[-1] = f"≥ {names[-1]}"

    shares = [n / num_runs for n in units.run_lengths]

    mean = _milliseconds(units.mean_run_seconds)

    every = max(1, -(-len(lengths) // 5))

    ticks = list(range(len(lengths) - 1, -1, -every))[::-1]

    return figure(
        Chart(
            title=f"Stretches of one unit, {units.name}",
            description=f"How long the same unit lasts, by the share of stretches. On average {mean}.",
            x_label="length (ms)",
            y_label="stretches (%)",
            series=[
                Series(
                    name="",
                    x=list(range(len(lengths))),
                    y=[100 * s for s in shares],
                    kind="bars",
                    tips=[f"{n} ms: {show_percent(s)} of stretches" for n, s in zip(names, shares, strict=True)],
                )
            ],
            x_ticks=ticks,
            x_names=[names[t] for t in ticks],
            from_zero=True,
            width=_WIDTH,
            height=_HEIGHT,
        ),
        Table(
            ["length (ms)", "stretches", "share"],
            [[n, f"{c:,}", show_percent(s)] for n, c, s in zip(names, units.run_lengths, shares, strict=True)],
        ),
    )


def _milliseconds(seconds: float | None) -> str:
    return show(None) if seconds is None else f"{1000 * seconds:.0f} ms"


def _at(values: Sequence[float | None], idx: int) -> float | None:
    return values[idx] if idx < len(values) else None
