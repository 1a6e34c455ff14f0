"""The results of an analysis: as plain data, and as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from hubert_plugin.analysis.abx import AbxScore
from hubert_plugin.analysis.cca import CcaScore
from hubert_plugin.analysis.sweep import SpaceAnalysis, UnitAnalysis
from hubert_plugin.analysis.unsupervised import CRITERION_NAME

if TYPE_CHECKING:
    from rich.table import Table

_MEASURES = ("phone_purity", "cluster_purity", "pnmi")


@dataclass
class AnalysisReport:
    """What was measured."""

    corpus: dict[str, object]
    """What it was measured on."""

    label_sets: dict[str, UnitAnalysis] = field(default_factory=dict)
    """Units that were there already, by label set."""

    spaces: list[SpaceAnalysis] = field(default_factory=list)
    """Units of the layers and of MFCC, by space and number of units."""

    abx: dict[str, dict[str, AbxScore]] = field(default_factory=dict)
    """By space, then by task (such as ``triphone within``)."""

    cca: dict[str, dict[str, CcaScore]] = field(default_factory=dict)
    """By space, then by what it is held against (``words``, ``phones``)."""

    def best_space(self, num_clusters: int) -> str | None:
        """Return the space with the highest PNMI at a number of units; ``None`` without phone times, or where all
        frames are of one phone."""
        scores = {
            s.space: pnmi
            for s in self._spaces_at(num_clusters)
            if (pnmi := s.mean("pnmi")) is not None and not math.isnan(pnmi)
        }

        return max(scores, key=lambda space: scores[space]) if scores else None

    def best_by_criterion(self, num_clusters: int) -> str | None:
        """Return the space with the highest view consistency at a number of units; ``None`` if it was not measured."""
        scores = {s.space: s.consistency for s in self._spaces_at(num_clusters) if s.consistency is not None}

        return max(scores, key=lambda space: scores[space]) if scores else None

    @property
    def nums_clusters(self) -> list[int]:
        """The numbers of units that were tried."""
        return sorted({s.num_clusters for s in self.spaces})

    def _spaces_at(self, num_clusters: int) -> list[SpaceAnalysis]:
        return [s for s in self.spaces if s.num_clusters == num_clusters]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, without the joint tables; what is not a number is ``None``."""
        spaces: dict[str, dict[str, Any]] = {}

        for s in self.spaces:
            spaces.setdefault(s.space, {}).setdefault("units", {})[str(s.num_clusters)] = {
                **{name: s.mean(name) for name in _MEASURES},
                **{f"{name}_std": s.std(name) for name in _MEASURES},
                "agreement": s.agreement,
                "criterion": s.consistency,
                "persistence": s.persistence,
                "trials": [_unit_dict(t) for t in s.trials],
            }

        for name, scores in (("abx", self.abx), ("cca", self.cca)):
            for space, values in scores.items():
                spaces.setdefault(space, {})[name] = {key: asdict(value) for key, value in values.items()}

        plain = {
            "corpus": self.corpus,
            "label_sets": {name: _unit_dict(a) for name, a in self.label_sets.items()},
            "spaces": spaces,
            "best_by_pnmi": {str(k): self.best_space(k) for k in self.nums_clusters},
            "criterion": CRITERION_NAME,
            "best_by_criterion": {str(k): self.best_by_criterion(k) for k in self.nums_clusters},
        }

        return _without_nan(plain)  # type: ignore[no-any-return]

    def tables(self) -> list[Table]:
        """Return tables for the terminal."""
        tables = []

        if self.label_sets:
            tables.append(self._label_table())

        if self.spaces:
            tables.append(self._space_table())

        for title, scores in (
            ("ABX error (%)", _map_values(self.abx, lambda s: f"{100 * s.error:.2f}")),
            ("Correlation with labels (PWCCA)", _map_values(self.cca, lambda s: f"{s.score:.3f} ± {s.std:.3f}")),
        ):
            if scores:
                tables.append(_score_table(title, scores))

        return tables

    def _label_table(self) -> Table:
        from rich.text import Text

        table = _make_table("Units", "label set")

        _add_unit_columns(table)

        for name, analysis in self.label_sets.items():
            quality = analysis.quality

            measures = [_show(getattr(quality, m) if quality else None) for m in _MEASURES]

            table.add_row(Text(name), str(analysis.statistics.num_units), *measures, *_show_statistics(analysis))

        return table

    def _space_table(self) -> Table:
        table = _make_table("Units by layer", "space")

        _add_unit_columns(table)

        has_trials = any(len(s.trials) > 1 for s in self.spaces)

        if has_trials:
            table.add_column("agree", justify="right", no_wrap=True)

        has_criterion = any(s.consistency is not None for s in self.spaces)

        if has_criterion:
            table.add_column("view\ncons.", justify="right", no_wrap=True)

        best = {k: self.best_space(k) or self.best_by_criterion(k) for k in self.nums_clusters}

        for s in self.spaces:
            # The spread of one measure tells enough, and all of them would not fit on a screen; the JSON has them.
            spread = s.std("pnmi") if len(s.trials) > 1 else None

            measures = [_show(s.mean(m), spread if m == "pnmi" else None) for m in _MEASURES]

            row = [s.space, str(s.num_clusters), *measures, *_show_statistics(s.trials[0])]

            if has_trials:
                row.append(_show(s.agreement))

            if has_criterion:
                row.append(_show(s.consistency))

            table.add_row(*row, style="bold" if best[s.num_clusters] == s.space else None)

        return table


def _unit_dict(analysis: UnitAnalysis) -> dict[str, Any]:
    return {
        "statistics": asdict(analysis.statistics),
        "quality": None if analysis.quality is None else asdict(analysis.quality),
    }


def _map_values(scores: Mapping[str, Mapping[str, Any]], show: Any) -> dict[str, dict[str, str]]:
    return {space: {name: show(value) for name, value in values.items()} for space, values in scores.items()}


def _make_table(title: str, first: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, title_justify="left", pad_edge=False, collapse_padding=True)

    table.add_column(first, no_wrap=True)

    return table


def _add_unit_columns(table: Table) -> None:
    for name in ("K", "phone\npurity", "cluster\npurity", "PNMI", "dead", "perpl.", "run\n(ms)"):
        table.add_column(name, justify="right", no_wrap=True)


def _score_table(title: str, scores: Mapping[str, Mapping[str, str]]) -> Table:
    from rich.text import Text

    table = _make_table(title, "space")

    names: Sequence[str] = list(dict.fromkeys(name for values in scores.values() for name in values))

    for name in names:
        table.add_column(Text(name), justify="right")

    for space, values in scores.items():
        table.add_row(space, *(values.get(name, "") for name in names))

    return table


def _show_statistics(analysis: UnitAnalysis) -> list[str]:
    statistics = analysis.statistics

    return [
        str(statistics.num_dead_units),
        f"{statistics.perplexity:.1f}",
        f"{1000 * statistics.mean_run_seconds:.0f}",
    ]


def _show(value: float | None, std: float | None = None) -> str:
    if value is None or math.isnan(value):
        return "–"

    return f"{value:.3f}" if std is None else f"{value:.3f} ± {std:.3f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(v) for key, v in value.items()}

    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]

    return None if isinstance(value, float) and not math.isfinite(value) else value
