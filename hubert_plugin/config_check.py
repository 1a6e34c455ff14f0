"""Checks configuration keys, and some values, before fairseq2 parses them.

fairseq2 answers an unknown key with a stack trace. :func:`check_config_keys` compares the keys of YAML files and
command lines with the recipe's dataclass tree and names the nearest known keys. What is left (wrong types, components'
own keys) is worded by ``error_sentences.py``. Neither imports torch.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from hubert_plugin.errors import ConfigError, format_problems

_DIRECTIVES: Final = ("_set_", "_del_", "_add_")
_MAX_DEPTH: Final = 8


_LIMITS: Final = (
    (r"seed", 0, 2**32 - 1, "a number from 0 to 4294967295"),
    (r"\w+_every_n_\w+", 1, sys.maxsize, "1 or greater (`null` is never)"),
    (r"max_grad_norm", sys.float_info.min, math.inf, "greater than 0 (`null` does not clip)"),
)
"""Keys whose values fairseq2 does not check before it uses them: name, smallest and largest value, in words."""

_MAY_BE_INFINITE: Final = re.compile(r"max_(?!\w*(batch|chunk)_seconds)\w+|\w*threshold")
"""Keys of limits, where infinity says that there is none."""

_FLOATS: Final = "float32, bfloat16, float16 or float64"
_FLOATING: Final = re.compile(r"(torch\.)?(float32|bfloat16|float16|float64|float|half|double)")


@dataclass(frozen=True)
class ConfigSource:
    """Configuration values in fairseq2's mergeable form, and where they come from."""

    label: str
    """What a problem is reported against: the name of the file, or ``--config``."""

    values: Mapping[Any, Any]


