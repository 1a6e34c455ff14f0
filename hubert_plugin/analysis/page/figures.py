"""A chart with its caption, legend, and the table of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubert_plugin.analysis.page.axes import NOT_MEASURED
from hubert_plugin.analysis.page.markup import Markup, join, tag
from hubert_plugin.analysis.page.svg import Chart


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names the row."""

    head: Sequence[str]

    rows: Sequence[Sequence[object]]

    def draw(self, *, highlight: int | None = None) -> Markup:
        """Return the table.

        :param highlight: The row that matters most.
        """
        head = tag("tr", None, *(tag("th", {"scope": "col"}, name) for name in self.head))

        rows = [
            tag(
                "tr",
                {"class": "chosen" if nr == highlight else None},
                tag("th", {"scope": "row"}, row[0]),
                *(_cell(value) for value in row[1:]),
            )
            for nr, row in enumerate(self.rows)
        ]

        table = tag("table", None, tag("thead", None, head), tag("tbody", None, *rows))

        return tag("div", {"class": "scroll", "tabindex": "0"}, table)


def figure(chart: Chart, table: Table) -> Markup:
    """Return a chart under its title, with the numbers behind a fold."""
    return tag(
        "figure",
        None,
        tag("figcaption", None, chart.title),
        chart.legend(),
        chart.draw(),
        fold("Numbers", table.draw()),
    )


def missing_figure(title: str, reason: str) -> Markup:
    """Return what stands where a chart would be: that nothing was measured, and why."""
    return tag(
        "figure", {"class": "missing"}, tag("figcaption", None, title), tag("p", None, f"{NOT_MEASURED}: {reason}")
    )


def fold(summary: str, *children: object, is_open: bool = False) -> Markup:
    """Return what can be folded away."""
    return tag("details", {"open": "" if is_open else None}, tag("summary", None, summary), *children)


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """Return names with what belongs to them."""
    rows = [tag("div", None, tag("dt", None, name), tag("dd", None, value)) for name, value in pairs]

    return tag("dl", {"class": "facts"}, join(rows))


def _cell(value: object) -> Markup:
    return tag("td", {"class": "none" if value == NOT_MEASURED else None}, value)
