"""What a recogniser's outputs mean, and which recogniser it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hubert_plugin.errors import DecodingError
from hubert_plugin.text.symbols import BLANKS, FAIRSEQ_SPECIALS, NAMED_SYMBOLS, SEPARATOR, WORD_START
from hubert_plugin.text.vocabulary import CtcVocabulary, is_special_name

if TYPE_CHECKING:
    from hubert_plugin.models.hubert_ctc.model import HubertCtcModel


def vocabulary_of(model: HubertCtcModel, symbols: str = "") -> CtcVocabulary:
    """Return what the outputs of a recogniser mean.

    :param symbols: A file with a symbol in each line (fairseq's ``dict.ltr.txt``: with a count behind it, and without
        the four special symbols), the blank named as in :data:`~hubert_plugin.text.symbols.BLANKS`; or the name of a
        well-known set; empty: what the checkpoint says.
    :raises TextError: The checkpoint says nothing, or there is no such set or one of another size.
    :raises DecodingError: The file cannot be read, or does not fit, or the checkpoint says otherwise.
    """
    config = model.config

    if not symbols:
        return CtcVocabulary.of_config(config)

    if symbols in NAMED_SYMBOLS or not Path(symbols).expanduser().exists():
        vocabulary = CtcVocabulary.named(symbols, config.vocab_size)
    else:
        vocabulary = _read_symbols(Path(symbols).expanduser(), config.vocab_size, config.blank)

    if not config.symbols:
        return vocabulary

    # Other symbols would make another text of the same outputs.
    for idx, (given, known) in enumerate(zip(vocabulary.symbols, config.symbols, strict=True)):
        if given != known:
            raise DecodingError(
                f"`symbols` ('{symbols}') is not the vocabulary of this checkpoint, which says itself what its outputs "
                f"mean: output {idx} is '{known}', not '{given}'. Leave `symbols` out."
            )

    return CtcVocabulary.of_config(config)


def _read_symbols(path: Path, size: int, blank: int) -> CtcVocabulary:
    try:
        found = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as ex:
        raise DecodingError(f"The symbols '{path}' cannot be read: {ex}.") from ex

    # fairseq's dictionaries leave out the symbols that all have.
    if len(found) == size - len(FAIRSEQ_SPECIALS):
        found = [*FAIRSEQ_SPECIALS, *found]

    if len(found) != size:
        raise DecodingError(
            f"'{path}' names {len(found)} symbols, but the checkpoint has {size} outputs: it is the vocabulary of "
            "another recogniser."
        )

    return CtcVocabulary(tuple(found), _find_blank(path, found, blank))


def _find_blank(path: Path, symbols: Sequence[str], blank: int) -> int:
    """Return the blank of a file of symbols.

    :param blank: What the checkpoint says. Most formats say nothing, which is 0, so the names in the file count.
    :raises DecodingError: It would be the separator or a letter.
    """
    if blank == 0 and symbols[0] not in BLANKS:
        blank = next((symbols.index(name) for name in BLANKS if name in symbols), 0)

    symbol = symbols[blank]

    if symbol in (SEPARATOR, WORD_START) or (any(map(str.isalpha, symbol)) and not is_special_name(symbol)):
        raise DecodingError(
            f"'{path}' must say which of its symbols is the blank: output {blank}, which is it where nothing else is "
            f"said, is '{symbol}', a symbol of text. Name the blank {', '.join(BLANKS[:-1])} or {BLANKS[-1]}."
        )

    return blank


def fingerprint_of(model: HubertCtcModel) -> str:
    """Return 16 hexadecimal digits that stand for a recogniser: its configuration and all of its parameters."""
    digest = sha256(json.dumps(asdict(model.config), sort_keys=True, default=str).encode())

    for name, value in model.state_dict().items():
        digest.update(name.encode())

        # Bytes, as NumPy has no bfloat16; without a copy where the model is on the CPU.
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    return digest.hexdigest()[:16]
