"""The page in a browser, if one is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from page_data import make_page_data

from hubert_plugin.analysis.page.write import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


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
