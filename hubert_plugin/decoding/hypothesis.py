"""What a decoder says: words with their times and how sure it is of each.

Letters: T frames, V symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.decoding.greedy import symbol_spans

if TYPE_CHECKING:
    from hubert_plugin.text.vocabulary import CtcVocabulary


@dataclass(frozen=True)
class Word:
    """A word that was recognised."""

    text: str

    start: float
    """Seconds from the beginning of the audio to the first frame of its first symbol."""

    end: float
    """Seconds to the end of the last frame of its last symbol. The separator is no part of a word. A recogniser trained
    with CTC may give a symbol one frame only, so words tend to end early."""

    confidence: float
    """Between 0 and 1: the geometric mean, over the symbols of the word, of the highest probability that the recogniser
    gives the symbol in the frames that the symbol was found in. A language model has no part in it."""


@dataclass(frozen=True)
class Hypothesis:
    """What an utterance may be."""

    words: tuple[Word, ...]

    score: float
    """By which hypotheses are ranked: log p_ctc + w1 log p_lm + w2 |Y| (Hsu et al., 2021, equation 4), |Y| in words."""

    ctc_score: float
    """log p_ctc, the natural logarithm: of the best path, or of all that were found where paths are added."""

    lm_score: float = 0.0
    """log p_lm of the n-gram model, in base 10 (as KenLM gives it)."""

    rescored: float | None = None
    """The natural logarithm of the probability that a second language model gave the text."""

    @property
    def text(self) -> str:
        """The words, separated by one space."""
        return " ".join(w.text for w in self.words)

    @property
    def confidence(self) -> float:
        """The mean of the words' confidences; 0 without words."""
        return sum(w.confidence for w in self.words) / len(self.words) if self.words else 0.0


def words_of_path(path: Sequence[int], log_probs: NDArray[np.floating], vocabulary: CtcVocabulary) -> tuple[Word, ...]:
    """Return the words on a path, put together from its symbols.

    :param path: The symbol of each frame. *Length:* T.
    :param log_probs: The natural logarithms of the symbols' probabilities. *Shape:* (T, V).
    """
    spans = symbol_spans(path, vocabulary.blank)

    words = vocabulary.words([path[start] for start, _ in spans])

    return tuple(make_word(text, path, spans[first:end], log_probs) for text, first, end in words)


def words_of_labels(
    path: Sequence[int], labels: Sequence[str | None], log_probs: NDArray[np.floating], vocabulary: CtcVocabulary
) -> tuple[Word, ...]:
    """Return the words on a path of a lexicon decoder.

    :param path: The symbol of each frame. *Length:* T.
    :param labels: The word that ends with the symbol that begins in a frame, ``None`` elsewhere. *Length:* T.
    """
    words, pending = [], []

    for span in symbol_spans(path, vocabulary.blank):
        if path[span[0]] not in vocabulary.specials and path[span[0]] != vocabulary.separator:
            pending.append(span)

        label = labels[span[0]]

        if label is not None and pending:
            words.append(make_word(label, path, pending, log_probs))

            pending = []

    return tuple(words)


def make_word(
    text: str, path: Sequence[int], spans: Sequence[tuple[int, int]], log_probs: NDArray[np.floating]
) -> Word:
    """Return a word whose symbols lie in ``spans`` (first frame, one past the last) of ``path``."""
    best = [float(log_probs[start:stop, path[start]].max()) for start, stop in spans]

    return Word(
        text,
        frames.seconds(frames.frame_start(spans[0][0])),
        frames.seconds(frames.frame_start(spans[-1][1])),
        min(1.0, math.exp(sum(best) / len(best))),
    )
