"""Builds a decoder, and finds out whether lexicon, language model and recogniser belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from hubert_plugin.decoding.beam import BeamDecoder
from hubert_plugin.decoding.decoder import BeamConfig, Decoder, GreedyDecoder
from hubert_plugin.decoding.language_model import NgramFile, open_ngram_file
from hubert_plugin.decoding.lexicon import CONTROL_WORDS, MAX_WORDS_OF_A_SPELLING, Lexicon, make_lexicon, read_lexicon
from hubert_plugin.errors import MAX_SHOWN_PROBLEMS, DecodingError

if TYPE_CHECKING:
    from hubert_plugin.text.vocabulary import CtcVocabulary

DECODERS: Final = ("greedy", "beam")

_NUM_NAMED: Final = 10
"""How many words are named of those that do not fit."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(BeamConfig):
    """Says how scores become text. All but the first option are for ``beam``."""

    name: str = "greedy"
    """``greedy``: the best symbol of each frame; ``beam``: beam search, with or without a language model."""

    lm: str = ""
    """An n-gram model: an ARPA file or a binary of KenLM; ``demo``: one of the demo corpus's grammar. Empty: none."""

    needs_lm: bool = False
    """Refuse to go without ``lm``: for presets that are nothing without one."""

    lexicon: str = ""
    """A lexicon file. Empty: the words of the language model, spelled in the recogniser's symbols."""

    lexicon_free: bool = False
    """If ``True``, every word may be written, and the language model is one of symbols rather than words."""

    @override
    def problems(self) -> list[str]:
        problems = super().problems()

        if self.name not in DECODERS:
            problems.append(f"`name` must be {' or '.join(DECODERS)}, but is '{self.name}' instead.")

        if self.name == "greedy" and (self.lm or self.lexicon):
            problems.append(
                "A language model or a lexicon needs `name: beam`, but `name` is 'greedy': set `decoder.name=beam`."
            )

        if self.needs_lm and not self.lm:
            problems.append(
                "`lm` must name an n-gram model here, an ARPA file or a binary of KenLM: set `decoder.lm=FILE`, or "
                "`decoder.needs_lm=false` to go without one."
            )

        if self.name == "greedy" and self.nbest > 1:
            problems.append(f"`nbest` is {self.nbest}, but the decoder `greedy` gives one hypothesis: use `beam`.")

        if self.lexicon_free and self.lexicon:
            problems.append("`lexicon_free` and `lexicon` exclude each other.")

        return problems


def make_decoder(vocabulary: CtcVocabulary, config: DecoderConfig) -> tuple[Decoder, list[str]]:
    """Build the decoder of a configuration, whose ``lm`` and ``lexicon`` are paths.

    :returns: The decoder, and sentences about words that were left out.
    :raises DecodingError: Something cannot be read, or does not fit the recogniser.
    :raises MissingDependencyError: flashlight-text is needed and not installed.
    """
    config.check()

    if config.name == "greedy":
        return GreedyDecoder(vocabulary), []

    lm = open_ngram_file(Path(config.lm)) if config.lm else None

    notes: list[str] = []

    lexicon: Lexicon | None = None

    if config.lexicon:
        lexicon = read_lexicon(Path(config.lexicon).expanduser(), vocabulary)

        if lm is not None and lm.words is not None:
            notes += _check_coverage(lexicon.words, lm, f"the lexicon '{config.lexicon}'")
    elif config.lexicon_free:
        if lm is not None and lm.words is not None:
            notes += _check_symbols(lm, vocabulary)
    elif lm is not None:
        lexicon, notes = _spell(lm, vocabulary)

    decoder = BeamDecoder(vocabulary, config, lexicon=lexicon, lm=lm)

    if lexicon is not None and decoder.left_out:
        better = "that the language model scores best" if lm is not None else "that come first"

        notes.append(
            f"{len(decoder.left_out):,} of the {len(lexicon.entries):,} entries of the lexicon are left out, for the "
            f"search holds {MAX_WORDS_OF_A_SPELLING} words of one spelling, those {better}: "
            f"{_name(decoder.left_out, MAX_SHOWN_PROBLEMS)}."
        )

    return decoder, notes


def _spell(lm: NgramFile, vocabulary: CtcVocabulary) -> tuple[Lexicon, list[str]]:
    """Make a lexicon of the words of a language model."""
    if lm.words is None:
        raise DecodingError(
            f"The binary language model '{lm.path}' does not tell its words. Give a lexicon with `decoder.lexicon`, or "
            "build it again with its vocabulary."
        )

    words = [w for w in lm.words if w not in CONTROL_WORDS]

    lexicon, outside = make_lexicon(words, vocabulary)

    if not lexicon.entries:
        raise DecodingError(
            f"The language model '{lm.path}' has another alphabet than the recogniser: none of its {len(words):,} "
            f"words can be spelled, for example {_name(outside)}. {_say_alphabet(outside, vocabulary)}"
        )

    if not outside:
        return lexicon, []

    return lexicon, [
        f"{len(outside):,} of the {len(words):,} words of '{lm.path}' are left out, for they cannot be spelled in the "
        f"recogniser's symbols: {_name(outside)}."
    ]


def _check_symbols(lm: NgramFile, vocabulary: CtcVocabulary) -> list[str]:
    """Find out whether ``lm`` is a model of the recogniser's symbols, rather than of words."""
    text = [s for i, s in enumerate(vocabulary.symbols) if i not in vocabulary.specials]

    notes = _check_coverage(text, lm, "the recogniser's symbols")

    entries = set(lm.words or ())

    known = [s for s in text if s in entries]

    # A model of words knows `A`, `I` and their like as well.
    if 2 * len(known) < len(text):
        missing = [s for s in text if s not in entries]

        others = sorted(entries - CONTROL_WORDS - set(text))

        raise DecodingError(
            f"Without a lexicon, the language model has to be one of the recogniser's symbols, but '{lm.path}' seems "
            f"to be a model of words: it knows {len(known)} of the {len(text)} symbols, not {_name(missing)}"
            f"{f', and entries like {_name(others)}' if others else ''}. Set `decoder.lexicon_free=false`, or give a "
            "model of symbols."
        )

    return notes


def _check_coverage(words: Sequence[str], lm: NgramFile, owner: str) -> list[str]:
    known = set(lm.words or ())

    missing = [w for w in words if w not in known]

    if len(missing) == len(words):
        raise DecodingError(
            f"The language model '{lm.path}' and {owner} do not belong together: it knows none of the {len(words):,}, "
            f"for example {_name(missing)}. Its own entries are like {_name(sorted(known - CONTROL_WORDS))}."
        )

    if not missing:
        return []

    return [f"'{lm.path}' does not know {len(missing):,} of the {len(words):,} entries of {owner}: {_name(missing)}."]


def _say_alphabet(words: Sequence[str], vocabulary: CtcVocabulary) -> str:
    folded = [w for w in words if vocabulary.fold(w) != w and not vocabulary.find_outside(vocabulary.fold(w))]

    if folded:
        return (
            f"The recogniser writes {vocabulary.case} case: give a lexicon with lines like "
            f"`{folded[0]}<TAB>{' '.join(vocabulary.fold(folded[0]))} …`, or a model of such words."
        )

    text = [s for i, s in enumerate(vocabulary.symbols) if i not in vocabulary.specials and i != vocabulary.separator]

    return f"The recogniser writes {_name(text)}."


def _name(words: Sequence[str], num_named: int = _NUM_NAMED) -> str:
    named = ", ".join(f"'{w}'" for w in words[:num_named])

    return named + (", …" if len(words) > num_named else "")
