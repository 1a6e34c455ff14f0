"""Charts as inline SVG: lines, bars and dots in a frame with axes.

Colours come from the page's style sheet (classes ``s0`` … ``s5``), so a chart is light or dark with the page. Series
differ by their marks, too, not by colour alone. Every chart has a label and a description for those who cannot see it,
and every mark says its numbers when it is pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hubert_plugin.analysis.page.axes import Scale, nice_ticks, tick_labels
from hubert_plugin.analysis.page.markup import Markup, join, tag

NUM_COLORS: Final = 6

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44

_MARKS: Final = ("circle", "square", "diamond", "triangle", "ring", "cross")


@dataclass(frozen=True, kw_only=True)
class Series:
    """What belongs together in a chart."""

    name: str

    x: Sequence[float]

    y: Sequence[float]

    spread: Sequence[float | None] | None = None
    """Half the length of an error bar at each point."""

    color: int = 0

    kind: str = "line"
    """``line`` with marks, ``thin`` (a line without marks), ``marks``, ``across`` (a dashed line over the whole width
    at ``y[0]``), ``bars`` or ``area``."""

    tips: Sequence[str] | None = None
    """What each point says when it is pointed at."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart without its numbers' table."""

    title: str

    description: str

    x_label: str

    y_label: str

    series: Sequence[Series]

    x_ticks: Sequence[float] | None = None
    """``None``: round values."""

    x_names: Sequence[str] | None = None
    """What stands at ``x_ticks``; ``None``: the numbers."""

    whole_x: bool = False

    from_zero: bool = False
    """Whether the y axis begins at 0."""

    x_from_zero: bool = False
    """Whether the x axis begins at 0."""

    width: int = 560

    height: int = 300

    note: str | None = None
    """What else the legend says, such as what a dashed line is."""

    def draw(self) -> Markup:
        """Return the chart; see :meth:`legend` for what belongs above it."""
        x_ticks, y_ticks = self._ticks()

        x_values = [v for s in self.series if s.kind != "across" for v in s.x] or list(x_ticks)

        has_bars = any(s.kind in ("bars", "area") for s in self.series)

        margin = 0.5 * _step(x_values) if has_bars else 0.0

        low, high = min(x_values) - margin, max(x_values) + margin

        if self.x_from_zero:
            low = min(low, 0.0)

        if self.x_ticks is not None:
            low, high = min([low, *x_ticks]), max([high, *x_ticks])

        if not high > low:
            low, high = low - 0.5, high + 0.5

        inset = 0 if has_bars else 10

        x = Scale(low, high, _LEFT + inset, self.width - _RIGHT - inset)
        y = Scale(y_ticks[0], y_ticks[-1], self.height - _BOTTOM, _TOP)

        return tag(
            "svg",
            {
                "viewBox": f"0 0 {self.width} {self.height}",
                "role": "img",
                # No <title>: browsers would show it wherever the pointer rests.
                "aria-label": self.title,
                "style": f"max-width:{self.width * 1.15:.0f}px",
            },
            tag("desc", None, self.description),
            self._frame(x, y, [t for t in x_ticks if low <= t <= high], y_ticks),
            *(self._draw_series(s, x, y) for s in self.series),
        )

    def legend(self) -> Markup | None:
        """Return the names of the series with their marks; ``None`` if there is nothing to tell apart."""
        named = [s for s in self.series if s.name]

        if len(named) < 2 and self.note is None and not any(s.kind == "across" for s in named):
            return None

        return tag(
            "ul",
            {"class": "legend"},
            *(tag("li", None, _swatch(s), s.name) for s in named),
            None if self.note is None else tag("li", {"class": "note"}, self.note),
        )

    def _ticks(self) -> tuple[Sequence[float], list[float]]:
        values = [v for s in self.series for v in s.y]

        for s in self.series:
            if s.spread is not None:
                values += [v + (d or 0.0) for v, d in zip(s.y, s.spread, strict=True)]
                values += [v - (d or 0.0) for v, d in zip(s.y, s.spread, strict=True)]

        if self.from_zero:
            values.append(0.0)

        y_ticks = nice_ticks(min(values), max(values))

        if self.x_ticks is not None:
            return self.x_ticks, y_ticks

        x_values = [v for s in self.series if s.kind != "across" for v in s.x]

        return nice_ticks(min(x_values), max(x_values), 6, whole=self.whole_x), y_ticks

    def _frame(self, x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
        left, right, bottom = _LEFT, self.width - _RIGHT, self.height - _BOTTOM

        marks = []

        for value, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
            marks.append(tag("line", {"class": "grid", "x1": left, "x2": right, "y1": y(value), "y2": y(value)}))
            marks.append(_text(left - 8, y(value) + 4, label, "end"))

        names = tick_labels(x_ticks)

        if self.x_names is not None and self.x_ticks is not None:
            by_tick = dict(zip(self.x_ticks, self.x_names, strict=True))

            names = [by_tick[t] for t in x_ticks]

        # No more names than there is room for.
        every = -(-sum(7 * len(n) + 12 for n in names) // max(right - left, 1)) or 1

        for nr, (value, label) in enumerate(zip(x_ticks, names, strict=True)):
            marks.append(tag("line", {"class": "axis", "x1": x(value), "x2": x(value), "y1": bottom, "y2": bottom + 4}))

            if nr % every == 0:
                marks.append(_text(x(value), bottom + 18, label, "middle"))

        return tag(
            "g",
            {"aria-hidden": "true"},
            *marks,
            tag("line", {"class": "axis", "x1": left, "x2": right, "y1": bottom, "y2": bottom}),
            _text((left + right) / 2, self.height - 6, self.x_label, "middle", "label"),
            tag(
                "text",
                {
                    "class": "label",
                    "text-anchor": "middle",
                    "transform": f"translate(11 {(bottom + _TOP) / 2:g}) rotate(-90)",
                },
                self.y_label,
            ),
        )

    def _draw_series(self, s: Series, x: Scale, y: Scale) -> Markup:
        if s.kind == "across":
            attributes = {"class": "dashed", "x1": _LEFT, "x2": self.width - _RIGHT, "y1": y(s.y[0]), "y2": y(s.y[0])}

            return _group(s, tag("line", attributes), _hit_line(attributes, s))

        if s.kind in ("bars", "area"):
            return _group(s, *self._draw_bars(s, x, y))

        points = [(x(a), y(b)) for a, b in zip(s.x, s.y, strict=True)]

        parts: list[Markup] = []

        if s.kind != "marks" and len(points) > 1:
            line = " ".join(f"{a:g},{b:g}" for a, b in points)

            parts.append(tag("polyline", {"class": "line", "points": line}))

        if s.spread is not None:
            for (a, _), value, d in zip(points, s.y, s.spread, strict=True):
                if d:
                    parts.append(
                        tag("line", {"class": "bar", "x1": a, "x2": a, "y1": y(value - d), "y2": y(value + d)})
                    )

        if s.kind != "thin" or len(points) == 1:
            parts += [_mark(s.color, a, b) for a, b in points]

        parts += [
            tag("circle", {"class": "hit", "cx": a, "cy": b, "r": 8, "data-tip": _tip(s, nr)})
            for nr, (a, b) in enumerate(points)
        ]

        return _group(s, *parts)

    def _draw_bars(self, s: Series, x: Scale, y: Scale) -> list[Markup]:
        half = 0.5 * _step(s.x)

        gap = 0.0 if s.kind == "area" else 0.12 * half

        bars = []

        for nr, (value, height) in enumerate(zip(s.x, s.y, strict=True)):
            left, right = x(value - half + gap), x(value + half - gap)

            bars.append(
                tag(
                    "rect",
                    {
                        "class": "column",
                        "x": left,
                        "y": y(height),
                        "width": round(right - left, 2),
                        "height": round(y(0.0) - y(height), 2),
                        "data-tip": _tip(s, nr),
                    },
                )
            )

        return bars


def _group(s: Series, *children: Markup) -> Markup:
    return tag("g", {"class": f"s{s.color % NUM_COLORS} {s.kind}"}, *children)


def _tip(s: Series, nr: int) -> str:
    if s.tips is not None:
        return s.tips[nr]

    return f"{s.name}: {s.y[nr]:.4g} at {s.x[nr]:g}"


def _step(values: Sequence[float]) -> float:
    ordered = sorted(set(values))

    return min((b - a for a, b in pairwise(ordered)), default=1.0)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return tag("text", {"class": kind, "x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor}, text)


def _hit_line(attributes: dict[str, object], s: Series) -> Markup:
    tip = s.tips[0] if s.tips is not None else f"{s.name}: {s.y[0]:.4g}"

    return tag("line", {**attributes, "class": "hit", "data-tip": tip})


def _mark(color: int, x: float, y: float) -> Markup:
    kind = _MARKS[color % len(_MARKS)]

    if kind == "square":
        return tag("rect", {"class": "mark", "x": x - 3.2, "y": y - 3.2, "width": 6.4, "height": 6.4})

    if kind == "diamond":
        return tag("path", {"class": "mark", "d": f"M{x:g} {y - 4.6:g}l4.6 4.6l-4.6 4.6l-4.6 -4.6z"})

    if kind == "triangle":
        return tag("path", {"class": "mark", "d": f"M{x:g} {y - 4.4:g}l4.2 7.4h-8.4z"})

    if kind == "cross":
        return tag("path", {"class": "mark open", "d": f"M{x - 3.4:g} {y - 3.4:g}l6.8 6.8m0 -6.8l-6.8 6.8"})

    return tag("circle", {"class": "mark open" if kind == "ring" else "mark", "cx": x, "cy": y, "r": 3.6})


def _swatch(s: Series) -> Markup:
    line = tag("line", {"class": "dashed" if s.kind == "across" else "line", "x1": 1, "x2": 23, "y1": 7, "y2": 7})

    parts = {"marks": [_mark(s.color, 12, 7)], "thin": [line], "across": [line]}.get(
        s.kind, [line, _mark(s.color, 12, 7)]
    )

    if s.kind in ("bars", "area"):
        parts = [tag("rect", {"class": "column", "x": 5, "y": 2, "width": 14, "height": 10})]

    return tag(
        "svg",
        {"class": "swatch", "viewBox": "0 0 24 14", "aria-hidden": "true"},
        tag("g", {"class": f"s{s.color % NUM_COLORS} {s.kind}"}, join(parts)),
    )
