"""Hugging Face Transformers' ``HubertModel`` and ``HubertForCTC``.

Key names: FACTS 5.1. Target heads have no place there. The configuration written here carries a section
``fairseq2_hubert`` with what Transformers has no field for; Transformers keeps and ignores it.

Waveform normalisation: Transformers' converter writes ``do_normalize: true`` even for models that were trained without
(FACTS 5.3), so for group-norm models of others that word counts for nothing; ``false`` is believed, and so is our own
section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from hubert_plugin.errors import CheckpointError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import (
    AnyConfig,
    KeyTable,
    encoder_config,
    has_prefix,
    join_recogniser,
    split_model,
    take_output_layer,
    with_new_weight_norm,
    with_old_weight_norm,
)
from hubert_plugin.models.interop.peers import (
    add_mask_embedding,
    add_projection,
    fit_projection,
    port_key_pairs,
)

OWN_SECTION: Final = "fairseq2_hubert"
"""The section of ``config.json`` for what Transformers has no field for."""

_NAME: Final = "a Hugging Face HuBERT"

_WRAPPER: Final = "hubert."

_OUTPUT_LAYER: Final = "lm_head."


def huggingface_key_table(config: HubertConfig) -> KeyTable:
    """Return what the parameters of an encoder are called there and here."""
    pairs = port_key_pairs(config.conv_norm, config.norm_order, projection="feature_projection", transformer="encoder")

    return KeyTable(_NAME, [*pairs, ("masked_spec_embed", "masker.temporal_mask_embed")])


def is_huggingface_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of ``HubertModel`` or ``HubertForCTC`` (wav2vec 2.0 has the same inner
    names)."""
    prefix = "encoder.pos_conv_embed.conv."

    return has_prefix(state_dict, prefix, _WRAPPER + prefix)


