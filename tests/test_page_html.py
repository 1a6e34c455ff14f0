"""The page: well-formed, whole, escaped, asking for nothing, and honest about what was not measured."""

from __future__ import annotations

import base64
import io
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_data import DANGEROUS_ID, make_page_data

from hubert_plugin.analysis.page.axes import nice_ticks, show_duration, show_size, tick_labels
from hubert_plugin.analysis.page.data import Example, PageData, Round, UnitTrack
from hubert_plugin.analysis.page.markup import escape, tag
from hubert_plugin.analysis.page.png import encode_png
from hubert_plugin.analysis.page.utterance import runs
from hubert_plugin.analysis.page.write import render_page, write_page
from hubert_plugin.errors import StorageError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(make_page_data())


def parse(page: str) -> ET.Element:
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def text_of(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str) -> None:
    ids = [e.get("id") for e in parse(page).iter() if e.get("id") is not None]

    assert len(ids) == len(set(ids)) and {"summary", "round-1", "round-2", "examples", "steps", "configuration"} <= {
        *ids
    }


def test_links_within_the_page_lead_somewhere(page: str) -> None:
    root = parse(page)

    ids = {e.get("id") for e in root.iter()}

    for link in root.iter("a"):
        target = link.get("href") or ""

        assert (target[1:] in ids) if target.startswith("#") else target == "report.json"


def test_every_chart_has_a_label_a_description_and_its_numbers(page: str) -> None:
    root = parse(page)

    charts = [f for f in root.iter("figure") if any(s.get("role") == "img" for s in f.iter("svg"))]

    assert len(charts) > 20

    for chart in charts:
        (svg,) = (s for s in chart.iter("svg") if s.get("role") == "img")

        assert svg.get("aria-label") and text_of(svg.find("desc"))  # type: ignore[arg-type]

        assert chart.find("details/div/table") is not None


def test_the_page_asks_for_nothing(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)

    for element in parse(page).iter():
        for name in ("src", "href", "data", "action", "srcset"):
            value = element.get(name)

            assert value is None or value.startswith(("#", "data:image/png;base64,")) or value == "report.json"

        assert element.tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert not any(name.startswith("on") for name in element.attrib)


def test_text_from_elsewhere_is_shown_and_not_run(page: str) -> None:
    root = parse(page)

    assert len(list(root.iter("script"))) == 1

    assert any(text_of(f) == DANGEROUS_ID for f in root.iter("figcaption"))

    # A reader of HTML must see the same as one of XML.
    class Scripts(HTMLParser):
        found = 0

        def handle_starttag(self, name: str, attrs: object) -> None:
            self.found += name == "script"

    parser = Scripts()
    parser.feed(page)

    assert parser.found == 1


def test_only_the_script_of_the_page_may_run(page: str) -> None:
    import hashlib

    root = parse(page)

    (script,) = root.iter("script")

    digest = base64.b64encode(hashlib.sha256((script.text or "").encode()).digest()).decode()

    (policy,) = (m.get("content") or "" for m in root.iter("meta") if m.get("http-equiv"))

    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_all_numbers_are_on_the_page(page: str) -> None:
    data = make_page_data()

    text = text_of(parse(page))

    expected: list[str] = []

    for round_ in data.rounds:
        for q in (*round_.quality, *data.baseline.quality):
            expected += [f"{q.pnmi:.3f} ± {q.pnmi_std:.3f}"]
            expected += [f"{v:.3f}" for v in (q.phone_purity, q.cluster_purity, q.agreement, q.criterion)]

        expected += [f"{100 * s.value:.3f}" for s in round_.abx if s.value is not None]
        expected += [f"{s.value:.3f} ± {s.std:.3f}" for s in round_.cca if s.value is not None]

        for curve in round_.curves:
            is_share = "accuracy" in curve.metric

            expected += [f"{100 * v:.1f} %" if is_share else f"{v:.3f}" for v in curve.values if v is not None]

        for units in round_.unit_summaries:
            total = sum(units.counts)

            expected += [f"{100 * c / total:.2f} %" for c in units.counts]
            expected += [f"{1000 * s:.0f}" for s in units.unit_run_seconds if s is not None]
            expected += [f"{100 * n / sum(units.run_lengths):.1f} %" for n in units.run_lengths]
            expected += [f"{units.entropy_bits:.2f} bits"]

        for result in (*round_.results, *round_.fine_tuning):
            assert result.value is not None

            expected.append(f"{100 * result.value:.1f} %" if result.unit == "%" else f"{result.value:.3f} bits")

        expected += [round_.name, round_.features, round_.units, round_.training, *round_.notes]

        assert round_.choice is not None

        expected.append(round_.choice.reason)

    expected += ["41 s", "40.1 kB", "2 cores", *(s.command for s in data.steps), *data.versions.values(), *data.notes]

    missing = [e for e in expected if " ".join(e.split()) not in text]

    assert not missing

    assert data.configuration in next(parse(page).iter("pre")).itertext()


