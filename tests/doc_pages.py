"""What the documentation's Markdown holds: headings, links, blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^```\s*$", re.MULTILINE | re.DOTALL)

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|^\[[^\]]+\]:\s*(?P<reference>\S+)", re.MULTILINE)

_IMAGE = re.compile(r"!\[[^\]]*\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """A ``fairseq2 recipe hubert VERB …`` in a block of code."""

    verb: str

    preset: str | None

    config: tuple[str, ...]
    """What stands after ``--config``, item by item."""

    text: str


def pages(repo_dir: Path) -> list[Path]:
    """Return all documentation of the project."""
    top = [repo_dir / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]

    return [*(p for p in top if p.exists()), *sorted((repo_dir / "docs").rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()

    for line in _FENCE.sub("", text).splitlines():
        if not (match := re.match(r"#{1,6}\s+(.*?)\s*#*$", line)):
            continue

        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])

        anchor = base = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")

        count = 0

        while anchor in found:
            count += 1

            anchor = f"{base}-{count}"

        found.add(anchor)

    return found


def links(text: str) -> list[str]:
    """Return the targets of a page's links and pictures, code left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))

    return [m["target"] or m["reference"] for m in _LINK.finditer(prose)] + [
        m["target"] for m in _IMAGE.finditer(prose)
    ]


def blocks(text: str) -> list[tuple[str, str]]:
    """Return language and contents of a page's blocks of code."""
    return [(m["language"], m["code"]) for m in _FENCE.finditer(text)]


def commands(text: str) -> list[Command]:
    """Return the verbs that a page's blocks of code run."""
    found = []

    for language, code in blocks(text):
        if language in ("", "sh", "bash", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                found.extend(_commands_of(line))

    return found


def _commands_of(line: str) -> Iterator[Command]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: prose, or what a command printed
        return

    for word in words:
        if " " in word and "recipe hubert" in word:  # a command in a command, as in `sbatch --wrap '…'`
            yield from _commands_of(word)

    for idx in range(len(words) - 2):
        if words[idx : idx + 2] == ["recipe", "hubert"] and re.fullmatch(r"[a-z]+", words[idx + 2]):
            yield _parse(words[idx + 2], words[idx + 3 :])


def _parse(verb: str, words: list[str]) -> Command:
    preset, config, is_config = None, [], False

    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word in ("|", "||", "&&", ";", "&"):
            break

        if word.startswith("--"):
            is_config = word == "--config"

            preset = after if word == "--preset" else preset
        elif is_config and word not in ("…", "..."):
            config.append(word)

    return Command(verb, preset, tuple(config), " ".join(words))
