"""Dataclasses to JSON and back, strictly: what is missing, unknown or of another type is told, all at once."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hubert_plugin.errors import ReportError, format_problems

T = TypeVar("T")


def dump_json(data: object) -> str:
    """Return a dataclass as JSON text; what is not a finite number becomes ``null``."""
    return json.dumps(_finite(asdict(data)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"  # type: ignore[call-overload]


def parse_json(kls: type[T], text: str, format_: str) -> T:
    """Return the dataclass that :func:`dump_json` wrote.

    :param format_: What its field ``format`` must hold.
    :raises ReportError: Something is wrong with it.
    """
    try:
        plain = json.loads(text)
    except ValueError as ex:
        raise ReportError(f"A report must be JSON as this package writes it, but is not: {ex}.") from ex

    if not isinstance(plain, dict) or plain.get("format") != format_:
        found = plain.get("format") if isinstance(plain, dict) else None

        raise ReportError(
            f"A report must have the format '{format_}', but has "
            f"{'none' if found is None else repr(found)}. Make the report again with this version of the package."
        )

    problems: list[str] = []

    data = _parse(kls, plain, "", problems)

    if problems:
        raise ReportError(format_problems("The report is not what this package writes:", problems))

    return data  # type: ignore[no-any-return]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}

    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]

    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(type_: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Return ``value`` as ``type_``; what is wrong goes to ``problems``, and ``None`` comes back for it."""
    origin, args = get_origin(type_), get_args(type_)

    if origin in (Union, types.UnionType):  # `X | None` is the only one
        (inner,) = (a for a in args if a is not type(None))

        return None if value is None else _parse(inner, value, where, problems)

    if is_dataclass(type_):
        return _parse_fields(type_, value, where, problems)

    if origin is list:
        if isinstance(value, list):
            return [_parse(args[0], v, f"{where}[{i}]", problems) for i, v in enumerate(value)]
    elif origin is dict:
        if isinstance(value, dict):
            return {key: _parse(args[1], v, f"{where}.{key}", problems) for key, v in value.items()}
    elif type_ is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif type(value) is type_:
        return value

    name = origin.__name__ if origin is not None else type_.__name__

    problems.append(f"`{where}` must be of type {name}, but is {_shorten(value)}.")

    return None


def _parse_fields(kls: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        problems.append(f"`{where}` must be an object, but is {_shorten(value)}.")

        return None

    hints = get_type_hints(kls)

    known = {f.name: f for f in fields(kls)}

    prefix = f"{where}." if where else ""

    problems += [f"`{prefix}{name}` is not known." for name in value if name not in known]

    arguments = {}

    num_problems = len(problems)

    for name, f in known.items():
        if name in value:
            arguments[name] = _parse(hints[name], value[name], f"{prefix}{name}", problems)
        elif f.default is MISSING and f.default_factory is MISSING:
            problems.append(f"`{prefix}{name}` is missing.")

    return kls(**arguments) if len(problems) == num_problems else None


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)

    return text if len(text) <= 40 else f"{text[:39]}…"
