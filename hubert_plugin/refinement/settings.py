"""From YAML and ``--config KEY=VALUE`` to dataclasses, and back, without torch.

The rules are those of fairseq2's recipes (sections merge, ``KEY=VALUE`` replaces one value, ``del:KEY`` removes it),
and one more: a number in a key is a place in a list, counted from 0 (``rounds.1.units.config.num_clusters=100``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from io import StringIO
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from hubert_plugin.errors import ConfigError, format_problems

T = TypeVar("T")

_PLAIN: Final = re.compile(r"[A-Za-z_./~…][\w./~@%+…-]*")
"""Text that YAML reads as it stands, also inside of brackets, unless it is a word such as ``null``."""


def apply_overrides(values: Mapping[str, Any], items: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with the overrides ``KEY=VALUE`` and ``del:KEY``.

    :raises ConfigError: One is not of this form, or names a place that a list does not have.
    """
    result: dict[str, Any] = deepcopy(dict(values))

    for item in items:
        if item.strip().startswith("del:"):
            key, value, remove = item.strip()[4:], None, True
        else:
            key, _, text = item.partition("=")

            key, value, remove = key.strip().removeprefix("set:"), _parse_yaml(text, item), False

        _set(result, key, value, remove)

    return result


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, section by section."""
    result = deepcopy(dict(base))

    for key, value in changes.items():
        old = result.get(key)

        both = isinstance(old, Mapping) and isinstance(value, Mapping)

        result[key] = merge(old, value) if both else deepcopy(value)  # type: ignore[arg-type]

    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted keys. Empty sections stay values, as what replaces others."""
    result: dict[str, Any] = {}

    for key, value in values.items():
        name = f"{prefix}{key}"

        if isinstance(value, Mapping) and value:
            result |= flatten(value, f"{name}.")
        else:
            result[name] = value

    return result


def structure(kls: type[T], values: Mapping[str, Any]) -> T:
    """Return a dataclass with ``values``, whose keys were checked before.

    :raises ConfigError: Names all values that are of another type than their fields.
    """
    problems: list[str] = []

    result = _structure(kls, values, "", problems)

    if problems:
        raise ConfigError(format_problems("The configuration cannot be used:", problems))

    return result  # type: ignore[no-any-return]


def unstructure(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain data; paths become text."""
    return _plain(asdict(config))  # type: ignore[no-any-return]


def dump_yaml(values: Any) -> str:
    """Return plain data as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)

    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096
    yaml.allow_unicode = True

    stream = StringIO()

    yaml.dump(values, stream)

    return stream.getvalue()


def flow_yaml(value: Any) -> str:
    """Return a value as it stands behind ``KEY=``: YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow_yaml(str(k))}: {flow_yaml(v)}" for k, v in value.items()) + "}"

    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(flow_yaml(v) for v in value) + "]"

    if isinstance(value, (str, Path)):
        return _flow_text(str(value))

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)

    yaml.default_flow_style = True

    stream = StringIO()

    # Alone it would be followed by the mark of a document's end.
    yaml.dump([value], stream)

    return stream.getvalue().strip()[1:-1]


def _flow_text(text: str) -> str:
    """Return text as it is where it cannot be taken for anything else, and else in double quotes."""
    if _PLAIN.fullmatch(text) and _parse_yaml(text, text) == text:
        return text

    def escape(char: str) -> str:
        if char in '"\\':
            return f"\\{char}"

        return char if char.isprintable() else f"\\U{ord(char):08x}"

    return '"' + "".join(map(escape, text)) + '"'


def _parse_yaml(text: str, item: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text.lstrip())
    except YAMLError:
        raise ConfigError(f"--config: the value of '{item}' must be YAML.") from None


def _set(target: dict[str, Any], key: str, value: Any, remove: bool) -> None:
    parts = key.split(".")

    node: Any = target

    for idx, part in enumerate(parts):
        last = idx == len(parts) - 1

        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(
                    f"--config: '{key}' names the place '{part}' of a list that has {len(node)}: 0 to {len(node) - 1}."
                    if node
                    else f"--config: '{key}' names the place '{part}' of a list that is empty."
                )

            place: Any = int(part)
        else:
            place = part

        if not last:
            child = node[place] if isinstance(node, list) else node.get(place)

            if not isinstance(child, (dict, list)):
                if remove:
                    return

                child = {}

                node[place] = child

            node = child
        elif not remove:
            node[place] = value
        elif isinstance(node, list) or place in node:
            del node[place]


def _structure(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)

    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None

        options = [a for a in args if a is not type(None)]

        if len(options) == 1:
            return _structure(options[0], value, where, problems)

        for option in options:
            attempt: list[str] = []

            result = _structure(option, value, where, attempt)

            if not attempt:
                return result

        names = " or ".join(_type_name(o) for o in options)

        problems.append(f"`{where}` must be {names}, but is {value!r} instead.")

        return None

    if is_dataclass(hint):
        return _structure_fields(hint, value, where, problems)

    if hint in (object, Any):
        return value

    if origin is list and isinstance(value, (list, tuple)):
        return [_structure(args[0], v, f"{where}[{i}]", problems) for i, v in enumerate(value)]

    if origin is dict and isinstance(value, Mapping):
        return {str(k): _structure(args[1], v, f"{where}.{k}", problems) for k, v in value.items()}

    if hint is Path and isinstance(value, str) and value:
        return Path(value)

    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)

    if isinstance(hint, type) and type(value) is hint:
        return value

    problems.append(f"`{where}` must be {_type_name(origin or hint)}, but is {value!r} instead.")

    return None


def _structure_fields(kls: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"`{where}` must be keys and values, but is {value!r} instead.")

        return None

    hints = get_type_hints(kls)

    prefix = f"{where}." if where else ""

    count = len(problems)

    given = {
        f.name: _structure(hints[f.name], value[f.name], f"{prefix}{f.name}", problems)
        for f in fields(kls)
        if f.name in value
    }

    return kls(**given) if len(problems) == count else None


def _type_name(kls: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}

    names |= {list: "a list", dict: "keys and values"}

    return names.get(get_origin(kls) or kls, getattr(kls, "__name__", str(kls)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}

    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]

    return str(value) if isinstance(value, Path) else value
