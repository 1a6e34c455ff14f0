"""torchaudio's HuBERT: ``wav2vec2_model`` (encoder, and recogniser where it has ``aux``) and ``hubert_pretrain_model``.

Key names: FACTS 5.1. An encoder file has no mask embedding. A pretraining file has one label set, no special rows.
torchaudio's own bundles normalise a batch as a whole (trap T29); here each waveform is normalised by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import (
    AnyConfig,
    KeyTable,
    encoder_config,
    has_prefix,
    join_recogniser,
    require,
    split_model,
    take_output_layer,
    with_new_weight_norm,
    with_old_weight_norm,
)
from hubert_plugin.models.interop.peers import (
    add_mask_embedding,
    add_projection,
    fit_projection,
    peer_conv_norm,
    port_key_pairs,
)
from hubert_plugin.models.interop.shapes import infer_config

_NAME: Final = "a torchaudio checkpoint"

_WRAPPER: Final = "wav2vec2."

_OUTPUT_LAYER: Final = "aux."

_HEAD_PAIRS: Final = (
    ("mask_generator.mask_embedding", "masker.temporal_mask_embed"),
    ("logit_generator.label_embeddings", "target_heads.heads.0.codewords"),
    ("logit_generator.final_proj.*", "target_heads.heads.0.proj.*"),
)


def torchaudio_key_table(config: HubertConfig) -> KeyTable:
    """Return what the parameters are called there and here."""
    pairs = port_key_pairs(
        config.conv_norm,
        config.norm_order,
        projection="encoder.feature_projection",
        transformer="encoder.transformer",
    )

    return KeyTable(_NAME, [*pairs, *_HEAD_PAIRS])


def is_torchaudio_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of torchaudio's encoder, recogniser or pretraining model."""
    prefix = "encoder.transformer.pos_conv_embed."

    return has_prefix(state_dict, prefix, _WRAPPER + prefix)


def import_torchaudio_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return torchaudio's parameters under this package's names.

    A target head is taken where ``config`` has one, ``aux`` where it is a recogniser's.

    :raises CheckpointError: A key is not known, or what ``config`` asks for is missing.
    """
    encoder = encoder_config(config)

    result = _rename(state_dict, encoder)

    fit_projection(result, encoder)

    add_mask_embedding(result, encoder)

    if not encoder.heads:
        result = {k: v for k, v in result.items() if not k.startswith("target_heads.")}
    elif encoder.tie_final_proj:
        for name in ("weight", "bias"):
            key = f"target_heads.heads.0.proj.{name}"

            result[f"target_heads.shared_proj.{name}"] = require(result, key, _NAME)

            del result[key]

    if not isinstance(config, HubertCtcConfig):
        return result

    return join_recogniser(result, take_output_layer(state_dict, _OUTPUT_LAYER, _NAME))


def export_torchaudio_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return parameters under torchaudio's names; the inverse of :func:`import_torchaudio_state_dict`.

    With a target head the keys are those of ``hubert_pretrain_model``, else those of ``wav2vec2_model``, which has no
    place for the mask embedding.

    :raises CheckpointError: The model has something that torchaudio's does not: several label sets, other heads.
    """
    encoder, proj = split_model(state_dict, config)

    hubert = encoder_config(config)

    _check_heads(hubert)

    add_projection(encoder, hubert)

    if not hubert.heads:
        del encoder["masker.temporal_mask_embed"]

    for name in ("weight", "bias"):
        if f"target_heads.shared_proj.{name}" in encoder:
            encoder[f"target_heads.heads.0.proj.{name}"] = encoder.pop(f"target_heads.shared_proj.{name}")

    result = torchaudio_key_table(hubert).export(encoder)

    if hubert.heads:
        own = ("mask_generator.", "logit_generator.")

        result = {k if k.startswith(own) else _WRAPPER + k: v for k, v in result.items()}

    result.update({_OUTPUT_LAYER + k: v for k, v in proj.items()})

    return with_new_weight_norm(result)


