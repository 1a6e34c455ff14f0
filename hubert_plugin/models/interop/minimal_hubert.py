"""minimal_hubert's checkpoints: the encoder and one label set under names close to torchaudio's, attention fused.

Key names: FACTS 5.1. A training checkpoint holds them in its entry ``model``. There are no special rows. Its features
are normally taken *before* the residual addition (trap T3); here layer L is always the output of block L.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.interop.keys import (
    AnyConfig,
    KeyTable,
    encoder_config,
    has_prefix,
    split_recogniser,
    with_new_weight_norm,
    with_old_weight_norm,
)
from hubert_plugin.models.interop.peers import (
    add_mask_embedding,
    add_projection,
    fit_projection,
    peer_conv_norm,
    peer_key_pairs,
)
from hubert_plugin.models.interop.shapes import infer_config

_NAME: Final = "a minimal_hubert checkpoint"

_QKV: Final = r"(encoder\.layers\.\d+)\.attention\.qkv\.(weight|bias)"

_PARTS: Final = ("q", "k", "v")


def minimal_hubert_key_table(config: HubertConfig) -> KeyTable:
    """Return what the parameters are called there and here."""
    pairs = peer_key_pairs(
        config.conv_norm,
        config.norm_order,
        projection="feature_projection.0",
        transformer="encoder",
        pos_conv="encoder.pos_conv_embed.convs.0",
    )

    attention = [(f"encoder.layers.{{i}}.attention.{p}.*", f"encoder.layers.{{i}}.self_attn.{p}_proj.*") for p in "qkv"]

    return KeyTable(
        _NAME,
        [
            *pairs,
            *attention,
            ("encoder.layers.{i}.attention.proj.*", "encoder.layers.{i}.self_attn.output_proj.*"),
            ("mask_embedding", "masker.temporal_mask_embed"),
            ("logit_generator.label_embeddings", "target_heads.heads.0.codewords"),
            ("logit_generator.final_proj.*", "target_heads.heads.0.proj.*"),
        ],
        joined={r"\.attention\.[qkv]\.": ".attention.qkv."},
    )


def is_minimal_hubert_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of minimal_hubert."""
    return has_prefix(state_dict, "encoder.pos_conv_embed.convs.")


def import_minimal_hubert_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return minimal_hubert's parameters under this package's names; the target head where ``config`` has one.

    :raises CheckpointError: A key is not known.
    """
    encoder = encoder_config(config)

    result = minimal_hubert_key_table(encoder).import_(_split_attention(state_dict))

    fit_projection(result, encoder)

    add_mask_embedding(result, encoder)

    if not encoder.heads:
        result = {k: v for k, v in result.items() if not k.startswith("target_heads.")}

    return result


def export_minimal_hubert_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return parameters under minimal_hubert's names; the inverse of :func:`import_minimal_hubert_state_dict`. A
    recogniser's output layer has no place there and is left out.

    :raises CheckpointError: The model has several label sets.
    """
    hubert = encoder_config(config)

    encoder = dict(state_dict) if isinstance(config, HubertConfig) else split_recogniser(state_dict)[0]

    if len(hubert.heads) > 1 or hubert.tie_final_proj:
        raise CheckpointError(
            f"minimal_hubert has one label set with its own projection, but the model has {len(hubert.heads)}. Export "
            "the encoder alone: leave the heads out."
        )

    add_projection(encoder, hubert)

    result = minimal_hubert_key_table(hubert).export(encoder)

    for idx in range(hubert.num_layers):
        attention = f"encoder.layers.{idx}.attention"

        for name in ("weight", "bias"):
            result[f"{attention}.qkv.{name}"] = torch.cat([result.pop(f"{attention}.{p}.{name}") for p in _PARTS])

    if hubert.heads:
        result["logit_generator.logit_temp"] = torch.tensor(hubert.logit_temp)

    return with_new_weight_norm(result)


def import_minimal_hubert_config(state_dict: Mapping[str, Tensor], *, hint: HubertConfig | None = None) -> HubertConfig:
    """Return the configuration of a minimal_hubert checkpoint, read from its shapes.

    :param hint: What shapes do not say.
    """
    conv_norm = peer_conv_norm(state_dict)

    if hint is not None:
        norm_order = hint.norm_order
    else:
        norm_order = "pre" if conv_norm == "layer" else "post"

    table = minimal_hubert_key_table(HubertConfig(conv_norm=conv_norm, norm_order=norm_order))

    config = infer_config(table.import_(_split_attention(state_dict)), norm_order, hint=hint)

    if (temp := state_dict.get("logit_generator.logit_temp")) is not None:
        config.logit_temp = round(float(temp), 6)

    if hint is None:
        # minimal_hubert normalises each waveform, whatever the size of the model (FACTS 8).
        config.normalize_audio = True

    return config


def _split_attention(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}

    for key, value in with_old_weight_norm(state_dict).items():
        if key == "logit_generator.logit_temp":
            continue

        if m := re.fullmatch(_QKV, key):
            for part, rows in zip(_PARTS, value.chunk(3), strict=True):
                result[f"{m[1]}.attention.{part}.{m[2]}"] = rows.clone()
        else:
            result[key] = value

    return result
