"""Words what fairseq2 finds wrong with asset cards. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BROKEN_FILE: Final = re.compile(r"^(.+) cannot be loaded as YAML\.$", re.DOTALL)
_FIELD: Final = re.compile(r"^(\w+) field of the .+? asset card\b", re.DOTALL)
_CLASS: Final = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_SECTION: Final = re.compile(r"must be of type `\w+` or `Mapping`")
_ONE_FOLDER: Final = re.compile(r"^Two assets (?:at|in) .* have the same name (\S+)\.$", re.DOTALL)
_TWO_FOLDERS: Final = re.compile(r"^An asset with name (\S+) exists in both (.+) and (.+)\.$", re.DOTALL)


def maybe_describe_card_error(ex: BaseException) -> str | None:
    """Say in a sentence what is wrong with an asset card or a folder of them; ``None``: ``ex`` is about neither."""
    from fairseq2.assets import AssetCardError, AssetCardNotValidError, AssetMetadataError

    if isinstance(ex, AssetMetadataError):
        return _describe_folder(ex)

    return _describe_card(ex, ex.name) if isinstance(ex, AssetCardError | AssetCardNotValidError) else None


def _describe_card(ex: BaseException, name: str) -> str:
    field = _FIELD.match(str(ex))

    if ex.__cause__ is None or field is None:
        message = _CLASS.sub(r"\1", _FIELD.sub(r"`\1`", str(ex)))

        return f"The asset card '{name}' cannot be used: {message}"

    from hubert_plugin.error_sentences import describe_config_error  # which asks this module itself

    reason = describe_config_error(ex.__cause__).removeprefix("The configuration cannot be used: ")

    reason = _SECTION.sub("must hold keys and values", reason)

    return f"The asset card '{name}' cannot be used, for its `{field[1]}`: {reason}"


def _describe_folder(ex: BaseException) -> str:
    message = str(ex)

    source = str(getattr(ex, "source", ""))

    if match := _BROKEN_FILE.match(message):
        cause = ex.__cause__

        mark = getattr(cause, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}," if mark is not None else ""

        what = getattr(cause, "problem", None) or getattr(cause, "context", None) or cause

        return f"The file of asset cards '{match[1]}'{where} is not valid YAML: {what}."

    if match := _ONE_FOLDER.match(message):
        name, sources = match[1], [source]
    elif match := _TWO_FOLDERS.match(message):
        name, sources = match[1], [match[2], match[3]]
    else:
        return f"The asset cards cannot be read: {message}"

    # What follows the @ is the environment that a card is for; most are for any.
    name = name.removesuffix("@")

    files = [f"'{path}'" for s in sources for path in _find_card_files(s, name)]

    return (
        f"Two asset cards have the name '{name}', in {' and '.join(files)}. Give one of them another name, or take it "
        "away."
    )


def _find_card_files(source: str, name: str) -> Iterator[str]:
    """Yield the files of a source, as fairseq2 names it (``path:FOLDER``), that seem to name a card ``name``; the
    source itself, if none does."""
    kind, _, place = source.partition(":")

    pattern = re.compile(rf"^[{{ ]*[\"']?name[\"']?\s*:\s*[\"']?{re.escape(name)}[\"']?\s*(?:[,}}#]|$)", re.MULTILINE)

    files = []

    if kind == "path":
        for path in sorted(p for p in Path(place).rglob("*") if p.suffix in (".yaml", ".yml")):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue

            if pattern.search(text):
                files.append(str(path))

    yield from files or [place or source]
