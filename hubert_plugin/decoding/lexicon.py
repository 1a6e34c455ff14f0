"""Lexicons: the words that a decoder may write, each with its spelling in the symbols of the recogniser.

A line is ``WORD<TAB>W O R D |`` (fairseq, wav2letter): symbols separated by blanks, the separator last where the
recogniser has one. A word may have several lines.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hubert_plugin.errors import DecodingError, TextError, format_problems
from hubert_plugin.files import write_text_atomic

if TYPE_CHECKING:
    from hubert_plugin.text.vocabulary import CtcVocabulary

CONTROL_WORDS: Final = frozenset({"<s>", "</s>", "<unk>", "<UNK>", "<pad>"})
"""Entries of a language model that are no words."""


MAX_WORDS_OF_A_SPELLING: Final = 6
"""How many words of one spelling flashlight's trie holds (``kTrieMaxLabel`` in ``Trie.h``); it drops further ones."""


@dataclass(frozen=True)
class Lexicon:
    """Words and how they are spelled."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    """Word and outputs of the recogniser, in the order of the file."""

    @cached_property
    def words(self) -> list[str]:
        """The words, each once."""
        return list(dict.fromkeys(word for word, _ in self.entries))


def read_lexicon(path: Path, vocabulary: CtcVocabulary) -> Lexicon:
    """Read a lexicon.

    :raises DecodingError: The file cannot be read, is empty, or has lines that do not fit the recogniser's symbols;
        names all of them.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DecodingError(f"There is no lexicon '{path}'.") from None
    except (OSError, UnicodeDecodeError) as ex:
        raise DecodingError(f"The lexicon '{path}' cannot be read: {ex}.") from ex

    entries: dict[tuple[str, tuple[int, ...]], None] = {}

    problems = []

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue

        word, *symbols = line.split()

        if problem := _find_problem(word, symbols, vocabulary):
            problems.append(f"{path}:{number}: {problem}")
        else:
            entries[word, tuple(vocabulary.index[s] for s in symbols)] = None

    if problems:
        raise DecodingError(
            format_problems(
                f"{len(problems)} of the {len(lines)} lines of the lexicon '{path}' do not fit the recogniser:",
                problems,
            )
        )

    if not entries:
        raise DecodingError(f"The lexicon '{path}' is empty: expected lines `WORD<TAB>W O R D |`.")

    return Lexicon(tuple(entries))


def make_lexicon(words: Iterable[str], vocabulary: CtcVocabulary) -> tuple[Lexicon, list[str]]:
    """Spell ``words`` in the symbols of a recogniser.

    :returns: The lexicon, and the words that cannot be spelled.
    """
    entries, outside = [], []

    for word in dict.fromkeys(words):
        if word in CONTROL_WORDS:
            continue

        try:
            entries.append((word, tuple(vocabulary.encode_word(word))))
        except TextError:
            outside.append(word)

    return Lexicon(tuple(entries)), outside


def find_surplus(lexicon: Lexicon, rank: Callable[[str], object]) -> set[tuple[str, tuple[int, ...]]]:
    """Return the entries that are one too many for their spelling.

    :param rank: Says which words of one spelling stay, those with the lowest values; among equals the first.
    """
    words: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)

    for word, spelling in dict.fromkeys(lexicon.entries):
        words[spelling].append(word)

    return {
        (word, spelling)
        for spelling, together in words.items()
        if len(together) > MAX_WORDS_OF_A_SPELLING
        for word in sorted(together, key=rank)[MAX_WORDS_OF_A_SPELLING:]  # type: ignore[arg-type]
    }


def write_lexicon(path: Path, lexicon: Lexicon, vocabulary: CtcVocabulary) -> None:
    """Write a lexicon atomically.

    :raises StorageError: The file cannot be written.
    """
    lines = (f"{word}\t{' '.join(vocabulary.symbols[i] for i in spelling)}\n" for word, spelling in lexicon.entries)

    write_text_atomic(path, "".join(lines))


def _find_problem(word: str, symbols: Sequence[str], vocabulary: CtcVocabulary) -> str | None:
    if word in CONTROL_WORDS:
        return f"'{word}' is an entry of language models that is no word, and cannot be written. Take the line out."

    if not symbols:
        return f"expected `WORD<TAB>W O R D |`, found the word '{word}' without a spelling."

    if unknown := sorted({s for s in symbols if s not in vocabulary.index}):
        return f"'{word}' is spelled with {', '.join(map(repr, unknown))}, which the recogniser does not write."

    indices = [vocabulary.index[s] for s in symbols]

    if any(i in vocabulary.specials for i in indices):
        return f"'{word}' is spelled with a symbol that is no text: {' '.join(symbols)}."

    if vocabulary.separator is not None:
        separator = vocabulary.symbols[vocabulary.separator]

        if symbols[-1] != separator or separator in symbols[:-1] or len(symbols) < 2:
            return f"expected the spelling of '{word}' to end with '{separator}', found {' '.join(symbols)}."

    return None
