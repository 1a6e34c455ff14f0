"""HTML and SVG as text that is well-formed and escaped by construction.

The text is at once HTML5 and XML, so that any parser can check it: attributes are quoted, empty elements are closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_VOID: Final = frozenset(("meta", "br", "img", "line", "rect", "circle", "path", "polyline", "polygon", "image", "use"))
"""Elements without content. Those of SVG may be closed in their own tag in HTML, too."""

_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Attributes = Mapping[str, object]


class Markup(str):
    """Text that is markup already: everything else is escaped."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return text as markup that shows it, in elements and in attributes alike. Characters that neither HTML nor XML
    can hold (control characters, halves of surrogate pairs) are shown as U+FFFD."""
    if isinstance(text, Markup):
        return text

    plain = _NOT_IN_XML.sub("\ufffd", str(text))

    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&#39;")):
        plain = plain.replace(character, entity)

    return Markup(plain)


def tag(name: str, attributes: Attributes | None = None, *children: object) -> Markup:
    """Return an element. Attributes and children that are ``None`` are left out; children that are no :class:`Markup`
    are escaped."""
    head = "".join(f' {key}="{escape(value)}"' for key, value in (attributes or {}).items() if value is not None)

    if name in _VOID:
        return Markup(f"<{name}{head} />")

    return Markup(f"<{name}{head}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Return children one after another; ``None`` is left out."""
    return Markup("".join(escape(child) for child in children if child is not None))
