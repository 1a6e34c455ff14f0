"""Builds a recogniser from its configuration."""

from __future__ import annotations

from fairseq2.nn import Linear
from fairseq2.runtime.dependency import DependencyResolver
from torch.nn.init import xavier_uniform_, zeros_

from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel


def create_hubert_ctc_model(config: HubertCtcConfig, resolver: DependencyResolver | None = None) -> HubertCtcModel:
    """Create a recogniser with fresh parameters.

    :param resolver: Handed to the factory of the encoder.
    """
    hubert = create_hubert_model(config.encoder, resolver)

    final_proj = Linear(config.encoder.model_dim, config.vocab_size, bias=True, init_fn=_init_final_proj)

    return HubertCtcModel(config, hubert, final_proj)


def _init_final_proj(proj: Linear) -> None:
    # fairseq ``hubert_asr.py`` makes it with its ``Linear``: Xavier's uniform weights, no bias.
    xavier_uniform_(proj.weight)

    if proj.bias is not None:
        zeros_(proj.bias)
