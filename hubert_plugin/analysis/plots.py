"""Pictures of an analysis. They need matplotlib (``pip install 'fairseq2-hubert[plots]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hubert_plugin.analysis.report import AnalysisReport
from hubert_plugin.analysis.spaces import MFCC
from hubert_plugin.errors import MissingDependencyError
from hubert_plugin.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hubert_plugin.analysis.joint import JointTable

_MAX_COLUMNS: Final = 3

Curves = Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]]
"""By name of the curve, the values and the standard deviations by space."""


def check_plots() -> None:
    """Check that pictures can be drawn.

    :raises MissingDependencyError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "Pictures need matplotlib, which is not installed: `pip install 'fairseq2-hubert[plots]'`."
        )


def save_plots(report: AnalysisReport, folder: Path) -> list[Path]:
    """Draw what the report has: ``quality.png``, the measures against the layer (as the paper's figure 2), and a
    ``joint_*.png`` for each joint table of units and phones that is worth a look: of label sets, and of the best space
    at each number of units.

    :returns: The files that were written.
    :raises MissingDependencyError: matplotlib is not installed.
    :raises StorageError: A file cannot be written.
    """
    check_plots()

    files = []

    if panels := _panels(report):
        files.append(_save(_draw_panels(panels), folder / "quality.png"))

    for name, table in joint_tables(report).items():
        files.append(_save(_draw_joint(name, table), folder / f"{joint_file_name(name)}.png"))

    return files


def joint_tables(report: AnalysisReport) -> dict[str, JointTable]:
    """Return the joint tables that are kept, by name."""
    tables = {name: a.joint for name, a in report.label_sets.items() if a.joint is not None}

    for s in report.spaces:
        if s.space == report.best_space(s.num_clusters) and (joint := s.trials[0].joint) is not None:
            tables[f"{s.space}_{s.num_clusters}"] = joint

    return tables


def joint_file_name(name: str) -> str:
    """Return the name, without suffix, of the files of a joint table: no blanks or brackets are in it."""
    return f"joint_{name.replace(' (unit model)', '_unit_model')}"


def _panels(report: AnalysisReport) -> list[tuple[str, Curves]]:
    """Return the panels: their titles and curves."""
    panels: list[tuple[str, Curves]] = []

    for title, name in (("PNMI", "pnmi"), ("phone purity", "phone_purity"), ("cluster purity", "cluster_purity")):
        curves = {}

        for k in report.nums_clusters:
            spaces = [s for s in report.spaces if s.num_clusters == k]

            values = {s.space: v for s in spaces if (v := s.mean(name)) is not None}

            if values:
                curves[f"K = {k}"] = (values, {s.space: s.std(name) or 0.0 for s in spaces})

        if curves:
            panels.append((title, curves))

    for title, scores, value, std in (
        ("ABX error (%)", report.abx, lambda s: 100 * s.error, lambda s: 0.0),
        ("PWCCA", report.cca, lambda s: s.score, lambda s: s.std),
    ):
        names = dict.fromkeys(name for values in scores.values() for name in values)  # type: ignore[attr-defined]

        curves = {
            name: (
                {space: value(v[name]) for space, v in scores.items() if name in v},  # type: ignore[attr-defined]
                {space: std(v[name]) for space, v in scores.items() if name in v},  # type: ignore[attr-defined]
            )
            for name in names
        }

        if curves:
            panels.append((title, curves))

    return panels


def _draw_panels(panels: Sequence[tuple[str, Curves]]) -> Figure:
    num_columns = min(len(panels), _MAX_COLUMNS)

    num_rows = -(-len(panels) // num_columns)

    figure = _make_figure(4.2 * num_columns, 3.4 * num_rows)

    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()

    for axes in grid[len(panels) :]:
        axes.set_axis_off()

    for axes, (title, curves) in zip(grid, panels, strict=False):
        for nr, (name, (values, stds)) in enumerate(curves.items()):
            # MFCC is no layer: a line across.
            layers = [space for space in values if space != MFCC]

            color = f"C{nr}"

            if layers:
                axes.errorbar(
                    [int(space[1:]) for space in layers],
                    [values[space] for space in layers],
                    yerr=[stds[space] for space in layers],
                    marker="o",
                    markersize=4,
                    capsize=2,
                    color=color,
                    label=name,
                )

            if MFCC in values:
                # Beside layers the colour tells which it is.
                label = None if layers else f"{name}, MFCC"

                axes.axhline(values[MFCC], linestyle="--", linewidth=1, color=color, label=label)

        axes.set_title(f"{title} (dashed: MFCC)" if any(MFCC in values for values, _ in curves.values()) else title)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return figure


def _draw_joint(name: str, table: JointTable) -> Figure:
    figure = _make_figure(8.0, 0.16 * len(table.phones) + 1.4)

    axes = figure.subplots()

    image = axes.imshow(
        table.phone_given_unit[:, table.unit_order()], aspect="auto", interpolation="nearest", vmin=0.0, vmax=1.0
    )

    axes.set_title(f"{name}: p(phone | unit)")
    axes.set_xlabel("units, sorted by their most likely phone")
    axes.set_yticks(range(len(table.phones)), table.phones, fontsize="x-small")

    figure.colorbar(image, ax=axes)

    return figure


def _make_figure(width: float, height: float) -> Figure:
    # Not through pyplot, which asks for a display and keeps every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=150)

    return path
