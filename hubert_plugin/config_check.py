"""Checks configuration keys before fairseq2 parses them, and words what fairseq2 finds wrong afterwards.

fairseq2 answers an unknown key or a value of the wrong type with a stack trace. :func:`check_config_keys` compares the
keys of YAML files and command lines with the recipe's dataclass tree and names the nearest known keys;
:class:`ErrorSentences` turns the log records of what is left (wrong types, components' own keys) into sentences.
Neither imports torch.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from hubert_plugin.errors import ConfigError, HubertError, format_problems

_DIRECTIVES: Final = ("_set_", "_del_", "_add_")
_MAX_DEPTH: Final = 8


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

    if not isinstance(documents[0], Mapping):
        raise ConfigError(
            f"The configuration file '{path}' must hold keys and values, but holds a {type(documents[0]).__name__}."
        )

    return ConfigSource(str(path), documents[0])


def check_config_keys(config_kls: type, sources: Sequence[ConfigSource]) -> None:
    """Check that every key of ``sources``, merged in order over ``config_kls``, is a field of the dataclass tree.

    :raises ConfigError: Names every unknown key with its dotted path and the nearest known keys.
    """
    if not is_dataclass(config_kls):
        return

    try:
        default = config_kls()
    except TypeError:
        default = None  # fairseq2 says what is wrong with the recipe

    checker = _KeyChecker(config_kls, default)

    for source in sources:
        checker.check(source)

    if len(checker.problems) == 1:
        raise ConfigError(checker.problems[0])

    if checker.problems:
        raise ConfigError(format_problems("The configuration has unknown keys:", checker.problems))


class _KeyChecker:
    def __init__(self, kls: type, default: object) -> None:
        self.problems: list[str] = []

        self._kls = kls
        self._default = default
        self._label = ""

        # Sections whose component was exchanged: what their `config` may hold is known to the component only.
        self._exchanged: set[tuple[str, ...]] = set()

    def check(self, source: ConfigSource) -> None:
        self._label = source.label

        self._check_section(source.values, self._kls, self._default, ())

    def _check_section(self, values: Mapping[Any, Any], kls: type, default: object, path: tuple[str, ...]) -> None:
        hints, known = _hints(kls), [f.name for f in fields(kls)]

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
        origin, args = get_origin(hint), get_args(hint)

        if isinstance(value, Mapping):
            if (kls := _maybe_section_kls(hint)) is not None:
                self._check_section(value, kls, default, path)
            elif origin in (dict, Mapping) and len(args) == 2:
                for key, item in _entries(value):
                    self._check_value(item, args[1], None, (*path, str(key)))
            elif path[-1] == "config" and is_dataclass(default) and path[:-1] not in self._exchanged:
                self._check_section(value, type(default), default, path)
        elif isinstance(value, list) and origin in (list, tuple, Sequence) and args:
            for idx, item in enumerate(value):
                self._check_value(item, args[0], None, (*path[:-1], f"{path[-1]}[{idx}]"))

    def _add_problem(self, key: str, known: Sequence[str], path: tuple[str, ...]) -> None:
        section = ".".join(path)
        dotted = ".".join((*path, key))

        near = [".".join((*path, k)) for k in get_close_matches(key, known, n=3, cutoff=0.6)]

        # The key may be right and the section wrong: `max_num_steps` instead of `regime.max_num_steps`.
        for other in _iter_paths(self._kls, self._default):
            if other.rpartition(".")[2] == key and other not in near:
                near.append(other)

        hint = f" Did you mean {' or '.join(repr(n) for n in near[:4])}?" if near else ""
        where = f"'{section}'" if section else "the recipe"

        self.problems.append(
            f"{self._label}: '{dotted}' is not a known configuration key.{hint} Keys of {where}: {', '.join(known)}."
        )


def _entries(values: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the keys and values of a section, those under ``_set_`` included, without the directives themselves."""
    for key, value in values.items():
        if key not in _DIRECTIVES:
            yield key, value

    replaced = values.get("_set_")
    if isinstance(replaced, Mapping):
        yield from replaced.items()


def _hints(kls: type) -> dict[str, Any]:
    try:
        return get_type_hints(kls)
    except Exception:  # a type that cannot be resolved is fairseq2's to report
        return {}


def _maybe_section_kls(hint: object) -> type | None:
    """Return the dataclass that ``hint`` stands for, if it stands for exactly one."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)

    sections = [o for o in options if isinstance(o, type) and is_dataclass(o)]

    return sections[0] if len(sections) == 1 else None


def _iter_paths(kls: type, default: object, prefix: str = "", depth: int = 0) -> Iterator[str]:
    if depth == _MAX_DEPTH:
        return

    hints = _hints(kls)

    for field in fields(kls):
        path = f"{prefix}{field.name}"

        yield path

        value = getattr(default, field.name, None)

        section = _maybe_section_kls(hints.get(field.name, object))
        if section is None and is_dataclass(value) and not isinstance(value, type):
            section = type(value)

        if section is not None:
            yield from _iter_paths(section, value, f"{path}.", depth + 1)


_FIELD = re.compile(r"^`([\w.]+)` (?:field )?cannot be structured")
_KEY = re.compile(r"^(?:Value of the )?(\S+) key cannot be structured")
_ELEMENT = re.compile(r"^Element .*?at index (\d+) cannot be structured", re.DOTALL)
_EXTRA_KEYS = re.compile(r"fields of `<class '([\w.]+)'>`, but it contains extra key\(s\) (.+)\.$")
_UNPARSABLE = re.compile(r"^`obj` cannot be parsed as `<class '(\w+)'>`")
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def describe_config_error(ex: BaseException, config_kls: type | None = None) -> str:
    """Say in a sentence what fairseq2's chain of parse errors means: the path of the key and the innermost cause."""
    path: list[str] = []

    last, kind = ex, ""

    for last in _iter_causes(ex):
        message = str(last)

        if match := _FIELD.match(message):
            path.append(match[1])
        elif match := _ELEMENT.match(message):
            path[-1:] = [f"{path[-1] if path else ''}[{match[1]}]"]
        elif match := _KEY.match(message):
            path.append(match[1])
        elif match := _UNPARSABLE.match(message):
            kind = match[1]

    message = str(last).partition("\n")[0]

    extra = _EXTRA_KEYS.search(message)

    where = f"'{_dotted(path, config_kls, extra[1] if extra else '')}'" if path else "The configuration"

    if extra:
        return f"{where} cannot be used: {_describe_extra_keys(extra[1], extra[2].split(', '))}"

    if kind:
        message = f"must be of type `{kind}` ({message})"

    message = _CLASS.sub(r"\1", message).removeprefix("Value ").rstrip(".")

    return f"{where} cannot be used: {message}."