def test_the_rounds_are_compared_at_the_number_of_units_of_the_first(page: str) -> None:
    data = make_page_data()

    cards = [text_of(e) for e in parse(page).iter("div") if e.get("class") == "card"]

    mfcc = next(q.pnmi for q in data.baseline.quality if q.num_clusters == 4)

    assert mfcc is not None and cards[0].startswith("MFCC") and f"{mfcc:.3f}" in cards[0]

    for card, round_ in zip(cards[1:], data.rounds, strict=True):
        best = max((q for q in round_.quality if q.num_clusters == 4), key=lambda q: q.pnmi or 0.0)

        assert best.pnmi is not None

        assert f"best layer: {best.space[1:]}" in card and f"{best.pnmi:.3f}" in card and "K = 4" in card
        assert f"{best.pnmi - mfcc:+.3f} against MFCC" in card


def test_what_was_not_measured_is_said_to_be_so() -> None:
    bare = PageData(
        title="t",
        created="2026-01-01T00:00:00",
        rounds=[Round(name="Round 1", features="MFCC", units="k-means, K = 100", training="250,000 updates")],
    )

    root = parse(render_page(bare))

    (section,) = (s for s in root.iter("section") if s.get("id") == "round-1")

    assert text_of(section).count("not measured") >= 6 and not list(section.iter("svg"))

    (summary,) = (s for s in root.iter("section") if s.get("id") == "summary")

    numbers = re.findall(r"\d+\.\d+", text_of(summary))

    assert not numbers and "not measured" in text_of(summary)


def test_a_page_without_rounds_can_be_written() -> None:
    parse(render_page(PageData(title="t", created="now")))


@pytest.mark.parametrize("k", [2, 100, 2000])
def test_few_and_many_units_can_be_shown(k: int) -> None:
    data = make_page_data()

    summary = replace(data.rounds[0].unit_summaries[0], counts=[1] * k, unit_run_seconds=[0.02] * k, run_lengths=[k])

    page = render_page(replace(data, rounds=[replace(data.rounds[0], unit_summaries=[summary])]))

    parse(page)

    assert "nan" not in re.findall(r'(?:x|y|cx|cy|width|height)="([^"]*)"', page)


def test_missing_values_leave_gaps_and_no_numbers() -> None:
    data = make_page_data()

    first = data.rounds[0]

    curves = [replace(c, values=[None, *c.values[1:]]) for c in first.curves]

    quality = [replace(q, pnmi=None, pnmi_std=None) for q in first.quality]

    page = render_page(replace(data, rounds=[replace(first, curves=curves, quality=quality)]))

    assert "None" not in text_of(parse(page))


def test_page_and_numbers_are_written_together(tmp_path: Path) -> None:
    data = make_page_data()

    page = write_page(data, tmp_path / "out" / "report")

    assert page == tmp_path / "out" / "report" / "index.html"

    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "report.json"]

    assert PageData.from_json((page.parent / "report.json").read_text(encoding="utf-8")) == data

    assert page.read_text(encoding="utf-8") == render_page(data)


def test_a_page_that_cannot_be_written_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_page_data()

    page = write_page(data, tmp_path)

    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)

    with pytest.raises(StorageError, match="No space left"):
        write_page(replace(data, title="another"), tmp_path)

    assert {p.name: p.read_bytes() for p in page.parent.iterdir()} == before


def test_the_page_needs_no_torch() -> None:
    code = "import sys, hubert_plugin.analysis.page.write; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_any_text_survives_and_stays_text(text: str) -> None:
    shown = ET.fromstring(tag("p", {"title": text}, text))

    expected = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)

    # XML reads every kind of line end as one.
    assert (shown.text or "") == re.sub("\r\n?", "\n", expected)

    assert not shown.findall("*")


def test_halves_of_surrogate_pairs_can_be_written() -> None:
    assert escape("a\udcffb").encode("utf-8") == "a\ufffdb".encode()


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8), st.booleans())
def test_ticks_are_round_and_enclose_the_values(low: float, width: float, num: int, whole: bool) -> None:
    high = low + width

    ticks = nice_ticks(low, high, num, whole=whole)

    assert 2 <= len(ticks) <= 2 * num + 2

    steps = np.diff(ticks)

    slack = 1e-6 * (abs(low) + abs(high) + 1)

    assert np.allclose(steps, steps[0], atol=slack) and steps[0] > 0

    assert ticks[0] <= low + slack and ticks[-1] >= high - slack

    if whole:
        assert all(t == int(t) for t in ticks)

    assert len(set(tick_labels(ticks))) == len(ticks) or steps[0] < 1e-5 or abs(low) > 1e5 * steps[0]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.95, "9.9 s"),
        (41.2, "41 s"),
        (59.7, "1 min 00 s"),
        (192, "3 min 12 s"),
        (7500, "2 h 05 min"),
        (800_000, "9 d 6 h"),
        (None, "not measured"),
        (math.nan, "not measured"),
    ],
)
def test_durations_read_well(seconds: float | None, expected: str) -> None:
    assert show_duration(seconds) == expected


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (45_249_000, "45.2 MB"),
        (999_600, "1.0 MB"),
        (None, "not measured"),
    ],
)
def test_sizes_read_well(num_bytes: int | None, expected: str) -> None:
    assert show_size(num_bytes) == expected