def read_config_file(path: Path) -> ConfigSource:
    """Read the YAML file ``path``.

    :raises ConfigError: If there is no such file, or if it does not hold a mapping of keys to values.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        documents = list(YAML(typ="safe", pure=True).load_all(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file '{path}'.") from None
    except IsADirectoryError:
        raise ConfigError(f"'{path}' is a folder, not a configuration file.") from None
    except (OSError, UnicodeDecodeError) as ex:
        raise ConfigError(f"The configuration file '{path}' cannot be read: {ex}.") from None
    except MarkedYAMLError as ex:
        mark = ex.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""

        raise ConfigError(f"'{path}'{where} is not valid YAML: {ex.problem or ex.context}.") from None
    except YAMLError as ex:
        raise ConfigError(f"'{path}' is not valid YAML: {ex}.") from None

    if not documents or documents[0] is None:
        raise ConfigError(f"The configuration file '{path}' is empty.")

    if any(document is not None for document in documents[1:]):
        raise ConfigError(
            f"The configuration file '{path}' holds {len(documents)} YAML documents (divided by `---`), but must hold "
            "one. Put all keys into one document."
        )

    if not isinstance(documents[0], Mapping):
        raise ConfigError(
            f"The configuration file '{path}' must hold keys and values, but holds a {type(documents[0]).__name__}."
        )

    if _holds_itself(documents[0], ()):
        raise ConfigError(f"In '{path}' a section holds itself: an alias (`*x`) stands inside of its anchor (`&x`).")

    return ConfigSource(str(path), documents[0])


def _holds_itself(value: object, above: tuple[int, ...]) -> bool:
    if not isinstance(value, (Mapping, list)):
        return False

    items = value.values() if isinstance(value, Mapping) else value

    return id(value) in above or any(_holds_itself(item, (*above, id(value))) for item in items)


def check_config_values(config_kls: type, source: ConfigSource) -> None:
    """Check the values of ``source`` as :func:`check_config_keys` does, and leave unknown keys to fairseq2.

    :raises ConfigError: Names every such value.
    """
    _check(config_kls, [source], keys=False)


def check_config_keys(config_kls: type, sources: Sequence[ConfigSource]) -> None:
    """Check that every key of ``sources``, merged in order over ``config_kls``, is a field of the dataclass tree, and
    what fairseq2 would take for something else: 2.5 for a whole number, a word for the list of its letters.

    :raises ConfigError: Names every unknown key with its dotted path and the nearest known keys, and such values.
    """
    _check(config_kls, sources, keys=True)


def _check(config_kls: type, sources: Sequence[ConfigSource], *, keys: bool) -> None:
    if not is_dataclass(config_kls):
        return

    try:
        default = config_kls()
    except TypeError:
        default = None  # fairseq2 says what is wrong with the recipe

    checker = _Checker(config_kls, default, keys=keys)

    for source in sources:
        checker.check(source)

    if len(checker.problems) == 1:
        raise ConfigError(checker.problems[0])

    if checker.problems:
        raise ConfigError(format_problems("The configuration cannot be used:", checker.problems))


class _Checker:
    def __init__(self, kls: type, default: object, *, keys: bool) -> None:
        self.problems: list[str] = []

        self._judges_keys = keys

        self._kls = kls
        self._default = default
        self._label = ""

        # Sections whose component was exchanged: what their `config` may hold is known to the component only.
        self._exchanged: set[tuple[str, ...]] = set()

    def check(self, source: ConfigSource) -> None:
        self._label = source.label

        self._check_section(source.values, self._kls, self._default, ())

    def _check_section(self, values: Mapping[Any, Any], kls: type, default: object, path: tuple[str, ...]) -> None:
        hints, known = get_hints(kls), [f.name for f in fields(kls)]

        entries = list(_entries(values))

        for key, value in entries:
            if key == "name" and "config" in known and value != getattr(default, "name", None):
                self._exchanged.add(path)

        for key, value in entries:
            if key not in known:
                self._add_problem(str(key), known, path)
            else:
                self._check_value(value, hints.get(key, object), getattr(default, key, None), (*path, key))

        removed = values.get("_del_")

        for key in removed if isinstance(removed, list) else []:
            if key not in known:
                self._add_problem(str(key), known, path)

    def _check_value(self, value: object, hint: object, default: object, path: tuple[str, ...]) -> None:
        options = _options(hint)

        # `list[int] | None` holds what `list[int]` does.
        items = options[0] if len(options) == 1 else hint

        origin, args = get_origin(items), get_args(items)

        reason = _why_unusable(value, hint, path)

        if path[-1] == "config" and is_dataclass(default) and path[:-1] not in self._exchanged:
            reason = reason or _why_no_section(value)

        if reason:
            self.problems.append(f"{self._label}: `{'.'.join(path)}` {reason}.")

            return

        if isinstance(value, Mapping):
            if path[-1] == "config_overrides":
                self._check_plain(value, path)
            elif (kls := maybe_section_kls(hint)) is not None:
                self._check_section(value, kls, default, path)
            elif origin in (dict, Mapping) and len(args) == 2:
                for key, item in _entries(value):
                    self._check_value(item, args[1], None, (*path, str(key)))
            elif path[-1] == "config" and is_dataclass(default) and path[:-1] not in self._exchanged:
                self._check_section(value, type(default), default, path)
        elif isinstance(value, list) and origin in (list, tuple, Sequence) and args:
            for idx, item in enumerate(value):
                self._check_value(item, args[0], None, (*path[:-1], f"{path[-1]}[{idx}]"))

    def _check_plain(self, value: object, path: tuple[str, ...]) -> None:
        """Check numbers of whose types nothing is known here: the model's own options."""
        if isinstance(value, Mapping):
            for key, item in _entries(value):
                self._check_plain(item, (*path, str(key)))
        elif isinstance(value, list):
            for idx, item in enumerate(value):
                self._check_plain(item, (*path[:-1], f"{path[-1]}[{idx}]"))
        elif reason := _why_unusable(value, object, path):
            self.problems.append(f"{self._label}: `{'.'.join(path)}` {reason}.")

    def _add_problem(self, key: str, known: Sequence[str], path: tuple[str, ...]) -> None:
        if not self._judges_keys:
            return

        section = ".".join(path)
        dotted = ".".join((*path, key))

        near = [".".join((*path, k)) for k in get_close_matches(key, known, n=3, cutoff=0.6)]

        # The key may be right and the section wrong: `max_num_steps` instead of `regime.max_num_steps`.
        for other in iter_config_paths(self._kls, self._default):
            if other.rpartition(".")[2] == key and other not in near:
                near.append(other)

        hint = f" Did you mean {' or '.join(repr(n) for n in near[:4])}?" if near else ""
        where = f"'{section}'" if section else "the recipe"

        self.problems.append(
            f"{self._label}: '{dotted}' is not a known configuration key.{hint} Keys of {where}: {', '.join(known)}."
        )