def _iter_causes(ex: BaseException) -> Iterator[BaseException]:
    """Yield ``ex`` and its explicit causes, outermost first."""
    cause: BaseException | None = ex

    while cause is not None:
        yield cause

        cause = cause.__cause__


def _dotted(path: Sequence[str], config_kls: type | None, extra_kls_name: str) -> str:
    """Join ``path``; fairseq2 leaves out the key ``config`` where a component's own configuration begins.

    :param extra_kls_name: The class that was given keys it does not have, or empty.
    """
    parts: list[str] = []

    kls = config_kls

    for part in ".".join(path).split("."):
        name = part.partition("[")[0]

        if kls is not None and is_dataclass(kls):
            known = [f.name for f in fields(kls)]

            if name not in known and "config" in known:
                parts.append("config")

                kls = None
            else:
                kls = _maybe_section_kls(_hints(kls).get(name, object))

        parts.append(part)

    if extra_kls_name and kls is not None and f"{kls.__module__}.{kls.__qualname__}" != extra_kls_name:
        parts.append("config")

    return ".".join(parts)


def _describe_extra_keys(kls_name: str, keys: Sequence[str]) -> str:
    module, _, name = kls_name.rpartition(".")

    kls = getattr(sys.modules.get(module), name, None)

    known = [f.name for f in fields(kls)] if isinstance(kls, type) and is_dataclass(kls) else []

    near = [n for k in keys for n in get_close_matches(k, known, n=2, cutoff=0.6)]

    extra = " and ".join(f"'{k}'" for k in keys)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    rest = f" Known keys: {', '.join(known) or 'none'}." if kls is not None else ""

    return f"{extra} {'is not a known key' if len(keys) == 1 else 'are not known keys'}.{hint}{rest}"


def _describe_wandb_error(ex: BaseException) -> str:
    return (
        f"Weights & Biases could not be used: {str(ex).strip().rstrip('.')}. Run `wandb login`, or set WANDB_API_KEY; "
        "with WANDB_MODE=offline the curves stay on this machine, and `common.metric_recorders.wandb.enabled=false` "
        "does without."
    )


class ErrorSentences(logging.Filter):
    """Answers what a user can mend with a sentence, where fairseq2's runner would log a stack trace.

    Attach it to fairseq2's logger. ``exit_code`` is the code to exit with if the filter answered an error.
    """

    def __init__(self, config_kls: type | None = None) -> None:
        super().__init__()

        self.exit_code: int | None = None

        self._config_kls = config_kls

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            self._check_own_extension(record)

            return True

        ex = record.exc_info[1] if record.exc_info else None
        if ex is None or record.levelno < logging.ERROR:
            return True

        sentence = self._maybe_describe(ex)

        if (rank := os.environ.get("RANK", "0")) != "0":
            # fairseq2 shows what rank 0 logs; a rank that ends alone would leave the others waiting without a word.
            print(f"rank {rank}: {sentence or f'{type(ex).__name__}: {ex}'}", file=sys.stderr, flush=True)

        if sentence is not None:
            record.msg, record.args, record.exc_info, record.exc_text = sentence, (), None, None

            self.exit_code = 2

        return True

    def _maybe_describe(self, ex: BaseException) -> str | None:
        from fairseq2.error import OperationalError
        from fairseq2.recipe.error import RecipeConfigParseError, WandbInitializationError
        from fairseq2.utils.structured import StructureError

        causes = list(_iter_causes(ex))

        for cause in causes:
            if isinstance(cause, HubertError):
                return str(cause)

        if isinstance(ex, RecipeConfigParseError | StructureError):
            return describe_config_error(ex, self._config_kls)

        # wandb has errors of its own; fairseq2 knows only some of them.
        if (error := next((c for c in causes if type(c).__module__.startswith("wandb.")), None)) is not None:
            return _describe_wandb_error(error)

        if isinstance(ex, WandbInitializationError):
            return _describe_wandb_error(ex.__cause__ or ex)

        # A full disk, a folder that may not be written: the system's own words say it best.
        if isinstance(ex, OperationalError) and isinstance(os_error := causes[-1], OSError) and os_error.errno:
            return f"The operating system refused: {os_error}."

        return None

    @staticmethod
    def _check_own_extension(record: logging.LogRecord) -> None:
        # fairseq2 only warns, and the recipe would fail later for reasons that seem unrelated.
        if not str(record.msg).startswith("hubert_plugin:setup_fairseq2_extension "):
            return

        ex = sys.exc_info()[1]

        raise ConfigError(
            f"hubert_plugin could not be set up as an extension of fairseq2, so no recipe can run: "
            f"{type(ex).__name__}: {ex}. Set FAIRSEQ2_EXTENSION_TRACE=1 to see the stack trace."
        )
