"""Decoders: scores of frames in, hypotheses out.

Letters: T frames, V symbols.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hubert_plugin.decoding.greedy import best_paths
from hubert_plugin.decoding.hypothesis import Hypothesis, words_of_path
from hubert_plugin.decoding.options import Options, not_finite
from hubert_plugin.errors import DecodingError, format_problems

if TYPE_CHECKING:
    from hubert_plugin.text.vocabulary import CtcVocabulary

Emissions: TypeAlias = Literal["log_probs", "logits"]

EMISSIONS: tuple[Emissions, ...] = ("log_probs", "logits")


@dataclass(frozen=True, kw_only=True)
class BeamConfig(Options):
    """The options of beam search; the defaults are fairseq's ``config/decode/infer_kenlm.yaml``."""

    beam: int = 500
    """How many hypotheses are kept in each frame."""

    beam_threshold: float = 100.0
    """Hypotheses whose score is farther below the best one's are dropped."""

    beam_size_token: int | None = None
    """How many of the best symbols of a frame are tried; ``null``: all."""

    lm_weight: float = 2.0
    """w1. It multiplies a logarithm in base 10, which is what KenLM gives. So it is in fairseq: published weights hold
    here."""

    word_score: float = -1.0
    """w2, added for each word."""

    sil_score: float = 0.0
    """Added for each frame of the separator (fairseq's ``silweight``)."""

    log_add: bool = False
    """Whether the probabilities of paths that write the same are added; otherwise the best path counts."""

    nbest: int = 1
    """How many hypotheses are returned."""

    emissions: Emissions = "log_probs"
    """What is added up over the frames: ``log_probs``, so that scores are those of the paper's equation 4; or
    ``logits``, as fairseq does, which shifts all scores of an utterance by the same amount and changes nothing else."""

    @override
    def problems(self) -> list[str]:
        problems = [
            f"`{name}` must be 1 or greater, but is {value} instead."
            for name in ("beam", "nbest", "beam_size_token")
            if (value := getattr(self, name)) is not None and value < 1
        ]

        problems += not_finite(self, "lm_weight", "word_score", "sil_score")

        if not self.beam_threshold > 0.0:
            problems.append(f"`beam_threshold` must be greater than 0, but is {self.beam_threshold} instead.")

        if self.emissions not in EMISSIONS:
            problems.append(f"`emissions` must be {' or '.join(EMISSIONS)}, but is '{self.emissions}' instead.")

        return problems

    def check(self) -> None:
        """:raises DecodingError: An option cannot be used; names all of them."""
        if problems := self.problems():
            raise DecodingError(format_problems("The options of beam search cannot be used:", problems))


class Decoder(ABC):
    """Turns scores into text."""

    @abstractmethod
    def decode(self, logits: Tensor) -> list[Hypothesis]:
        """Return the best hypotheses of one utterance, the best first, at least one.

        :param logits: What the recogniser gives, no padding. *Shape:* (T, V).
        """


@final
class GreedyDecoder(Decoder):
    """The best symbol of each frame."""

    def __init__(self, vocabulary: CtcVocabulary) -> None:
        self._vocabulary = vocabulary

    @override
    def decode(self, logits: Tensor) -> list[Hypothesis]:
        check_width(logits, self._vocabulary)

        log_probs = torch.log_softmax(logits.float(), dim=-1).cpu()

        (path,) = best_paths(log_probs.unsqueeze(0))

        score = float(log_probs.max(dim=-1).values.sum()) if path else 0.0

        words = words_of_path(path, np.asarray(log_probs.numpy()), self._vocabulary)

        return [Hypothesis(words, score, score)]


def check_width(logits: Tensor, vocabulary: CtcVocabulary) -> None:
    """:raises DecodingError: The recogniser has another number of outputs than there are symbols."""
    if logits.dim() != 2 or logits.size(1) != len(vocabulary):
        raise DecodingError(
            f"The recogniser's scores must have the shape (frames, {len(vocabulary)}), one for each symbol, but have "
            f"{tuple(logits.shape)}: the vocabulary is not that of the recogniser."
        )
