"""Puts the page together: one file that opens off-line, and the numbers beside it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from hubert_plugin.analysis.page.data import PageData
from hubert_plugin.analysis.page.figures import facts
from hubert_plugin.analysis.page.markup import Markup, escape, tag
from hubert_plugin.analysis.page.sections import (
    configuration_section,
    example_section,
    round_section,
    step_section,
    summary_section,
)
from hubert_plugin.analysis.page.style import SCRIPT, STYLE
from hubert_plugin.files import write_text_atomic

PAGE_FILE: Final = "index.html"

DATA_FILE: Final = "report.json"


def write_page(data: PageData, folder: Path) -> Path:
    """Write ``index.html`` and ``report.json`` into a folder, which is made if it is missing.

    The numbers come first: a page without its numbers is never left.

    :returns: The page.
    :raises StorageError: A file cannot be written; what stood there before is untouched.
    """
    write_text_atomic(folder / DATA_FILE, data.to_json())

    page = folder / PAGE_FILE

    write_text_atomic(page, render_page(data))

    return page


def render_page(data: PageData) -> str:
    """Return the page as text: HTML that is well-formed XML, too, and asks for nothing from anywhere."""
    sections = [
        ("summary", "What came out", summary_section(data)),
        *((f"round-{nr}", r.name, round_section(r, data, nr)) for nr, r in enumerate(data.rounds, 1)),
        ("examples", "Units on utterances", example_section(data)),
        ("steps", "Steps", step_section(data.steps)),
        ("configuration", "Configuration", configuration_section(data)),
    ]

    shown = [(name, title, section) for name, title, section in sections if section is not None]

    head = tag(
        "head",
        None,
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _policy()}),
        tag("title", None, data.title),
        tag("style", None, Markup(STYLE)),
    )

    body = tag(
        "body",
        None,
        tag(
            "header",
            None,
            tag(
                "div",
                None,
                tag("h1", None, data.title),
                tag("p", {"class": "soft"}, f"Made {data.created.replace('T', ' ')[:16]}. ", _link_to_numbers()),
                facts(list(data.corpus.items())) if data.corpus else None,
            ),
        ),
        tag(
            "nav",
            {"aria-label": "Sections"},
            tag("div", None, *(tag("a", {"href": f"#{name}"}, title) for name, title, _ in shown)),
        ),
        tag("main", None, *(section for _, _, section in shown)),
        tag("footer", None, "Made by fairseq2-hubert. This file needs nothing else and asks for nothing."),
        tag("div", {"id": "tip", "hidden": "", "role": "status"}),
        tag("script", None, Markup(SCRIPT)),
    )

    return f"<!DOCTYPE html>\n{tag('html', {'lang': 'en'}, head, body)}\n"


def _link_to_numbers() -> Markup:
    return tag("a", {"href": DATA_FILE}, f"The same numbers as {escape(DATA_FILE)}")


def _policy() -> str:
    # Nothing may be loaded, and no script may run but the page's own, whatever a name in the data says.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode("utf-8")).digest()).decode("ascii")

    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