def import_torchaudio_config(
    state_dict: Mapping[str, Tensor],
    kwargs: Mapping[str, object] | None = None,
    *,
    hint: HubertConfig | None = None,
) -> AnyConfig:
    """Return the configuration of a torchaudio checkpoint.

    :param kwargs: The arguments of ``wav2vec2_model`` or ``hubert_pretrain_model``, where they are known.
    :param hint: What shapes and ``kwargs`` do not say. Without it, pre-norm is taken to go with layer-norm
        convolutions, as in all published models.
    """
    kwargs = kwargs or {}

    conv_norm = peer_conv_norm(_bare(state_dict))

    norm_order: Literal["post", "pre"]

    if (pre := kwargs.get("encoder_layer_norm_first")) is not None:
        norm_order = "pre" if pre else "post"
    elif hint is not None:
        norm_order = hint.norm_order
    else:
        norm_order = "pre" if conv_norm == "layer" else "post"

    num_heads = kwargs.get("encoder_num_heads")

    renamed = torchaudio_key_table(HubertConfig(conv_norm=conv_norm, norm_order=norm_order)).import_(_bare(state_dict))

    config = infer_config(
        renamed,
        norm_order,
        num_heads=int(str(num_heads)) if num_heads is not None else None,
        hint=hint,
    )

    fields = {
        "dropout_p": "encoder_dropout",
        "attn_dropout_p": "encoder_attention_dropout",
        "ffn_inner_dropout_p": "encoder_ff_interm_dropout",
        "input_dropout_p": "encoder_projection_dropout",
        "layer_drop_p": "encoder_layer_drop",
        "feature_grad_scale": "feature_grad_mult",
    }

    for ours, theirs in fields.items():
        if (value := kwargs.get(theirs)) is not None:
            setattr(config, ours, float(str(value)))

    if "feature_grad_mult" in kwargs and kwargs["feature_grad_mult"] is None:
        config.feature_grad_scale = 1.0

    if (aux := state_dict.get("aux.weight")) is None:
        return config

    config.heads = []  # left over from pretraining

    return HubertCtcConfig(encoder=config, vocab_size=aux.size(0))


def export_torchaudio_kwargs(config: AnyConfig) -> dict[str, Any]:
    """Return the arguments that build the model in torchaudio: those of ``hubert_pretrain_model`` where the model has a
    target head, else of ``wav2vec2_model``.

    :raises CheckpointError: torchaudio has no such model.
    """
    hubert = encoder_config(config)

    _check_heads(hubert)

    kwargs: dict[str, Any] = {
        "extractor_mode": f"{hubert.conv_norm}_norm",
        "extractor_conv_layer_config": [list(desc) for desc in hubert.conv_layers],
        "extractor_conv_bias": hubert.conv_bias,
        "encoder_embed_dim": hubert.model_dim,
        "encoder_projection_dropout": hubert.input_dropout_p,
        "encoder_pos_conv_kernel": hubert.pos_conv_kernel,
        "encoder_pos_conv_groups": hubert.pos_conv_groups,
        "encoder_num_layers": hubert.num_layers,
        "encoder_num_heads": hubert.num_heads,
        "encoder_attention_dropout": hubert.attn_dropout_p,
        "encoder_ff_interm_features": hubert.ffn_dim,
        "encoder_ff_interm_dropout": hubert.ffn_inner_dropout_p,
        "encoder_dropout": hubert.dropout_p,
        "encoder_layer_norm_first": hubert.norm_order == "pre",
        "encoder_layer_drop": hubert.layer_drop_p,
    }

    if not hubert.heads:
        return {**kwargs, "aux_num_out": config.vocab_size if isinstance(config, HubertCtcConfig) else None}

    masks: dict[str, Any] = {}

    for name in ("mask", "mask_channel"):
        masks |= {f"{name}_selection": "static", f"{name}_other": 0.0, f"{name}_min_space": 1, f"{name}_length": 10}

    return {
        **kwargs,
        **masks,
        "mask_prob": 0.8,
        "mask_channel_prob": 0.0,
        "no_mask_overlap": False,
        "no_mask_channel_overlap": False,
        "skip_masked": False,
        "skip_nomask": False,
        "num_classes": hubert.heads[0].size,
        "final_dim": hubert.final_dim or hubert.model_dim,
        # torchaudio takes factors between 0 and 1 only; ``None`` is 1.
        "feature_grad_mult": hubert.feature_grad_scale if 0.0 < hubert.feature_grad_scale < 1.0 else None,
    }


def _rename(state_dict: Mapping[str, Tensor], config: HubertConfig) -> dict[str, Tensor]:
    return torchaudio_key_table(config).import_(_bare(state_dict))


def _bare(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters without the wrapper's prefix, the recogniser's layer, and newer weight norm names."""
    result = {k.removeprefix(_WRAPPER): v for k, v in state_dict.items() if not k.startswith(_OUTPUT_LAYER)}

    return with_old_weight_norm(result)


def _check_heads(config: HubertConfig) -> None:
    if not config.heads:
        return

    (head, *others) = config.heads

    if others or head.kind != "cosine" or head.layer not in (None, config.num_layers):
        raise CheckpointError(
            "torchaudio's `hubert_pretrain_model` has one label set, predicted by cosines from the last layer, but the "
            f"model has {len(config.heads)} heads ({', '.join(h.kind for h in config.heads)}). Export the encoder "
            "alone: leave the heads out."
        )

    if config.logit_temp != 0.1:
        raise CheckpointError(f"torchaudio's temperature of logits is 0.1, but the model's is {config.logit_temp}.")