def import_huggingface_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return the parameters under this package's names; the output layer where ``config`` is a recogniser's.

    :raises CheckpointError: A key is not known, or what ``config`` asks for is missing.
    """
    encoder = encoder_config(config)

    bare = {k.removeprefix(_WRAPPER): v for k, v in state_dict.items() if not k.startswith(_OUTPUT_LAYER)}

    result = huggingface_key_table(encoder).import_(with_old_weight_norm(bare))

    fit_projection(result, encoder)

    # `HubertModel` has one only where its masking probabilities are above 0.
    add_mask_embedding(result, encoder)

    if not isinstance(config, HubertCtcConfig):
        return result

    return join_recogniser(result, take_output_layer(state_dict, _OUTPUT_LAYER, _NAME))


def export_huggingface_state_dict(state_dict: Mapping[str, Tensor], config: AnyConfig) -> dict[str, Tensor]:
    """Return parameters under Transformers' names; the inverse of :func:`import_huggingface_state_dict`.

    Target heads are left out: Transformers has none.
    """
    encoder, proj = split_model(state_dict, config)

    encoder = {k: v for k, v in encoder.items() if not k.startswith("target_heads.")}

    add_projection(encoder, encoder_config(config))

    result = with_new_weight_norm(huggingface_key_table(encoder_config(config)).export(encoder))

    if not isinstance(config, HubertCtcConfig):
        return result

    return {**{_WRAPPER + k: v for k, v in result.items()}, **{_OUTPUT_LAYER + k: v for k, v in proj.items()}}


def import_huggingface_config(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
    *,
    symbols: Sequence[str] = (),
    with_output_layer: bool | None = None,
) -> AnyConfig:
    """Return the configuration that ``config.json`` describes.

    :param preprocessor: The contents of ``preprocessor_config.json``.
    :param symbols: The symbols of ``vocab.json``, in the order of the outputs.
    :param with_output_layer: Whether there is an output layer; ``None``: as ``architectures`` says.
    :raises CheckpointError: The model has parts that HuBERT does not have, or expects another sample rate.
    """
    preprocessor = preprocessor or {}

    _check(config, preprocessor)

    own = config.get(OWN_SECTION) or {}

    # The defaults are those of Transformers' `HubertConfig`; a file may leave them out.
    dims = config.get("conv_dim", [512] * 7)
    kernels = config.get("conv_kernel", [10, 3, 3, 3, 3, 2, 2])
    strides = config.get("conv_stride", [5, 2, 2, 2, 2, 2, 2])

    conv_norm = config.get("feat_extract_norm", "group")

    model_dim = int(config.get("hidden_size", 768))

    encoder = HubertConfig(
        model_dim=model_dim,
        num_layers=int(config.get("num_hidden_layers", 12)),
        num_heads=int(config.get("num_attention_heads", 12)),
        ffn_dim=int(config.get("intermediate_size", 3072)),
        norm_order="pre" if config.get("do_stable_layer_norm", False) else "post",
        conv_layers=[(int(d), int(k), int(s)) for d, k, s in zip(dims, kernels, strides, strict=True)],
        conv_bias=bool(config.get("conv_bias", False)),
        conv_norm=conv_norm,
        always_project_features=bool(own.get("always_project_features", dims[-1] == model_dim)),
        feature_grad_scale=float(own.get("feature_grad_scale", 1.0)),
        pos_conv_kernel=int(config.get("num_conv_pos_embeddings", 128)),
        pos_conv_groups=int(config.get("num_conv_pos_embedding_groups", 16)),
        dropout_p=float(config.get("hidden_dropout", 0.1)),
        attn_dropout_p=float(config.get("attention_dropout", 0.1)),
        ffn_inner_dropout_p=float(config.get("activation_dropout", 0.1)),
        input_dropout_p=float(config.get("feat_proj_dropout", 0.0)),
        layer_drop_p=float(config.get("layerdrop", 0.1)),
        normalize_audio=bool(own.get("normalize_audio", _normalizes(conv_norm, preprocessor))),
        group_norm_includes_padding=bool(own.get("group_norm_includes_padding", False)),
    )

    if with_output_layer is None:
        with_output_layer = "HubertForCTC" in (config.get("architectures") or ())

    if not with_output_layer:
        return encoder

    vocab_size = int(config.get("vocab_size", 32))

    return HubertCtcConfig(
        encoder=encoder,
        vocab_size=vocab_size,
        symbols=list(symbols) if len(symbols) == vocab_size else [],
        blank=int(config.get("pad_token_id") or 0),
        final_dropout_p=float(config.get("final_dropout", 0.1)),
    )


def export_huggingface_config(config: AnyConfig) -> dict[str, Any]:
    """Return ``config.json`` of a model: the inverse of :func:`import_huggingface_config`.

    ``pad_token_id`` is the blank, as in Transformers' own conversion of fairseq's models.
    """
    hubert = encoder_config(config)

    is_ctc = isinstance(config, HubertCtcConfig)

    result: dict[str, Any] = {
        "model_type": "hubert",
        "architectures": ["HubertForCTC" if is_ctc else "HubertModel"],
        "hidden_size": hubert.model_dim,
        "num_hidden_layers": hubert.num_layers,
        "num_attention_heads": hubert.num_heads,
        "intermediate_size": hubert.ffn_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "do_stable_layer_norm": hubert.norm_order == "pre",
        "feat_extract_norm": hubert.conv_norm,
        "feat_extract_activation": "gelu",
        "feat_proj_layer_norm": True,
        "conv_dim": [d for d, _, _ in hubert.conv_layers],
        "conv_kernel": [k for _, k, _ in hubert.conv_layers],
        "conv_stride": [s for _, _, s in hubert.conv_layers],
        "conv_bias": hubert.conv_bias,
        "conv_pos_batch_norm": False,
        "num_feat_extract_layers": len(hubert.conv_layers),
        "num_conv_pos_embeddings": hubert.pos_conv_kernel,
        "num_conv_pos_embedding_groups": hubert.pos_conv_groups,
        "hidden_dropout": hubert.dropout_p,
        "attention_dropout": hubert.attn_dropout_p,
        "activation_dropout": hubert.ffn_inner_dropout_p,
        "feat_proj_dropout": hubert.input_dropout_p,
        "layerdrop": hubert.layer_drop_p,
        "final_dropout": config.final_dropout_p if isinstance(config, HubertCtcConfig) else 0.0,
        # With a probability of 0 Transformers would have no mask embedding to put ours into.
        "apply_spec_augment": True,
        "mask_time_prob": 0.05,
        "mask_time_length": 10,
        "mask_time_min_masks": 2,
        "mask_feature_prob": 0.0,
        "mask_feature_length": 10,
        "mask_feature_min_masks": 0,
        OWN_SECTION: {
            "normalize_audio": hubert.normalize_audio,
            "always_project_features": hubert.always_project_features,
            "feature_grad_scale": hubert.feature_grad_scale,
            "group_norm_includes_padding": hubert.group_norm_includes_padding,
        },
    }

    if isinstance(config, HubertCtcConfig):
        result |= {
            "vocab_size": config.vocab_size,
            "pad_token_id": config.blank,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "ctc_loss_reduction": "sum",
            "ctc_zero_infinity": True,
        }

    return result


def export_huggingface_preprocessor(config: AnyConfig) -> dict[str, Any]:
    """Return ``preprocessor_config.json`` of a model: its waveform normalisation and sample rate."""
    hubert = encoder_config(config)

    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": hubert.sample_rate,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": hubert.normalize_audio,
        # Group norm sees padding whether it is masked or not (trap T4); Transformers' converter does the same.
        "return_attention_mask": hubert.conv_norm == "layer",
    }


def _normalizes(conv_norm: str, preprocessor: Mapping[str, Any]) -> bool:
    if conv_norm == "layer":
        return bool(preprocessor.get("do_normalize", True))

    return False


def _check(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> None:
    expected: dict[str, tuple[Any, ...]] = {
        "model_type": ("hubert",),
        "hidden_act": ("gelu",),
        "feat_extract_activation": ("gelu",),
        "feat_extract_norm": ("group", "layer"),
        "feat_proj_layer_norm": (True,),
        "conv_pos_batch_norm": (False,),
        "layer_norm_eps": (1e-5,),
    }

    problems = [
        f"`{name}` must be {' or '.join(map(repr, values))}, but is {config[name]!r}"
        for name, values in expected.items()
        if name in config and config[name] not in values
    ]

    if (rate := preprocessor.get("sampling_rate", 16_000)) != 16_000:
        problems.append(f"`sampling_rate` of the preprocessor must be 16000, but is {rate}")

    lengths = {len(config[n]) for n in ("conv_dim", "conv_kernel", "conv_stride") if n in config}

    if len(lengths) > 1:
        problems.append("`conv_dim`, `conv_kernel` and `conv_stride` must have one length")

    if problems:
        raise CheckpointError(format_problems("This Hugging Face configuration is not one of a HuBERT here:", problems))
