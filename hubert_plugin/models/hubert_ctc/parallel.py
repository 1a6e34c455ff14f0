"""Appliers of ``torch.compile``, activation checkpointing and FSDP: those of the encoder."""

from __future__ import annotations

from typing import Any

from fairseq2.nn.fsdp import FSDPWrapper
from torch.nn import Module

from hubert_plugin.models.hubert.compile import apply_ac_to_hubert, apply_fsdp_to_hubert, compile_hubert
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel


def compile_hubert_ctc(model: HubertCtcModel, *args: Any, **kwargs: Any) -> None:
    """Compile the parts of the encoder."""
    compile_hubert(model.hubert, *args, **kwargs)


def apply_ac_to_hubert_ctc(model: HubertCtcModel, every_nth_layer: int) -> Module:
    """Recompute every n-th Transformer layer in the backward pass."""
    apply_ac_to_hubert(model.hubert, every_nth_layer)

    return model


def apply_fsdp_to_hubert_ctc(model: HubertCtcModel, granularity: str, wrapper: FSDPWrapper) -> Module:
    """Shard the Transformer layer by layer, or as one stack."""
    apply_fsdp_to_hubert(model.hubert, granularity, wrapper)

    return model
