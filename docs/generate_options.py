"""Writes ``docs/options/``: what can be configured, read from the configuration dataclasses.

    python docs/generate_options.py

A page for each verb and one for the components. Keys, types and defaults come from the dataclasses, meanings from the
strings under their fields. Of fairseq2's own sections only keys, types and defaults are given.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from config_tree import (
    NO_DEFAULT,
    Key,
    Section,
    architectures,
    component_configs,
    maybe_default,
    sections,
    verb_configs,
)

FOLDER: Final = Path(__file__).parent / "options"

COMMAND: Final = "python docs/generate_options.py"

GUIDES: Final = {
    "manifest": "own-data.md",
    "features": "export.md",
    "cluster": "units.md",
    "label": "labels.md",
    "pretrain": "pretraining.md",
    "analyze": "analysis.md",
    "finetune": "finetuning.md",
    "transcribe": "decoding.md",
    "evaluate": "decoding.md",
    "export": "export.md",
}
"""The page that explains a verb, where it is not named for the verb."""

_HEAD: Final = f"<!-- Written by `{COMMAND}`; changes made here are lost. -->"


def main() -> int:
    pages = render_pages()

    FOLDER.mkdir(exist_ok=True)

    for path in FOLDER.glob("*.md"):
        if path.name not in pages:
            path.unlink()

    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")

    print(f"{len(pages)} pages are in {FOLDER}.")

    return 0


def render_pages() -> dict[str, str]:
    """Return the pages by file name."""
    pages = {f"{name}.md": _render_verb(name, kls) for name, kls in verb_configs().items()}

    pages["components.md"] = _render_components()

    pages["README.md"] = _render_index(pages)

    return dict(sorted(pages.items()))


def _render_verb(name: str, kls: type) -> str:
    from hubert_plugin.discovery import find_groups, first_comment_line

    verb = find_groups()["hubert"].verbs[name]

    lines = [f"# Options of `{name}`", "", _HEAD, "", verb.description]

    guide = GUIDES.get(name, f"{name}.md")

    if (FOLDER.parent / guide).exists():
        lines[-1] += f" [{guide.removesuffix('.md')}](../{guide}) explains it."

    if presets := verb.presets:
        lines += ["", "## Presets", "", "| `--preset` | what it is |", "|---|---|"]

        lines += [f"| `{n}` | {_cell(first_comment_line(path))} |" for n, path in sorted(presets.items())]

    found = list(sections(kls, maybe_default(kls)))

    lines += ["", "## Keys", ""]

    for section in found:
        if section.is_own:
            if section.path:
                lines += ["", f"## `{section.path}`", ""]

            lines += _render_section(section)

    if foreign := [s for s in found if not s.is_own]:
        lines += ["", "## Sections of fairseq2", "", "Their meanings are in fairseq2's documentation."]

        if any(s.path == "model" for s in foreign):
            links = ", ".join(f"[`{n}`](components.md#{_anchor(_family_title(n))})" for n in architectures())

            lines[-1] += f" The keys of `model.config_overrides` are those of the model's family: {links}."

        lines.append("")

        lines += ["| key | type | default |", "|---|---|---|"]

        for section in foreign:
            for key in section.keys:
                if not _is_section(key):
                    lines.append(f"| `{section.path}.{key.name}` | {_type(key)} | {_default(key)} |")

    return "\n".join(lines) + "\n"


def _render_section(section: Section, target: str = "components.md") -> list[str]:
    lines = []

    own = [k for k in section.keys if not (section.component and k.name == "config")]

    if own:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]

        lines += [f"| `{k.name}` | {_type(k)} | {_default(k)} | {_cell(k.meaning)} |" for k in own]

    if section.component:
        interface, _ = section.component

        names = component_configs().get(interface, {})

        links = ", ".join(f"[`{n}`]({target}#{_anchor(_component_title(interface, n))})" for n in names)

        lines += ["", f"The keys of `{section.path}.config` are those of the component: {links or 'none'}."]

    return lines or ["There are no keys."]


def _render_components() -> str:
    lines = ["# Options of components", "", _HEAD, ""]

    lines += ["What a section with the keys `name` and `config` may name, and the keys of its `config`."]

    for interface, configs in component_configs().items():
        for name, kls in configs.items():
            lines += ["", f"## {_component_title(interface, name)}", ""]

            lines += _render_nested(kls)

    for name, kls in architectures().items():
        lines += ["", f"## {_family_title(name)}", "", "Keys of `model.config_overrides`.", ""]

        lines += _render_nested(kls)

    return "\n".join(lines) + "\n"


def _render_nested(kls: type) -> list[str]:
    lines = []

    for section in sections(kls, maybe_default(kls)):
        if not section.is_own:
            continue

        if section.path:
            lines += ["", f"`{section.path}`:", ""]

        lines += _render_section(section, "")

    return lines


def _render_index(pages: Mapping[str, str]) -> str:
    from hubert_plugin.discovery import find_groups

    verbs = find_groups()["hubert"].verbs

    lines = ["# Options", "", _HEAD, "", "| verb | what it does |", "|---|---|"]

    lines += [f"| [`{n}`]({n}.md) | {verbs[n].description} |" for n in verb_configs()]

    lines += [
        "",
        "[Components](components.md) has feature sources, unit models, tasks, criteria, heads and model architectures.",
        "",
        "`fairseq2 recipe hubert VERB --dump-config` prints the whole configuration of a verb as YAML, `--config`",
        "changes single keys, and a key with a dot is one inside of a section: `--config features.config.rate=50`.",
        "Values are YAML: `null`, `true`, `[50, 100]`, `{rate: 50}`.",
    ]

    return "\n".join(lines) + "\n"


def _component_title(interface: type, name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", interface.__name__.removeprefix("Hubert")).capitalize()

    return f"{words} `{name}`"


def _family_title(name: str) -> str:
    return f"Models of the family `{name}`"


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _is_section(key: Key) -> bool:
    return is_dataclass(key.default) and not isinstance(key.default, type)


def _type(key: Key) -> str:
    if _is_section(key):
        return "section"

    if choices := _choices(key.hint):
        return " / ".join(f"`{_show(c)}`" for c in choices)

    text = re.sub(r"\b(?:[a-z_]\w*\.)+", "", key.annotation)

    for python, yaml in (("None", "null"), ("Sequence", "list"), ("Mapping", "dict"), ("object", "any")):
        text = re.sub(rf"\b{python}\b", yaml, text)

    return f"`{_cell(text)}`"


def _choices(hint: Any) -> tuple[object, ...]:
    """Return the values that a type lists; nothing if it is not such a type."""
    if get_origin(hint) is Literal:
        return get_args(hint)

    if get_origin(hint) in (Union, UnionType):
        parts = [(None,) if a is type(None) else _choices(a) for a in get_args(hint)]

        return tuple(c for part in parts for c in part) if all(parts) else ()

    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(hint)

    return ()


def _default(key: Key) -> str:
    if key.default is NO_DEFAULT:
        return "must be given"

    return "" if _is_section(key) else f"`{_cell(_show(key.default))}`"


def _show(value: object) -> str:
    """Return a value as YAML has it in one line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.name)
        case float():
            return f"{value:.10g}" if value < 1e6 else f"{value:g}"
        case int() | Path():
            return str(value)
        case str():
            return value if value else '""'
        case list() | tuple():
            return f"[{', '.join(map(_show, value))}]"
        case dict():
            return f"{{{', '.join(f'{_show(k)}: {_show(v)}' for k, v in value.items())}}}"

    if is_dataclass(value) and not isinstance(value, type):
        return f"{{{', '.join(f'{f.name}: {_show(getattr(value, f.name))}' for f in fields(value))}}}"

    return str(value).removeprefix("torch.")


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
