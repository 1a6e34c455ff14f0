"""What can be configured: the dataclasses of verbs, components and models, as a tree of sections and keys."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

CONFIGS: Final = {"iterate": "hubert_plugin.refinement.config:RefinementConfig"}
"""The configurations of verbs that are no recipes of fairseq2."""

ARCHITECTURES: Final = {
    "hubert": "hubert_plugin.models.hubert.config:HubertConfig",
    "hubert_ctc": "hubert_plugin.models.hubert_ctc.config:HubertCtcConfig",
}
"""The configurations of model families: what ``model.config_overrides`` may hold."""

NO_DEFAULT: Final = object()


@dataclass(frozen=True)
class Key:
    """A configuration key."""

    name: str

    hint: Any
    """Its type."""

    annotation: str
    """Its type, as the source has it."""

    default: object
    """``NO_DEFAULT``: it must be given."""

    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of a dataclass."""

    path: str
    """Its dotted path; empty for the whole configuration, ``name[…]`` for items of a list."""

    kls: type

    keys: tuple[Key, ...]

    component: tuple[type, str] | None = None
    """If it names a component: the interface, and the name of the default."""

    @property
    def is_own(self) -> bool:
        return self.kls.__module__.startswith("hubert_plugin")


@cache
def verb_configs() -> dict[str, type]:
    """Return the configuration class of each verb."""
    from hubert_plugin.discovery import find_groups

    configs: dict[str, type] = {}

    for name, verb in find_groups()["hubert"].verbs.items():
        if not verb.module.startswith("hubert_plugin."):
            continue  # another distribution's

        if name in CONFIGS:
            configs[name] = _load(CONFIGS[name])

            continue

        assert verb.folder is not None

        match = re.search(r'run_recipe\(__package__, "(\w+):(\w+)"\)', (verb.folder / "__main__.py").read_text())

        if match is None:
            raise SystemExit(f"'{name}' is no recipe of fairseq2: `CONFIGS` must say where its configuration is.")

        configs[name] = _load(f"{verb.module}.{match[1]}:{match[2]}")().config_kls

    return dict(sorted(configs.items()))


@cache
def component_configs() -> dict[type, dict[str, type]]:
    """Return the configuration classes of this package's components, by interface and name."""
    from fairseq2.recipe.component import _ComponentEntry
    from fairseq2.runtime.dependency import get_dependency_resolver

    import hubert_plugin  # noqa: F401 - loads what fairseq2 needs
    from hubert_plugin.registry import ComponentSection

    resolver = get_dependency_resolver()

    interfaces = {section.component_kls for section in _subclasses(ComponentSection)}

    found: dict[type, dict[str, type]] = {}

    for key in resolver.iter_keys(_ComponentEntry):
        if isinstance(key, tuple) and key[0] in interfaces:
            entry = resolver.resolve(_ComponentEntry, key=key)

            found.setdefault(key[0], {})[key[1]] = entry.config_kls

    return {kls: dict(sorted(found[kls].items())) for kls in sorted(found, key=lambda k: k.__name__)}


def architectures() -> dict[str, type]:
    """Return the configuration class of each model family."""
    return {name: _load(place) for name, place in ARCHITECTURES.items()}


def sections(kls: type, default: object = None, path: str = "") -> Iterator[Section]:
    """Yield a configuration's sections, each before those that are in it."""
    keys = tuple(_keys(kls, default))

    interface = getattr(kls, "component_kls", None)

    component = (interface, str(getattr(default, "name", ""))) if isinstance(interface, type) else None

    yield Section(path, kls, keys, component)

    for key in keys:
        inner = f"{path}.{key.name}" if path else key.name

        if is_dataclass(key.default) and not isinstance(key.default, type):
            yield from sections(type(key.default), key.default, inner)

            continue

        for found, suffix in section_classes(key.hint):
            yield from sections(found, maybe_default(found), inner + suffix)


def _keys(kls: type, default: object) -> Iterator[Key]:
    hints, meanings = get_type_hints(kls), _meanings(kls)

    for f in fields(kls):
        if not f.init or f.name.startswith("_"):
            continue

        value = getattr(default, f.name, MISSING) if default is not None else MISSING

        if value is MISSING:
            value = f.default if f.default_factory is MISSING else f.default_factory()

        annotation = f.type if isinstance(f.type, str) else inspect.formatannotation(f.type)

        yield Key(
            f.name, hints[f.name], annotation, NO_DEFAULT if value is MISSING else value, meanings.get(f.name, "")
        )


def section_classes(hint: Any) -> Iterator[tuple[type, str]]:
    """Yield the dataclasses that a value of this type holds, and what stands between the key and theirs."""
    origin, args = get_origin(hint), get_args(hint)

    if isinstance(hint, type) and is_dataclass(hint):
        yield hint, ""
    elif origin in (Union, UnionType):
        for arg in args:
            yield from section_classes(arg)
    elif origin in (list, tuple) and args:
        yield from ((kls, f"[…]{suffix}") for kls, suffix in section_classes(args[0]))
    elif origin in (dict, Mapping) and len(args) == 2:
        yield from ((kls, f".…{suffix}") for kls, suffix in section_classes(args[1]))


def maybe_default(kls: type) -> object:
    try:
        return kls()
    except TypeError:  # it has keys that must be given
        return None


@cache
def _meanings(kls: type) -> dict[str, str]:
    """Return the strings under the fields of a dataclass, base classes included; nothing for others' classes."""
    meanings: dict[str, str] = {}

    for base in reversed(kls.__mro__):
        if not base.__module__.startswith("hubert_plugin"):
            continue

        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body

        assert isinstance(node, ast.ClassDef)

        for statement, after in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)

            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and is_text:
                meanings[statement.target.id] = _to_markdown(after.value.value)  # type: ignore[attr-defined]

    return meanings


def _subclasses(kls: type) -> Iterator[type]:
    for sub in kls.__subclasses__():
        yield sub

        yield from _subclasses(sub)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")

    return getattr(import_module(module), name)


def _to_markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", " ".join(text.split())).replace("``", "`")

    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = text.replace(f"`{python}`", f"`{yaml}`")

    # Notes to those who read the source.
    return re.sub(r" \((?:FACTS|DESIGN|trap)\b[^)]*\)", "", text)
