"""An utterance: words, phones, spectrogram and the units of all rounds, on one axis of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from hubert_plugin import frames
from hubert_plugin.analysis.page.axes import show_duration
from hubert_plugin.analysis.page.data import Example, Segment, UnitTrack
from hubert_plugin.analysis.page.figures import Table, fold
from hubert_plugin.analysis.page.markup import Markup, join, tag
from hubert_plugin.analysis.page.png import spectrogram_address

_PIXELS_PER_SECOND: Final = 340

_ROW, _GAP, _SPECTROGRAM, _AXIS = 22, 6, 120, 26

_CHARACTER: Final = 6.8
"""About how wide a character of these rows is."""

_GOLDEN_ANGLE: Final = 137.508


@dataclass(frozen=True)
class _Row:
    name: str

    height: int

    marks: Sequence[Markup]


def example_figure(example: Example) -> Markup:
    """Return an utterance as a figure that scrolls sideways where there is no room; names of rows stay at the left."""
    rows = list(_rows(example))

    width = max(1, round(example.duration * _PIXELS_PER_SECOND))

    height = sum(row.height + _GAP for row in rows) + _AXIS

    placed, names, top = [], [], 0

    for row in rows:
        placed.append(tag("g", {"transform": f"translate(0 {top})"}, *row.marks))

        style = f"height:{row.height}px;margin-bottom:{_GAP}px"

        names.append(tag("div", {"style": style}, tag("span", None, row.name)))

        top += row.height + _GAP

    borders = [
        tag("line", {"class": "border", "x1": _x(s.start), "x2": _x(s.start), "y1": 0, "y2": top - _GAP})
        for s in example.phones or []
        if s.start > 0
    ]

    description = (
        f"{show_duration(example.duration)} of speech; rows: {', '.join(row.name for row in rows)}. The same as text "
        "is below."
    )

    picture = tag(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": f"Utterance {example.utterance}",
        },
        tag("desc", None, description),
        *placed,
        tag("g", {"aria-hidden": "true"}, *borders),
        _time_axis(example.duration, top),
    )

    return tag(
        "figure",
        {"class": "example"},
        tag("figcaption", None, example.utterance),
        tag(
            "div",
            {"class": "tracks"},
            tag("div", {"class": "names", "aria-hidden": "true"}, join(names)),
            tag("div", {"class": "scroll", "tabindex": "0"}, picture),
        ),
        fold("As text", _text(example)),
    )


def runs(track: UnitTrack) -> list[tuple[float, float, int]]:
    """Return stretches of one unit: start and end in seconds, and the unit. A unit stands in the middle of the window
    it was computed from (``frames.frame_center_seconds``)."""
    result, position = [], 0

    half = 0.5 / track.rate

    for unit, group in groupby(track.units):
        length = len(list(group))

        first = frames.frame_center_seconds(position, track.rate) - half

        result.append((first, first + length / track.rate, unit))

        position += length

    return result


def _rows(example: Example) -> list[_Row]:
    rows = []

    if example.words is not None:
        rows.append(_Row("words", _ROW, [_segment(s, "word") for s in example.words]))

    if example.phones is not None:
        rows.append(_Row("phones", _ROW, [_segment(s, "phone") for s in example.phones]))

    if example.spectrogram:
        # Windows are 25 ms long: a frame of the picture is drawn around the middle of its window.
        start = frames.frame_center_seconds(0) - 0.5 / example.frame_rate

        attributes = {
            "x": _x(start),
            "y": 0,
            "width": _x(len(example.spectrogram) / example.frame_rate),
            "height": _SPECTROGRAM,
            "preserveAspectRatio": "none",
            "href": spectrogram_address(example.spectrogram),
        }

        top = f"0–{example.max_frequency / 1000:g} kHz, mel"

        label = tag("text", {"class": "inside", "x": 8, "y": 15}, top)

        rows.append(_Row("spectrogram", _SPECTROGRAM, [tag("image", attributes), label]))

    for track in example.tracks:
        rows.append(_Row(track.name, _ROW, [_run(track.name, *run) for run in runs(track)]))

    return rows


def _segment(segment: Segment, kind: str) -> Markup:
    width = _x(segment.end - segment.start)

    fits = len(segment.name) * _CHARACTER <= width - 2

    return tag(
        "g",
        {"class": kind, "data-tip": f"{segment.name}: {segment.start:.2f}–{segment.end:.2f} s"},
        tag("rect", {"x": _x(segment.start), "y": 0, "width": max(width - 1, 0.5), "height": _ROW, "rx": 3}),
        _label(segment.name, segment.start, segment.end) if fits else None,
    )


def _run(name: str, start: float, end: float, unit: int) -> Markup:
    width = _x(end - start)

    fits = len(str(unit)) * _CHARACTER <= width - 2

    hue = round(unit * _GOLDEN_ANGLE % 360)

    return tag(
        "g",
        {"class": "unit", "style": f"--h:{hue}", "data-tip": f"{name}: unit {unit}, {start:.2f}–{end:.2f} s"},
        tag("rect", {"x": _x(start), "y": 0, "width": max(width - 1, 0.5), "height": _ROW, "rx": 3}),
        _label(str(unit), start, end) if fits else None,
    )


def _label(text: str, start: float, end: float) -> Markup:
    return tag("text", {"x": _x((start + end) / 2), "y": 15, "text-anchor": "middle"}, text)


def _time_axis(duration: float, top: int) -> Markup:
    marks = [tag("line", {"class": "axis", "x1": 0, "x2": _x(duration), "y1": top, "y2": top})]

    for tenth in range(int(duration * 10 + 1e-6) + 1):
        x, is_long = _x(tenth / 10), tenth % 5 == 0

        marks.append(tag("line", {"class": "axis", "x1": x, "x2": x, "y1": top, "y2": top + (6 if is_long else 3)}))

        if is_long:
            anchor = "start" if tenth == 0 else "middle"

            # The last one has no room to its right.
            anchor = "end" if tenth and x > _x(duration) - 16 else anchor

            text = f"{tenth / 10:g} s"

            marks.append(tag("text", {"class": "tick", "x": x, "y": top + 20, "text-anchor": anchor}, text))

    return tag("g", {"aria-hidden": "true"}, *marks)


def _text(example: Example) -> Markup:
    rows: list[tuple[str, str]] = []

    if example.phones is not None:
        rows.append(("phones", " ".join(f"{s.name} {s.start:.2f}–{s.end:.2f}" for s in example.phones)))

    for track in example.tracks:
        rows.append((f"{track.name} ({track.rate} Hz)", " ".join(map(str, track.units))))

    return Table(["row", "content"], rows).draw()


def _x(seconds: float) -> float:
    return round(seconds * _PIXELS_PER_SECOND, 1)