def test_spectrograms_are_png_files_that_others_read() -> None:
    image = pytest.importorskip("PIL.Image")

    rng = np.random.default_rng(0)

    indices = rng.integers(0, 256, (7, 11)).astype(np.uint8)
    palette = rng.integers(0, 256, (256, 3)).astype(np.uint8)

    decoded = np.asarray(image.open(io.BytesIO(encode_png(indices, palette))).convert("RGB"))

    assert np.array_equal(decoded, palette[indices])


def test_units_are_drawn_around_the_middle_of_their_windows() -> None:
    # Windows of 25 ms: the first frame's middle is at 12.5 ms, whatever the rate.
    def at(rate: int) -> list[tuple[float, ...]]:
        return [tuple(np.round(run, 6)) for run in runs(UnitTrack(name="", rate=rate, units=[3, 3, 5]))]

    assert at(50) == [(0.0025, 0.0425, 3), (0.0425, 0.0625, 5)]
    assert at(100) == [(0.0075, 0.0275, 3), (0.0275, 0.0375, 5)]

    assert runs(UnitTrack(name="", rate=50, units=[])) == []


def test_an_utterance_without_frames_or_phones_can_be_shown() -> None:
    example = Example(utterance="a", duration=0.01, spectrogram=[], frame_rate=100, max_frequency=8000.0)

    page = render_page(PageData(title="t", created="now", examples=[example]))

    assert "Phone times are not known" in text_of(parse(page))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (600, True)])
def test_a_browser_shows_the_page_without_complaint(tmp_path: Path, width: int, is_dark: bool) -> None:
    """The script runs, nothing overflows the window, text is readable on its ground, and no name in the data runs."""
    page = write_page(make_page_data(), tmp_path / "report")

    # What a person would look at, measured by a script of the test's own, which the page's policy would not let run.
    probe = """
    window.onload = function () {
      var found = {};
      found.width = document.documentElement.scrollWidth;
      found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
      found.ground = getComputedStyle(document.body).backgroundColor;
      found.ink = getComputedStyle(document.body).color;
      found.charts = Array.from(document.querySelectorAll(".charts svg[role=img]")).map(
        function (s) { var b = s.getBoundingClientRect(); return [b.left, b.right, b.height]; });
      found.small = Array.from(document.querySelectorAll("svg text")).filter(
        function (t) { var m = t.getScreenCTM(); return 12 * Math.hypot(m.a, m.b) < 9; }).length;
      var bar = document.querySelector("rect.column");
      bar.dispatchEvent(new PointerEvent("pointermove", {bubbles: true, clientX: 50, clientY: 200}));
      var tip = document.getElementById("tip");
      found.tip = tip.hidden ? null : tip.textContent;
      document.title = "PROBE" + JSON.stringify(found) + "EBORP";
    };
    """

    html = page.read_text(encoding="utf-8")

    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)

    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")

    def browse(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
            *arguments,
            file.as_uri(),
        ]

        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    # The page as it is: not a word on the console, which is where a blocked script or resource is told.
    shot = tmp_path / "shot.png"

    said = browse(page, f"--screenshot={shot}").stderr.splitlines()

    complaints = [line for line in said if "CONSOLE" in line or "Refused" in line]

    assert not complaints and shot.stat().st_size > 10_000

    import html as html_module
    import json

    dumped = browse(probed, "--dump-dom").stdout

    match = re.search("PROBE(.*?)EBORP", dumped, re.DOTALL)

    assert match is not None

    found = json.loads(html_module.unescape(match[1]))

    assert found["width"] <= width and found["dark"] == is_dark

    assert found["tip"] is not None and "unit" in found["tip"]

    assert len(found["charts"]) > 15 and found["small"] == 0

    for left, right, height in found["charts"]:
        assert 0 <= left < right <= width and height > 150

    def luminance(color: str) -> float:
        channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]

        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]

        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground, ink = luminance(found["ground"]), luminance(found["ink"])

    assert (ground < ink) == is_dark

    # WCAG's measure of contrast; 7 is its higher level.
    assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 7
