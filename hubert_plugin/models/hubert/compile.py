"""Appliers of ``torch.compile``, activation checkpointing and FSDP."""

from __future__ import annotations

from typing import Any

from fairseq2.error import NotSupportedError
from fairseq2.models.utils.ac import apply_layerwise_ac
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from torch.nn import Module

from hubert_plugin.models.hubert.model import HubertModel


def compile_hubert(model: HubertModel, *args: Any, **kwargs: Any) -> None:
    """Compile each Transformer layer and each head by itself.

    Layer drop, taps and early exit stay plain Python around them, so they cause no recompilation; the bounded number of
    batch lengths (``length: bucket``) bounds the number of compiled shapes. The convolutions stay as they are: matrix
    products of views, whose sizes PyTorch 2.9 cannot follow once lengths are symbols.
    """
    # A packed batch has a length of its own.
    model.encoder.pack = False

    for layer in model.encoder.layers:
        layer.compile(*args, **kwargs)

    for head in model.target_heads:
        head.compile(*args, **kwargs)


def apply_ac_to_hubert(model: HubertModel, every_nth_layer: int) -> Module:
    """Recompute every n-th Transformer layer in the backward pass."""
    apply_layerwise_ac(model.encoder.layers, every_nth_layer)

    return model


def apply_fsdp_to_hubert(model: HubertModel, granularity: str, wrapper: FSDPWrapper) -> Module:
    """Shard the Transformer layer by layer, or as one stack."""
    model.encoder.run_dropped = True

    if granularity == "layer":
        apply_layerwise_fsdp(model.encoder.layers, wrapper)

        return model

    if granularity == "stack":
        model.register_module("encoder", wrapper(model.encoder))

        return model

    raise NotSupportedError(f"`granularity` must be 'layer' or 'stack', but is '{granularity}' instead.")
