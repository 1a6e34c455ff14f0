"""The page of a report with everything in it, and how tests read it.

Import the fixture: ``from rendered_page import rendered_page``. Tests ask for ``page``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from page_data import make_page_data

from hubert_plugin.analysis.page.write import render_page


@pytest.fixture(scope="module", name="page")
def rendered_page() -> str:
    return render_page(make_page_data())


def parse(page: str) -> ET.Element:
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def text_of(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())
