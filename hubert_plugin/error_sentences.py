"""Words what fairseq2 finds wrong while a recipe runs: its runner would log a stack trace. Does not import torch."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches

from hubert_plugin.card_errors import maybe_describe_card_error
from hubert_plugin.config_check import get_hints, maybe_section_kls
from hubert_plugin.errors import ConfigError, HubertError

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
                kls = maybe_section_kls(get_hints(kls).get(name, object))

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

        for cause in causes:
            if (sentence := maybe_describe_card_error(cause)) is not None:
                return sentence

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
