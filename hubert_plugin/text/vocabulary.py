"""What the outputs of a recogniser mean: symbols to text and back.

Two kinds are told apart by their symbols. *Letters* write words with a separator between them (``|``); *pieces* are
SentencePiece's, where a word begins with ``▁``. Which outputs are no text (the blank, ``<s>``, ``[PAD]``, …) follows
from their names, as fairseq, torchaudio and Hugging Face write them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, Protocol

from typing_extensions import Self

from hubert_plugin.errors import TextError
from hubert_plugin.text.symbols import NAMED_SYMBOLS, SEPARATOR, WORD_START

_SPECIAL: Final = re.compile(r"<[A-Za-z_][^<>]*>|</[^<>]+>|\[[A-Z_]+\]|madeupword\d+")
_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ConfigWithSymbols(Protocol):
    """What a configuration says of the outputs: :class:`~hubert_plugin.HubertCtcConfig` does."""

    symbols: list[str]
    blank: int
    vocab_size: int


@dataclass(frozen=True)
class CtcVocabulary:
    """The symbols of a recogniser, in the order of its outputs."""

    symbols: tuple[str, ...]
    """For example ``<s> <pad> </s> <unk> | E T A …`` (fairseq's letters)."""

    blank: int = 0
    """The index of the blank."""

    scores: tuple[float, ...] = ()
    """Log-probabilities of SentencePiece's unigram pieces, by which words are spelled; empty: with fewest pieces."""

    def __post_init__(self) -> None:
        if problem := _find_problem(self.symbols, self.blank, self.scores):
            raise TextError(problem)

    @classmethod
    def of_config(cls, config: ConfigWithSymbols) -> Self:
        """Return the vocabulary of a recogniser's configuration.

        :raises TextError: The configuration names no symbols, or not as many as there are outputs.
        """
        symbols, size = tuple(config.symbols), config.vocab_size

        if not symbols:
            raise TextError(
                f"The checkpoint does not say which symbols its {size} outputs stand for. {_name_sets(size)}"
            )

        if len(symbols) != size:
            raise TextError(
                f"The checkpoint has {size} outputs but names {len(symbols)} symbols, which do not fit together."
            )

        return cls(symbols, config.blank, tuple(getattr(config, "symbol_scores", ())))

    @classmethod
    def named(cls, name: str, size: int | None = None) -> Self:
        """Return a well-known vocabulary (:data:`~hubert_plugin.text.symbols.NAMED_SYMBOLS`).

        :param size: The number of outputs that it has to fit.
        :raises TextError: There is none of this name, or it has another size.
        """
        if (symbols := NAMED_SYMBOLS.get(name)) is None:
            raise TextError(f"'{name}' is not a known set of symbols. Known sets: {', '.join(NAMED_SYMBOLS)}.")

        if size is not None and len(symbols) != size:
            raise TextError(
                f"The set of symbols '{name}' has {len(symbols)}, but the checkpoint has {size} outputs. "
                f"{_name_sets(size)}"
            )

        return cls(symbols)

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def specials(self) -> frozenset[int]:
        """The outputs that are never text: the blank and everything named like ``<s>`` or ``[PAD]``. The separator is
        not among them."""
        named = {i for i, s in enumerate(self.symbols) if is_special_name(s)}

        return frozenset(named | {self.blank})

    @cached_property
    def kind(self) -> Literal["letters", "pieces"]:
        """How words are written: with a separator between them, or with a mark at their beginning."""
        return "pieces" if any(s.startswith(WORD_START) for s in self.symbols) else "letters"

    @cached_property
    def separator(self) -> int | None:
        """The index of the symbol between words; ``None`` for pieces, and where there is none."""
        if self.kind == "pieces":
            return None

        return next((self.index[s] for s in (SEPARATOR, " ") if self.index.get(s, self.blank) != self.blank), None)

    @cached_property
    def case(self) -> Literal["upper", "lower", "mixed", "none"]:
        """Which case the letters of the text symbols have; ``none``: no symbol has any (as in Hindi)."""
        letters = [c for i, s in enumerate(self.symbols) if i not in self.specials for c in s]

        upper, lower = any(c != c.lower() for c in letters), any(c != c.upper() for c in letters)

        if upper and lower:
            return "mixed"

        return "upper" if upper else "lower" if lower else "none"

    def fold(self, text: str) -> str:
        """Return ``text`` in the case of the symbols, where they have only one."""
        return {"upper": text.upper, "lower": text.lower}.get(self.case, lambda: text)()

    @cached_property
    def index(self) -> dict[str, int]:
        """The output of each symbol."""
        return {s: i for i, s in enumerate(self.symbols)}

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of ``ids``, separated by one space.

        :param ids: Collapsed outputs: repetitions merged, blanks taken out. Specials are left out.
        """
        return " ".join(word for word, _, _ in self.words(ids))

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """Return each word of ``ids`` with its place: the first position and the one past the last.

        Separators and specials belong to no word. Symbols of several letters without separator or word mark (phones)
        are words of their own.
        """
        words: list[tuple[list[str], int, int]] = []

        is_open = False

        for position, idx in enumerate(ids):
            if idx in self.specials:
                continue

            if idx == self.separator:
                is_open = False

                continue

            symbol = self.symbols[idx]

            if self.kind == "pieces" and symbol.startswith(WORD_START):
                is_open = False

                symbol = symbol.removeprefix(WORD_START)

                # A word mark alone: the word begins with the next piece.
                if not symbol:
                    continue

            if is_open:
                spelling, first, _ = words[-1]

                spelling.append(symbol)

                words[-1] = (spelling, first, position + 1)
            else:
                words.append(([symbol], position, position + 1))

            is_open = not self._are_symbols_words

        return [(_join(spelling), first, end) for spelling, first, end in words]

    def encode_word(self, word: str) -> list[int]:
        """Return the spelling of a word, for lexicons. Letters end with the separator, where there is one.

        Pieces are chosen so that their scores are highest (SentencePiece's unigram model; Kudo, 2018), or so that they
        are fewest where no scores are known.

        :raises TextError: A character of the word is in no symbol; names it.
        """
        if self.kind == "pieces":
            spelling = self._segment(WORD_START + word)
        elif self._are_symbols_words:
            spelling = [self.index[word]] if word in self.index else None
        else:
            spelling = [self.index.get(c, self.blank) for c in word]

        if not word or spelling is None or any(i in self.specials or i == self.separator for i in spelling):
            outside = self.find_outside(word)

            what = f"the vocabulary lacks {', '.join(map(repr, outside))}" if outside else "no symbols of it fit"

            raise TextError(f"The word '{word}' cannot be spelled: {what}.")

        return spelling if self.separator is None else [*spelling, self.separator]

    def find_outside(self, text: str) -> list[str]:
        """Return the characters of ``text`` that no symbol has, sorted. White space is not looked at.

        Where symbols are words of their own (phones), the words are returned that are no symbols.
        """
        if self._are_symbols_words:
            return sorted(set(text.split()) - set(self.symbols))

        if self._spells_bytes:
            return []

        return sorted(set("".join(text.split())) - self._characters)

    @cached_property
    def _characters(self) -> frozenset[str]:
        text = (i for i in range(len(self)) if i not in self.specials and i != self.separator)

        if self.kind == "letters":
            return frozenset(s for i in text if len(s := self.symbols[i]) == 1)

        return frozenset(c for i in text for c in self.symbols[i] if not _BYTE.fullmatch(self.symbols[i])) - {
            WORD_START
        }

    @cached_property
    def _spells_bytes(self) -> bool:
        """Whether every character can be spelled, byte by byte."""
        return sum(bool(_BYTE.fullmatch(s)) for s in self.symbols) == 256

    @cached_property
    def _are_symbols_words(self) -> bool:
        """Whether symbols stand alone, as phones do."""
        texts = [s for i, s in enumerate(self.symbols) if i not in self.specials]

        return self.kind == "letters" and self.separator is None and any(len(s) > 1 for s in texts)

    def _segment(self, text: str) -> list[int] | None:
        """Return the best pieces of ``text`` (Viterbi); ``None`` where none cover it. Of equals, the longer first."""
        best: list[tuple[float, int, int] | None] = [None] * (len(text) + 1)

        best[len(text)] = (0.0, -1, len(text))

        for start in reversed(range(len(text))):
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                idx = self.index.get(text[start:end])

                if idx is None or idx in self.specials or (rest := best[end]) is None:
                    continue

                score = rest[0] + (self.scores[idx] if self.scores else -1.0)

                if (current := best[start]) is None or score >= current[0]:
                    best[start] = (score, idx, end)

        return list(_follow(best)) if best[0] is not None else None

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.symbols))


def is_special_name(symbol: str) -> bool:
    """Return whether a symbol is no text by its name, as ``<s>`` and ``[PAD]`` are."""
    return bool(_SPECIAL.fullmatch(symbol))


def _follow(best: Sequence[tuple[float, int, int] | None]) -> Iterator[int]:
    start = 0

    while start < len(best) - 1:
        step = best[start]

        assert step is not None

        _, idx, start = step

        yield idx


def _join(spelling: Sequence[str]) -> str:
    """Join symbols; runs of SentencePiece's byte symbols (``<0xE2>``) are decoded as UTF-8."""
    if not any(_BYTE.fullmatch(s) for s in spelling):
        return "".join(spelling)

    text = b"".join(bytes.fromhex(m[1]) if (m := _BYTE.fullmatch(s)) else s.encode() for s in spelling)

    return text.decode("utf-8", errors="replace")


def _name_sets(size: int) -> str:
    fitting = [name for name, symbols in NAMED_SYMBOLS.items() if len(symbols) == size]

    if not fitting:
        return f"No well-known set has {size} symbols: give the checkpoint's own."

    return f"Well-known sets of this size: {', '.join(fitting)}."


def _find_problem(symbols: Sequence[str], blank: int, scores: Sequence[float]) -> str | None:
    if len(symbols) < 2:
        return f"A vocabulary must have at least 2 symbols (the blank and another), but has {len(symbols)}."

    if not 0 <= blank < len(symbols):
        return f"The blank must be an index into {len(symbols)} symbols, but is {blank}."

    if repeated := sorted(s for s, n in Counter(symbols).items() if n > 1):
        return f"A vocabulary must name each symbol once, but these come more than once: {', '.join(repeated)}."

    if "" in symbols:
        return f"A vocabulary must have no empty symbol, but symbol {symbols.index('')} is."

    if scores and len(scores) != len(symbols):
        return f"A vocabulary must have a score for each of its {len(symbols)} symbols, but has {len(scores)}."

    return None
