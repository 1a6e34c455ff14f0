"""Files that say the symbols of a recogniser: fairseq's ``dict.ltr.txt``, Hugging Face's ``vocab.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hubert_plugin.errors import TextError, format_problems
from hubert_plugin.text.symbols import BLANKS, FAIRSEQ_SPECIALS
from hubert_plugin.text.vocabulary import CtcVocabulary


def read_dictionary(path: Path) -> CtcVocabulary:
    """Read a dictionary: of fairseq (``symbol count`` a line, to which its four special symbols are added), or, if its
    name ends with ``.json``, of Hugging Face.

    :raises TextError: It is missing or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as ex:
        raise TextError(
            f"The dictionary '{path}' cannot be read: {ex.strerror or ex}. Expected a dict.ltr.txt of fairseq or a "
            "vocab.json of Hugging Face."
        ) from ex
    except UnicodeDecodeError:
        raise TextError(
            f"The dictionary '{path}' is not UTF-8 text. Expected a dict.ltr.txt of fairseq or a vocab.json."
        ) from None

    if path.suffix == ".json":
        return _parse_huggingface(path, text)

    return _parse_fairseq(path, text)


def _parse_fairseq(path: Path, text: str) -> CtcVocabulary:
    symbols, problems = list(FAIRSEQ_SPECIALS), []

    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue

        # fairseq splits from the right: a symbol may hold spaces.
        symbol, _, count = line.rstrip().removesuffix("#fairseq:overwrite").rstrip().rpartition(" ")

        if not symbol or not count.isdecimal():
            problems.append(f"{path}:{number}: expected `symbol count`, found {line[:60]!r}.")
        elif symbol in symbols:
            problems.append(f"{path}:{number}: expected new symbols, found {symbol!r} again.")
        else:
            symbols.append(symbol)

    if len(symbols) == len(FAIRSEQ_SPECIALS) and not problems:
        problems.append(f"{path}:1: expected `symbol count`, found the end of the file.")

    if problems:
        raise TextError(format_problems(f"The dictionary '{path}' cannot be used:", problems))

    return CtcVocabulary(tuple(symbols))


def _parse_huggingface(path: Path, text: str) -> CtcVocabulary:
    try:
        content: Any = json.loads(text)
    except ValueError as ex:
        raise TextError(f"The dictionary '{path}' is no JSON: {ex}.") from None

    if not isinstance(content, dict) or not all(type(i) is int for i in content.values()):
        raise TextError(f"The dictionary '{path}' must be a JSON object of symbols and their numbers.")

    by_index = {idx: symbol for symbol, idx in content.items()}

    if sorted(by_index) != list(range(len(content))):
        raise TextError(
            f"The dictionary '{path}' must number its {len(content)} symbols from 0 to {len(content) - 1}, each number "
            "once."
        )

    symbols = tuple(by_index[i] for i in range(len(content)))

    blank = _pad_token(path.with_name("tokenizer_config.json"))

    if blank not in symbols:
        blank = next((s for s in BLANKS if s in symbols), None)

    if blank is None:
        raise TextError(
            f"The dictionary '{path}' has no symbol that could be the blank. Expected one of {', '.join(BLANKS)}, or "
            "a `pad_token` in the tokenizer_config.json beside it."
        )

    return CtcVocabulary(symbols, symbols.index(blank))


def _pad_token(path: Path) -> str | None:
    try:
        token = json.loads(path.read_text(encoding="utf-8"))["pad_token"]
    except (OSError, ValueError, KeyError, TypeError):
        return None

    if isinstance(token, dict):
        token = token.get("content")

    return token if isinstance(token, str) else None
