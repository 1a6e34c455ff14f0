"""Beam search with flashlight-text: with a lexicon and a language model of words, or free, over symbols.

With a lexicon only its words can be written, and the language model scores words. Without one every symbol may follow
every other; a language model then has to be one of symbols (of letters, or of pieces).

flashlight wants a symbol for silence: the separator, which may stand between words at will. If a recogniser has none,
as one of pieces, a column is put behind the others that nothing is ever found in. Then, with a lexicon, the last piece
of a word can last for one frame only, which is how flashlight is made.

Letters: T frames, V symbols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from hubert_plugin.decoding.decoder import BeamConfig, Decoder, check_width
from hubert_plugin.decoding.hypothesis import Hypothesis, words_of_labels, words_of_path
from hubert_plugin.decoding.language_model import NgramFile, import_flashlight, load_kenlm
from hubert_plugin.decoding.lexicon import Lexicon, find_surplus
from hubert_plugin.errors import DecodingError

if TYPE_CHECKING:
    from hubert_plugin.text.vocabulary import CtcVocabulary

_UNKNOWN: Final = "<unk>"

_NEVER: Final = -1e9
"""The score of symbols that may not be written. Not infinite: differences of scores are taken."""


@final
class BeamDecoder(Decoder):
    """Searches for the text with the highest log p_ctc + w1 log p_lm + w2 |Y| (Hsu et al., 2021, equation 4)."""

    def __init__(
        self,
        vocabulary: CtcVocabulary,
        config: BeamConfig,
        *,
        lexicon: Lexicon | None = None,
        lm: NgramFile | None = None,
    ) -> None:
        """
        :param lexicon: The words that may be written; ``None``: all that the symbols can write.
        :param lm: A model of the lexicon's words, or without a lexicon of the vocabulary's symbols. ``None``: no model.
        :raises DecodingError: An option, or the language model, cannot be used.
        :raises MissingDependencyError: flashlight-text is not installed.
        """
        config.check()

        self._fl = import_flashlight()

        self._vocabulary = vocabulary

        self._labels = list(vocabulary.symbols) if lexicon is None else [*lexicon.words, _UNKNOWN]

        self._lm = self._fl.ZeroLM() if lm is None else load_kenlm(lm, self._labels)

        self.left_out: list[str] = []
        """The word of each entry of the lexicon that is not used, for six better words have the same spelling."""

        if lexicon is not None and (surplus := self._find_surplus(lexicon, lm)):
            self.left_out = [entry[0] for entry in lexicon.entries if entry in surplus]

            lexicon = Lexicon(tuple(entry for entry in lexicon.entries if entry not in surplus))

        self.words = None if lexicon is None else lexicon.words
        """The words that may be written; ``None``: all that the symbols can write."""

        self._trie = None if lexicon is None else self._build_trie(lexicon)

        self.config = config

    def _find_surplus(self, lexicon: Lexicon, lm: NgramFile | None) -> set[tuple[str, tuple[int, ...]]]:
        """Return the entries that the trie would drop: of one spelling, those that the language model scores worst."""
        numbers = {word: number for number, word in enumerate(self._labels)}

        nothing = self._lm.start(True)

        def rank(word: str) -> tuple[bool, float]:
            # What the model does not know has the score of `<unk>`, which may be better than that of a rare word.
            is_unknown = lm is not None and not lm.may_know(word)

            return is_unknown, -self._lm.score(nothing, numbers[word])[1]

        return find_surplus(lexicon, rank)

    def _build_trie(self, lexicon: Lexicon) -> Any:
        vocabulary = self._vocabulary

        trie = self._fl.Trie(len(vocabulary) + 1, self._silence)

        numbers = {word: number for number, word in enumerate(self._labels)}

        start = self._lm.start(False)

        # Each word's probability at the beginning of a sentence guides the search inside words (fairseq's decoders).
        scores = [self._lm.score(start, number)[1] for number in range(len(self._labels))]

        for word, spelling in lexicon.entries:
            trie.insert(list(spelling), numbers[word], scores[numbers[word]])

        trie.smear(self._fl.SmearingMode.MAX)

        return trie

    @property
    def _silence(self) -> int:
        return len(self._vocabulary) if self._vocabulary.separator is None else self._vocabulary.separator

    @property
    def config(self) -> BeamConfig:
        """The options; they can be exchanged for others, which costs nothing."""
        return self._config

    @config.setter
    def config(self, config: BeamConfig) -> None:
        config.check()

        self._config = config

        self._decoder = self._create()

    def _create(self) -> Any:
        config, fl = self._config, self._fl

        shared = {
            "beam_size": config.beam,
            "beam_size_token": min(config.beam_size_token or len(self._vocabulary), len(self._vocabulary)),
            "beam_threshold": config.beam_threshold,
            "lm_weight": config.lm_weight,
            "sil_score": config.sil_score,
            "log_add": config.log_add,
            "criterion_type": fl.CriterionType.CTC,
        }

        blank, silence = self._vocabulary.blank, self._silence

        if self._trie is None:
            return fl.LexiconFreeDecoder(fl.LexiconFreeDecoderOptions(**shared), self._lm, silence, blank, [])

        options = fl.LexiconDecoderOptions(**shared, word_score=config.word_score, unk_score=-math.inf)

        unknown = len(self._labels) - 1

        return fl.LexiconDecoder(options, self._trie, self._lm, silence, blank, unknown, [], False)

    @override
    def decode(self, logits: Tensor) -> list[Hypothesis]:
        check_width(logits, self._vocabulary)

        num_frames = logits.size(0)

        if num_frames == 0:
            return [Hypothesis((), 0.0, 0.0)]

        logits = logits.detach().float().cpu()

        log_probs = torch.log_softmax(logits, dim=-1).numpy()

        scores = np.array(log_probs if self._config.emissions == "log_probs" else logits.numpy(), np.float32, order="C")

        if not np.isfinite(scores).all():
            raise DecodingError("The recogniser's scores are not finite (NaN or infinity): its parameters are damaged.")

        if self._trie is None:
            scores[:, sorted(self._vocabulary.specials - {self._vocabulary.blank})] = _NEVER

        if self._vocabulary.separator is None:
            scores = np.pad(scores, ((0, 0), (0, 1)), constant_values=_NEVER)

        results = self._decoder.decode(scores.ctypes.data, num_frames, scores.shape[1])

        best: dict[str, Hypothesis] = {}

        for result in results:
            hypothesis = self._hypothesis(result, log_probs)

            # One text may be there with several alignments.
            if hypothesis.text not in best or hypothesis.score > best[hypothesis.text].score:
                best[hypothesis.text] = hypothesis

        # `sorted` keeps the order of equals, which is that of flashlight.
        return sorted(best.values(), key=lambda h: -h.score)[: self._config.nbest]

    def _hypothesis(self, result: Any, log_probs: NDArray[np.float32]) -> Hypothesis:
        # Before the first frame and after the last stands a silence of flashlight's own.
        path = result.tokens[1:-1]

        w1, w2 = self._config.lm_weight, self._config.word_score

        score, lm_score = float(result.score), float(result.lmScore)

        if self._trie is None:
            words = words_of_path(path, log_probs, self._vocabulary)

            # The free decoder knows of no words: it is told afterwards.
            score += w2 * len(words)
        else:
            words = words_of_labels(path, self._words_by_frame(result.words[1:-1]), log_probs, self._vocabulary)

        return Hypothesis(words, score, score - w1 * lm_score - w2 * len(words), lm_score)

    def _words_by_frame(self, numbers: Sequence[int]) -> list[str | None]:
        return [self._labels[n] if n >= 0 else None for n in numbers]

    def with_weights(self, lm_weight: float, word_score: float) -> BeamConfig:
        """Return the options with other weights."""
        return replace(self._config, lm_weight=lm_weight, word_score=word_score)
