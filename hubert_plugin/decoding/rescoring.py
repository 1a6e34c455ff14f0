"""Rescoring of n-best lists with a causal language model of fairseq2.

The new score is score + w · ln p(text), p being the probability of the tokens and the end of the sequence, given its
beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

import torch
from fairseq2.assets import AssetCardError, AssetDownloadError, AssetNotFoundError
from fairseq2.data.tokenizers import Tokenizer, load_tokenizer
from fairseq2.data.tokenizers.hub import TokenizerNotKnownError
from fairseq2.device import Device
from fairseq2.error import OperationalError
from fairseq2.models import load_model
from fairseq2.models.clm import CausalLM
from fairseq2.models.hub import ModelNotKnownError
from fairseq2.nn import BatchLayout
from torch.nn.functional import cross_entropy
from typing_extensions import override

from hubert_plugin.decoding.hypothesis import Hypothesis
from hubert_plugin.decoding.options import Options, not_finite
from hubert_plugin.errors import DecodingError
from hubert_plugin.models.interop.cards import first_lines

CASES: Final = ("none", "lower", "upper")


@dataclass(frozen=True, kw_only=True)
class RescoringConfig(Options):
    """Says which language model looks at n-best lists."""

    lm: str = ""
    """The card of a causal language model of fairseq2. Empty: n-best lists stay as they are."""

    tokenizer: str = ""
    """The card of its tokenizer. Empty: the model's."""

    weight: float = 0.5
    """What the natural logarithm of the text's probability is multiplied with. (A choice of ours.)"""

    case: Literal["none", "lower", "upper"] = "lower"
    """How the text is written for the language model: recognisers of letters write upper case, which most language
    models have seen little of."""

    batch_tokens: int = 4096
    """How many tokens are computed at once, padding included."""

    @override
    def problems(self) -> list[str]:
        problems = not_finite(self, "weight")

        if self.case not in CASES:
            problems.append(f"`case` must be one of {', '.join(CASES)}, but is '{self.case}' instead.")

        if self.batch_tokens < 1:
            problems.append(f"`batch_tokens` must be 1 or greater, but is {self.batch_tokens} instead.")

        return problems


@final
class Rescorer:
    """Adds what a second language model says to the scores of n-best lists."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, config: RescoringConfig) -> None:
        self._model = model.eval()
        self._encode = tokenizer.create_raw_encoder()
        self._info = tokenizer.vocab_info
        self._config = config

        first = self._info.bos_idx if self._info.bos_idx is not None else self._info.eos_idx

        if first is None:
            raise DecodingError(
                f"The tokenizer of the language model '{config.lm}' has no token that begins a text, nor one that ends "
                "it, so the first word has no probability: use another."
            )

        self._first = first

    def rescore(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Return the hypotheses with their new scores, the best first."""
        scores = self.score([h.text for h in hypotheses])

        rescored = [
            replace(h, score=h.score + self._config.weight * s, rescored=s)
            for h, s in zip(hypotheses, scores, strict=True)
        ]

        return sorted(rescored, key=lambda h: -h.score)

    @torch.inference_mode()
    def score(self, texts: Sequence[str]) -> list[float]:
        """Return the natural logarithm of each text's probability, its end included."""
        pieces = [(idx, piece) for idx, text in enumerate(texts) for piece in self._pieces(text)]

        pieces.sort(key=lambda p: -len(p[1]))

        scores = [0.0] * len(texts)

        while pieces:
            count = max(1, self._config.batch_tokens // len(pieces[0][1]))

            batch, pieces = pieces[:count], pieces[count:]

            for (idx, _), score in zip(batch, self._score_batch([p for _, p in batch]), strict=True):
                scores[idx] += score

        return scores

    def _pieces(self, text: str) -> list[list[int]]:
        """Return the tokens of a text; of one that is longer than the model takes, in pieces, each of which begins with
        the last token of the one before, and knows no more of it."""
        text = {"lower": text.lower, "upper": text.upper}.get(self._config.case, lambda: text)()

        tokens = [self._first, *self._encode(text).tolist()]

        if self._info.eos_idx is not None:
            tokens.append(self._info.eos_idx)

        longest = self._model.max_seq_len

        return [tokens[i : i + longest + 1] for i in range(0, len(tokens) - 1, longest)]

    def _score_batch(self, batch: Sequence[Sequence[int]]) -> list[float]:
        lengths = [len(tokens) - 1 for tokens in batch]

        device = next(self._model.parameters()).device

        inputs = torch.full((len(batch), max(lengths)), self._info.pad_idx or 0, device=device)

        targets = torch.full_like(inputs, -100)

        for row, tokens in enumerate(batch):
            inputs[row, : lengths[row]] = torch.tensor(tokens[:-1])
            targets[row, : lengths[row]] = torch.tensor(tokens[1:])

        logits = self._model(inputs, BatchLayout.of(inputs, lengths))

        losses = cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=-100, reduction="none")

        return [-float(loss) for loss in losses.double().sum(dim=1)]


def load_rescorer(config: RescoringConfig, device: Device) -> Rescorer:
    """Load the language model and its tokenizer.

    :raises DecodingError: There is no such card, it cannot be fetched, or it is not that of a causal language model.
    """
    try:
        model: Any = load_model(config.lm, device=device)

        tokenizer = load_tokenizer(config.tokenizer or config.lm)
    except (ModelNotKnownError, TokenizerNotKnownError, AssetNotFoundError) as ex:
        raise DecodingError(
            f"There is no asset card for the language model of `rescoring`: {ex} `fairseq2 assets list` shows those "
            "that there are."
        ) from ex
    except AssetDownloadError as ex:
        raise DecodingError(
            f"The language model '{config.lm}' of `rescoring` cannot be downloaded: {first_lines(ex)} Without a "
            "connection, give the name of a card whose `checkpoint` is a file of this machine."
        ) from ex
    except (AssetCardError, OperationalError) as ex:
        raise DecodingError(
            f"The language model '{config.lm}' of `rescoring` cannot be loaded: {first_lines(ex)}"
        ) from ex

    if not isinstance(model, CausalLM):
        raise DecodingError(
            f"The model '{config.lm}' of `rescoring.lm` is a {type(model).__name__}, expected a causal language model."
        )

    return Rescorer(model, tokenizer, config)
