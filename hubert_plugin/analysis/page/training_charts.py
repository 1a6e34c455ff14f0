"""The curves of a training: losses and accuracies over the updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hubert_plugin.analysis.page.axes import show, show_percent
from hubert_plugin.analysis.page.data import Curve
from hubert_plugin.analysis.page.figures import Table, figure, missing_figure
from hubert_plugin.analysis.page.markup import Markup
from hubert_plugin.analysis.page.svg import Chart, Series


def training_charts(curves: Sequence[Curve]) -> list[Markup]:
    """Return the curves of losses and accuracies."""
    return [
        _curve_chart(
            curves,
            "Loss",
            {"masked_loss_bits": "masked frames", "unmasked_loss_bits": "unmasked frames"},
            "bits per frame",
            show,
        )
        or missing_figure("Loss", "the training recorded none"),
        _curve_chart(
            curves,
            "Accuracy of predicted units",
            {"masked_accuracy": "masked frames", "unmasked_accuracy": "unmasked frames"},
            "frames predicted right (%)",
            show_percent,
            scale=100.0,
        )
        or missing_figure("Accuracy of predicted units", "the training recorded none"),
    ]


def _curve_chart(
    curves: Sequence[Curve],
    title: str,
    metrics: Mapping[str, str],
    y_label: str,
    show_value: Callable[[float | None], str],
    *,
    scale: float = 1.0,
) -> Markup | None:
    series, rows, description = [], [], []

    for nr, (metric, name) in enumerate(metrics.items()):
        for curve in curves:
            points = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if v is not None]

            if curve.metric != metric or not points:
                continue

            is_train = curve.split == "train"

            full_name = f"{'training' if is_train else 'validation'}, {name}"

            series.append(
                Series(
                    name=full_name,
                    x=[s for s, _ in points],
                    y=[scale * v for _, v in points],
                    color=2 * nr + (not is_train),
                    kind="thin" if is_train else "line",
                    tips=[f"{full_name}: {show_value(v)} after {s:,} updates" for s, v in points],
                )
            )

            description.append(f"{full_name}: from {show_value(points[0][1])} to {show_value(points[-1][1])}")

            rows += [[f"{s:,}", full_name, show_value(v)] for s, v in zip(curve.steps, curve.values, strict=True)]

    if not series:
        return None

    return figure(
        Chart(
            title=title,
            description="; ".join(description) + ".",
            x_label="updates",
            y_label=y_label,
            series=series,
            whole_x=True,
            from_zero=scale != 1.0,
        ),
        Table(["updates", "curve", title.lower()], rows),
    )