def _why_unusable(value: object, hint: object, path: tuple[str, ...]) -> str:
    """Return what is wrong with a value that fairseq2 would not complain about, or only by a stack trace."""
    if isinstance(value, float) and math.isnan(value):
        return "must be a number, but is NaN"

    if isinstance(value, float) and math.isinf(value) and not _MAY_BE_INFINITE.fullmatch(path[-1]):
        return f"must be a finite number, but is {value}"

    options = _options(hint)

    if isinstance(value, str) and any(_is_dtype(option) for option in options):
        return "" if _FLOATING.fullmatch(value) else f"must be a floating-point type ({_FLOATS}), but is '{value}'"

    if isinstance(value, float) and not value.is_integer() and options == [int]:
        return f"must be a whole number, but is {value}"

    if isinstance(value, str) and len(options) == 1 and get_origin(options[0]) in (list, tuple, Sequence):
        return f"must be a list, such as [{value or 'a, b'}], but is '{value}'"

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        for pattern, lowest, highest, words in _LIMITS:
            if re.fullmatch(pattern, path[-1]) and not lowest <= value <= highest:
                return f"must be {words}, but is {value}"

    if path[-1] == "config_overrides" and value is not None:
        return _why_no_section(value)

    return ""


def _why_no_section(value: object) -> str:
    return "" if isinstance(value, Mapping) else f"must hold keys and values, but is {_in_yaml(value)}"


def _in_yaml(value: object) -> str:
    return "null" if value is None else repr(value)


def _is_dtype(hint: object) -> bool:
    # By name: this module does not import torch.
    return isinstance(hint, type) and (hint.__module__, hint.__qualname__) == ("torch", "dtype")


def _options(hint: object) -> list[Any]:
    """Return the types that ``hint`` allows besides ``None``."""
    return [o for o in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)) if o is not type(None)]


def _entries(values: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a section, those under ``_set_`` included, without the directives themselves."""
    for key, value in values.items():
        if key not in _DIRECTIVES:
            yield key, value

    replaced = values.get("_set_")
    if isinstance(replaced, Mapping):
        yield from replaced.items()


def get_hints(kls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, as far as they are known."""
    try:
        return get_type_hints(kls)
    except Exception:  # a type that cannot be resolved is fairseq2's to report
        return {}


def maybe_section_kls(hint: object) -> type | None:
    """Return the dataclass that ``hint`` stands for, if it stands for exactly one."""
    sections = [o for o in _options(hint) if isinstance(o, type) and is_dataclass(o)]

    return sections[0] if len(sections) == 1 else None


def iter_config_paths(kls: type, default: object, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """Yield the dotted path of every key of a configuration."""
    if depth == _MAX_DEPTH:
        return

    hints = get_hints(kls)

    for field in fields(kls):
        path = f"{prefix}{field.name}"

        yield path

        value = getattr(default, field.name, None)

        section = maybe_section_kls(hints.get(field.name, object))
        if section is None and is_dataclass(value) and not isinstance(value, type):
            section = type(value)

        if section is not None:
            yield from iter_config_paths(section, value, f"{path}.", depth + 1)
