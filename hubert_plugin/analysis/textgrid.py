"""Praat's TextGrids, long and short form.

Praat itself reads a TextGrid as a sequence of free-standing numbers, quoted strings and ``<flags>`` and ignores all
other text (Praat manual, "TextGrid file formats"), which is why the two forms are one: the words that the long form
adds are comments. So does this reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hubert_plugin.errors import LabelError

_TOKEN: Final = re.compile(
    r'"((?:[^"]|"")*)"|(?<!\S)(<[a-z]+>)(?!\S)|(?<!\S)([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?!\S)'
)

_BYTE_ORDER_MARKS: Final = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


@dataclass(frozen=True)
class Tier:
    """An interval tier."""

    name: str

    intervals: list[tuple[float, float, str]]
    """Start and end in seconds, and text, in the file's order."""


def read_textgrid(path: Path) -> list[Tier]:
    """Return the interval tiers of a TextGrid; point tiers are passed over.

    :raises LabelError: The file cannot be read, or is no TextGrid in the long or short text form.
    """
    try:
        data = path.read_bytes()
    except OSError as ex:
        raise LabelError(f"The TextGrid '{path}' cannot be read: {ex.strerror or ex}.") from ex

    if data.startswith(b"ooBinaryFile"):
        raise LabelError(f"'{path}' is a TextGrid in Praat's binary form; save it as a text file.")

    text = _decode(path, data)

    if "chronological" in text[:100]:
        raise LabelError(f"'{path}' is a chronological TextGrid; save it as a text file, or as a short text file.")

    tokens = _Tokens(path, text)

    tokens.expect_text("ooTextFile")
    tokens.expect_text("TextGrid")

    tokens.number()
    tokens.number()

    if tokens.flag() != "<exists>":
        return []

    tiers = []

    for _ in range(tokens.count()):
        kind, name = tokens.text(), tokens.text()

        tokens.number()
        tokens.number()

        if kind == "IntervalTier":
            tiers.append(Tier(name, [(tokens.number(), tokens.number(), tokens.text()) for _ in range(tokens.count())]))
        elif kind == "TextTier":
            for _ in range(tokens.count()):
                tokens.number()
                tokens.text()
        else:
            raise LabelError(f"'{path}' has a tier of the unknown kind '{kind}'.")

    return tiers


def _decode(path: Path, data: bytes) -> str:
    encoding = next((e for mark, e in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")

    # Text has no zeros; in UTF-16 every other byte is one, and it could be taken for UTF-8.
    if encoding == "utf-8" and b"\0" in data:
        raise LabelError(
            f"The TextGrid '{path}' cannot be read: it is not UTF-8, nor UTF-16 with a byte order mark. Save it as "
            "UTF-8 (`iconv -f UTF-16LE -t UTF-8`, or `-f UTF-16BE`, if that is what it is in)."
        )

    try:
        return data.decode(encoding)
    except UnicodeDecodeError as ex:
        if encoding != "utf-8":
            raise LabelError(f"The TextGrid '{path}' begins as {encoding} does, but is not in it: {ex}.") from ex

        # What Praat writes on systems that are set to it, and what older files are in.
        return data.decode("latin-1")


class _Tokens:
    """The free-standing tokens of a TextGrid, taken one after another with what is expected of them."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

        self._matches: Iterator[re.Match[str]] = _TOKEN.finditer(text)

    def number(self) -> float:
        return float(self._next(3, "a number"))

    def count(self) -> int:
        number = self._next(3, "a count")

        if not number.isdecimal():
            raise self._error("a count", number, len(self._text))

        return int(number)

    def text(self) -> str:
        return self._next(1, "a text in quotes").replace('""', '"').strip()

    def flag(self) -> str:
        return self._next(2, "<exists> or <absent>")

    def expect_text(self, expected: str) -> None:
        match = next(self._matches, None)

        if match is None or match.group(1) != expected:
            raise LabelError(
                f"'{self._path}' is not a TextGrid: the text \"{expected}\" was expected first, as Praat writes it."
            )

    def _next(self, group: int, expected: str) -> str:
        match = next(self._matches, None)

        if match is None:
            raise LabelError(f"The TextGrid '{self._path}' is cut off: {expected} was expected at its end.")

        found = match.group(group)

        if found is None:
            raise self._error(expected, match.group(), match.start())

        return found

    def _error(self, expected: str, found: str, position: int) -> LabelError:
        line = self._text.count("\n", 0, position) + 1

        return LabelError(f"{self._path}:{line}: {expected} was expected, but {found} was found.")
