"""What torchaudio, Hugging Face Transformers and minimal_hubert have in common: their names go back to the same
port of fairseq's model, and all three always project the convolutions' output to the model dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.interop.keys import KeyPair, fresh_mask_embedding

_PROJ = "encoder_frontend.model_dim_proj"


def peer_key_pairs(
    conv_norm: Literal["group", "layer"],
    norm_order: Literal["post", "pre"],
    *,
    projection: str,
    transformer: str,
    pos_conv: str,
) -> list[KeyPair]:
    """Return the key table of an encoder (FACTS 5.1), but for its attention projections.

    :param conv_norm: Says what ``layer_norm`` of the first convolution is.
    :param norm_order: Says where the encoder's ``layer_norm`` stands (trap T24).
    :param projection: The name of the feature projection.
    :param transformer: The name of the Transformer.
    :param pos_conv: The name of the positional convolution.
    """
    extractor, frontend = "encoder_frontend.feature_extractor.layers", "encoder_frontend"

    layer = transformer + ".layers.{i}"

    return [
        ("feature_extractor.conv_layers.{i}.conv.*", extractor + ".{i}.conv.*"),
        ("feature_extractor.conv_layers.{i}.layer_norm.*", extractor + f".{{i}}.{conv_norm}_norm.*"),
        (f"{projection}.layer_norm.*", f"{frontend}.post_extract_layer_norm.*"),
        (f"{projection}.projection.*", f"{_PROJ}.*"),
        (f"{pos_conv}.*", f"{frontend}.pos_encoder.conv.*"),
        (f"{transformer}.layer_norm.*", f"{frontend}.layer_norm.*" if norm_order == "post" else "encoder.layer_norm.*"),
        (f"{layer}.layer_norm.*", "encoder.layers.{i}.self_attn_layer_norm.*"),
        (f"{layer}.feed_forward.intermediate_dense.*", "encoder.layers.{i}.ffn.inner_proj.*"),
        (f"{layer}.feed_forward.output_dense.*", "encoder.layers.{i}.ffn.output_proj.*"),
        (f"{layer}.final_layer_norm.*", "encoder.layers.{i}.ffn_layer_norm.*"),
    ]


def port_key_pairs(
    conv_norm: Literal["group", "layer"], norm_order: Literal["post", "pre"], *, projection: str, transformer: str
) -> list[KeyPair]:
    """Return the key table of an encoder in Transformers or torchaudio: attention has four separate projections."""
    layer = transformer + ".layers.{i}.attention"

    return [
        *peer_key_pairs(
            conv_norm,
            norm_order,
            projection=projection,
            transformer=transformer,
            pos_conv=f"{transformer}.pos_conv_embed.conv",
        ),
        *((f"{layer}.{p}_proj.*", f"encoder.layers.{{i}}.self_attn.{p}_proj.*") for p in "qkv"),
        (f"{layer}.out_proj.*", "encoder.layers.{i}.self_attn.output_proj.*"),
    ]


def peer_conv_norm(state_dict: Mapping[str, Tensor]) -> Literal["group", "layer"]:
    """Return the normalisation of the convolutions: only the layer-norm kind has one in the second convolution."""
    return "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in state_dict else "group"


def fit_projection(state_dict: dict[str, Tensor], config: HubertConfig) -> None:
    """Remove an identity projection that ``config`` has no room for, in place (trap T18).

    :raises CheckpointError: The projection does something.
    """
    if config.always_project_features or config.conv_layers[-1][0] != config.model_dim:
        return

    weight, bias = state_dict.get(f"{_PROJ}.weight"), state_dict.get(f"{_PROJ}.bias")

    if weight is None or bias is None:  # one without the other is a damaged file, as loading will say
        return

    identity = torch.eye(config.model_dim, dtype=weight.dtype)

    if not torch.equal(weight, identity) or bias.any():
        raise CheckpointError(
            "The checkpoint projects the convolutions' output although the dimensions are equal "
            f"({config.model_dim}); the configuration must have `always_project_features: true`."
        )

    del state_dict[f"{_PROJ}.weight"], state_dict[f"{_PROJ}.bias"]


def add_projection(state_dict: dict[str, Tensor], config: HubertConfig) -> None:
    """Add the identity projection that the other libraries expect where fairseq has none, in place (trap T18)."""
    if not state_dict.keys().isdisjoint((f"{_PROJ}.weight", f"{_PROJ}.bias")):
        return

    like = state_dict["encoder_frontend.post_extract_layer_norm.weight"]

    state_dict[f"{_PROJ}.weight"] = torch.eye(config.model_dim, dtype=like.dtype)
    state_dict[f"{_PROJ}.bias"] = torch.zeros(config.model_dim, dtype=like.dtype)


def add_mask_embedding(state_dict: dict[str, Tensor], config: HubertConfig) -> None:
    """Add a fresh mask embedding where a checkpoint has none, in place."""
    if "masker.temporal_mask_embed" not in state_dict:
        like = state_dict.get("encoder_frontend.post_extract_layer_norm.weight", torch.empty(()))

        state_dict["masker.temporal_mask_embed"] = fresh_mask_embedding(config, like)
