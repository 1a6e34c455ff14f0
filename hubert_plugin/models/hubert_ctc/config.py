"""The configuration of a recogniser: a HuBERT encoder and a vocabulary; architectures ``tiny`` to ``xlarge``."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Final, Literal

from fairseq2.runtime.config_registry import AdvancedConfigProvider, ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult

from hubert_plugin.models.hubert.config import HubertConfig

HUBERT_CTC_FAMILY: Final = "hubert_ctc"
"""The name of the model family in asset cards and recipe configurations."""


@dataclass(kw_only=True)
class HubertCtcConfig(Validatable):
    """Holds the configuration of a HuBERT recogniser trained with connectionist temporal classification."""

    encoder: HubertConfig = field(default_factory=HubertConfig)
    """The encoder. It has no target heads."""

    vocab_size: int = 32
    """The number of symbols, the blank included. fairseq's letters are 4 special symbols and 28 others."""

    symbols: list[str] = field(default_factory=list)
    """The symbols in the order of the outputs; empty: not known."""

    blank: int = 0
    """The index of the blank (fairseq ``<s>``, Transformers ``pad_token_id``)."""

    symbol_scores: list[float] = field(default_factory=list)
    """Log-probabilities of SentencePiece's pieces, by which words are spelled; empty: letters, or not known."""

    layer_pooling: Literal["last", "weighted"] = "last"
    """What the output layer reads. ``last``: the encoder's output. ``weighted``: the sum of all layers, layer 0 (the
    input of the first) included, weighted with a softmax of learned weights that start equal (SUPERB, arXiv:2105.01051,
    section 3.2): for probing a frozen encoder. No other format has a place for the weights."""

    final_dropout_p: float = 0.0
    """The dropout probability on the output of the encoder."""

    def validate(self) -> ValidationResult:
        result = self.encoder.validate()

        if self.encoder.heads:
            names = ", ".join(h.label_set for h in self.encoder.heads)

            result.add_error(f"`encoder.heads` must be empty: a recogniser has no target heads, but there are {names}.")

        if self.vocab_size < 2:
            result.add_error(
                f"`vocab_size` must be at least 2 (the blank and a symbol), but is {self.vocab_size} instead."
            )

        if self.symbols and len(self.symbols) != self.vocab_size:
            result.add_error(
                f"`symbols` must name all {self.vocab_size} outputs of `vocab_size`, but names {len(self.symbols)}."
            )

        if self.symbol_scores and len(self.symbol_scores) != self.vocab_size:
            result.add_error(
                f"`symbol_scores` must be {self.vocab_size} numbers, one for each output, but are "
                f"{len(self.symbol_scores)}."
            )

        if self.layer_pooling not in ("last", "weighted"):
            result.add_error(f"`layer_pooling` must be 'last' or 'weighted', but is '{self.layer_pooling}' instead.")

        if len(set(self.symbols)) != len(self.symbols):
            result.add_error("`symbols` must name each symbol only once.")

        if not 0 <= self.blank < max(self.vocab_size, 1):
            result.add_error(f"`blank` must be an index into {self.vocab_size} outputs, but is {self.blank} instead.")

        if not 0.0 <= self.final_dropout_p < 1.0:
            result.add_error(
                f"`final_dropout_p` must be at least 0 and below 1, but is {self.final_dropout_p} instead."
            )

        return result


def register_hubert_ctc_configs(container: DependencyContainer) -> None:
    """Register the architectures of the family with fairseq2."""
    arch = ConfigRegistrar(container, HubertCtcConfig)

    def create(name: str) -> AdvancedConfigProvider[HubertCtcConfig]:
        def config(resolver: DependencyResolver) -> HubertCtcConfig:
            # FACTS 1.5, fairseq finetune/base_10h.yaml: no dropout but inside the feed-forward networks, layers dropped
            # with 0.1, convolutions frozen.
            encoder = deepcopy(resolver.resolve(HubertConfig, key=name))

            encoder.feature_grad_scale = 0.0
            encoder.dropout_p = 0.0
            encoder.attn_dropout_p = 0.0
            encoder.input_dropout_p = 0.0
            encoder.ffn_inner_dropout_p = 0.1
            encoder.layer_drop_p = 0.1

            return HubertCtcConfig(encoder=encoder)

        return config

    for name in ("tiny", "base", "large", "xlarge"):
        arch(name, advanced=True)(create(name))
