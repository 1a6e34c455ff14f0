"""Finds the installed recipes without importing them.

Recipes are declared in the entry-point group ``fairseq2.recipe``: the value of ``GROUP`` is a package whose
sub-packages with a ``__main__.py`` are verbs; the value of ``GROUP.VERB`` is one more verb, a package or a module.
Descriptions and presets are read from the files, since importing a recipe imports torch.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Final

ENTRY_POINT_GROUP: Final = "fairseq2.recipe"


@dataclass
class Verb:
    """A recipe that can be run."""

    name: str

    module: str
    """The package or module to run."""

    folder: Path | None
    """The folder of the package; ``None`` for a module."""

    source: Path
    """The file whose docstring describes the verb."""

    @property
    def description(self) -> str:
        return first_doc_line(self.source)

    @property
    def presets(self) -> dict[str, Path]:
        """The YAML files in ``configs/`` by name."""
        return find_presets(self.folder)


@dataclass
class Group:
    """Recipes that belong together."""

    name: str
    description: str = ""
    verbs: dict[str, Verb] = field(default_factory=dict)


def find_groups() -> dict[str, Group]:
    """Return what the installed distributions declare in the entry-point group ``fairseq2.recipe``."""
    from importlib.metadata import entry_points

    groups: dict[str, Group] = {}

    # Groups before single verbs; a distribution found twice (checkout and installation) says the same twice.
    points = sorted(set(entry_points(group=ENTRY_POINT_GROUP)), key=lambda e: (e.name.count("."), e.name, e.value))

    for point in points:
        group_name, _, verb_name = point.name.partition(".")

        spec = find_package_spec(point.value)
        if spec is None:
            _warn(f"The recipes '{point.name}' are declared, but there is no package '{point.value}'. Reinstall it.")

            continue

        group = groups.setdefault(group_name, Group(group_name))

        folder = get_folder(spec)

        if verb_name:
            found = [Verb(verb_name, spec.name, folder, _source(spec, folder))]
        else:
            found = _find_verbs(spec.name, folder)

            group.description = group.description or first_doc_line(_source(spec, folder))

        for verb in found:
            if (other := group.verbs.setdefault(verb.name, verb)).module != verb.module:
                _warn(f"'{group_name} {verb.name}' is declared twice: {other.module} is used, {verb.module} is not.")

    return groups


def _find_verbs(package: str, folder: Path | None) -> list[Verb]:
    if folder is None:
        return []

    mains = sorted(folder.glob("*/__main__.py"))

    return [Verb(m.parent.name, f"{package}.{m.parent.name}", m.parent, m.parent / "__init__.py") for m in mains]


def find_package_spec(name: str) -> ModuleSpec | None:
    """Find a package or module without importing its parents, which may import torch."""
    path: Any = None

    spec: ModuleSpec | None = None

    parts = name.split(".")

    for idx in range(len(parts)):
        part = ".".join(parts[: idx + 1])

        try:
            specs = (f.find_spec(part, path) for f in sys.meta_path)

            spec = next((s for s in specs if s is not None), None)
        except (ImportError, KeyError):  # a nested namespace package asks for its imported parent
            from importlib.util import find_spec

            try:
                return find_spec(name)
            except ImportError:
                return None

        if spec is None:
            return None

        # A package that is imported may have extended its path.
        path = getattr(sys.modules.get(part), "__path__", spec.submodule_search_locations)

    return spec


def get_folder(spec: ModuleSpec) -> Path | None:
    return next((Path(p) for p in spec.submodule_search_locations or []), None)


def _source(spec: ModuleSpec, folder: Path | None) -> Path:
    return folder / "__init__.py" if folder is not None else Path(spec.origin or "")


def find_presets(folder: Path | None) -> dict[str, Path]:
    """Return the YAML files in the folder's ``configs/`` by name."""
    return {p.stem: p for p in sorted((folder / "configs").glob("*.yaml"))} if folder is not None else {}


def first_doc_line(path: Path) -> str:
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""

    return (doc or "").partition("\n")[0].strip()


def first_comment_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ""

    return next((t for line in lines if line.startswith("#") and (t := line.lstrip("# ").strip())), "")


def _warn(message: str) -> None:
    print(f"fairseq2: warning: {message}", file=sys.stderr)
