"""The page: well-formed, whole, escaped, asking for nothing, and written all or not at all."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_data import DANGEROUS_ID, make_page_data
from rendered_page import parse, rendered_page, text_of  # noqa: F401 - a fixture

from hubert_plugin.analysis.page.data import PageData
from hubert_plugin.analysis.page.markup import escape, tag
from hubert_plugin.analysis.page.write import render_page, write_page
from hubert_plugin.errors import StorageError


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
