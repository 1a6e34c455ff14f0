"""fairseq's HuBERT pretraining checkpoints: the key table, its inverse, and the configuration.

Key names: FACTS 5.1. fairseq's label sets begin with the four special symbols ``<s> <pad> </s> <unk>``: unit *u* is row
*u* + 4 of ``label_embs_concat`` (trap T1). Importing drops the four rows; exporting needs values for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig

NUM_SPECIAL_SYMBOLS: Final = 4
"""The rows of ``label_embs_concat`` that come before the units of each label set."""

_LAYER: Final = r"encoder\.layers\.(\d+)\."

KEY_TABLE: Final[Sequence[tuple[str, str]]] = (
    (r"^mask_emb$", r"masker.temporal_mask_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"encoder_frontend.feature_extractor.layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.0\.2\.(weight|bias)$",
     r"encoder_frontend.feature_extractor.layers.0.group_norm.\1"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"encoder_frontend.feature_extractor.layers.\1.layer_norm."),
    (r"^layer_norm\.", r"encoder_frontend.post_extract_layer_norm."),
    (r"^post_extract_proj\.", r"encoder_frontend.model_dim_proj."),
    (r"^encoder\.pos_conv\.0\.", r"encoder_frontend.pos_encoder.conv."),
    (rf"^{_LAYER}self_attn\.(q|k|v)_proj\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (rf"^{_LAYER}self_attn\.out_proj\.", r"encoder.layers.\1.self_attn.output_proj."),
    (rf"^{_LAYER}self_attn_layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (rf"^{_LAYER}fc1\.", r"encoder.layers.\1.ffn.inner_proj."),
    (rf"^{_LAYER}fc2\.", r"encoder.layers.\1.ffn.output_proj."),
    (rf"^{_LAYER}final_layer_norm\.", r"encoder.layers.\1.ffn_layer_norm."),
)  # fmt: skip
"""Patterns of fairseq's names and what they are here. The encoder's norm, the projections and the label embeddings
depend on the configuration and are handled in the functions below."""

INVERSE_KEY_TABLE: Final[Sequence[tuple[str, str]]] = (
    (r"^masker\.temporal_mask_embed$", r"mask_emb"),
    (r"^encoder_frontend\.feature_extractor\.layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^encoder_frontend\.feature_extractor\.layers\.0\.group_norm\.", r"feature_extractor.conv_layers.0.2."),
    (r"^encoder_frontend\.feature_extractor\.layers\.(\d+)\.layer_norm\.", r"feature_extractor.conv_layers.\1.2.1."),
    (r"^encoder_frontend\.post_extract_layer_norm\.", r"layer_norm."),
    (r"^encoder_frontend\.model_dim_proj\.", r"post_extract_proj."),
    (r"^encoder_frontend\.pos_encoder\.conv\.", r"encoder.pos_conv.0."),
    (r"^encoder_frontend\.layer_norm\.", r"encoder.layer_norm."),
    (r"^encoder\.layer_norm\.", r"encoder.layer_norm."),
    (rf"^{_LAYER}self_attn\.(q|k|v)_proj\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (rf"^{_LAYER}self_attn\.output_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (rf"^{_LAYER}self_attn_layer_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (rf"^{_LAYER}ffn\.inner_proj\.", r"encoder.layers.\1.fc1."),
    (rf"^{_LAYER}ffn\.output_proj\.", r"encoder.layers.\1.fc2."),
    (rf"^{_LAYER}ffn_layer_norm\.", r"encoder.layers.\1.final_layer_norm."),
)
"""The inverse of :data:`KEY_TABLE`."""


def is_fairseq_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of a fairseq HuBERT."""
    return "encoder.pos_conv.0.bias" in state_dict and "feature_extractor.conv_layers.0.0.weight" in state_dict


def import_fairseq_state_dict(
    state_dict: Mapping[str, Tensor], config: HubertConfig, *, keep_special_rows: bool = False
) -> dict[str, Tensor]:
    """Return fairseq's parameters under this package's names, the special rows dropped.

    :param keep_special_rows: If true, the four rows stay, ``config.heads`` counts them, and unit *u* is class *u* + 4:
        the softmax then has fairseq's never-positive negatives and its loss, to the last digit.
    :raises CheckpointError: A key is not known, or the label embeddings do not have the rows that ``config`` implies.
    """
    result: dict[str, Tensor] = {}

    for key, value in state_dict.items():
        if key in ("final_proj.weight", "final_proj.bias", "label_embs_concat"):
            continue

        if key.startswith("encoder.layer_norm."):
            # The same key is at the input of post-norm models and at the output of pre-norm ones (trap T24).
            new_key = "encoder_frontend." + key.removeprefix("encoder.") if config.norm_order == "post" else key
        else:
            new_key = _rename(key, KEY_TABLE)

        result[new_key] = value

    if config.heads:
        num_special = 0 if keep_special_rows else NUM_SPECIAL_SYMBOLS

        result.update(_import_heads(state_dict, config, num_special))

    return result


def export_fairseq_state_dict(
    state_dict: Mapping[str, Tensor], config: HubertConfig, special_rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Return parameters under fairseq's names; the inverse of :func:`import_fairseq_state_dict`.

    :param special_rows: The rows of the special symbols of each label set. *Shape:* (4 * heads, d). ``None``: zeros.
    """
    result: dict[str, Tensor] = {}

    for key, value in state_dict.items():
        if not key.startswith("target_heads."):
            result[_rename(key, INVERSE_KEY_TABLE)] = value

    if not config.heads:
        return result

    codewords: list[Tensor] = []

    for idx in range(len(config.heads)):
        rows = state_dict[f"target_heads.heads.{idx}.codewords"]

        if special_rows is None:
            special = rows.new_zeros((NUM_SPECIAL_SYMBOLS, rows.size(1)))
        else:
            special = special_rows[NUM_SPECIAL_SYMBOLS * idx : NUM_SPECIAL_SYMBOLS * (idx + 1)].to(rows)

        codewords += [special, rows]

    result["label_embs_concat"] = torch.cat(codewords)

    for name in ("weight", "bias"):
        if config.tie_final_proj:
            result[f"final_proj.{name}"] = state_dict[f"target_heads.shared_proj.{name}"]
        else:
            parts = [state_dict[f"target_heads.heads.{i}.proj.{name}"] for i in range(len(config.heads))]

            result[f"final_proj.{name}"] = torch.cat(parts)

    return result


def import_fairseq_config(
    model_cfg: Mapping[str, object], task_cfg: Mapping[str, object], num_symbols: Sequence[int]
) -> HubertConfig:
    """Return the configuration that fairseq's ``cfg.model`` and ``cfg.task`` describe.

    :param num_symbols: The sizes of the dictionaries, special symbols included.
    """

    def get(name: str, default: object) -> object:
        value = model_cfg.get(name, default)

        return default if value is None else value

    conv_layers = get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")

    labels = task_cfg.get("labels") or [f"label{i}" for i in range(len(num_symbols))]

    label_rate = task_cfg.get("label_rate") or model_cfg.get("label_rate") or 50

    assert isinstance(labels, Sequence)

    heads = [
        HubertHeadConfig(label_set=str(name), size=n - NUM_SPECIAL_SYMBOLS, rate=int(float(str(label_rate))))
        for name, n in zip(labels, num_symbols, strict=False)
    ]

    return HubertConfig(
        model_dim=_int(get("encoder_embed_dim", 768)),
        num_layers=_int(get("encoder_layers", 12)),
        num_heads=_int(get("encoder_attention_heads", 12)),
        ffn_dim=_int(get("encoder_ffn_embed_dim", 3072)),
        norm_order="pre" if get("layer_norm_first", False) else "post",
        conv_layers=parse_conv_layers(str(conv_layers)),
        conv_bias=bool(get("conv_bias", False)),
        conv_norm="group" if get("extractor_mode", "default") == "default" else "layer",
        feature_grad_scale=_float(get("feature_grad_mult", 1.0)),
        pos_conv_kernel=_int(get("conv_pos", 128)),
        pos_conv_groups=_int(get("conv_pos_groups", 16)),
        dropout_p=_float(get("dropout", 0.1)),
        attn_dropout_p=_float(get("attention_dropout", 0.1)),
        ffn_inner_dropout_p=_float(get("activation_dropout", 0.0)),
        input_dropout_p=_float(get("dropout_input", 0.0)),
        layer_drop_p=_float(get("encoder_layerdrop", 0.0)),
        final_dim=_int(get("final_dim", 0)),
        logit_temp=_float(get("logit_temp", 0.1)),
        tie_final_proj=not get("untie_final_proj", False),
        heads=heads,
        normalize_audio=bool(task_cfg.get("normalize", False)),
        sample_rate=_int(task_cfg.get("sample_rate") or 16_000),
    )


def parse_conv_layers(text: str) -> list[tuple[int, int, int]]:
    """Parse fairseq's expression, such as ``[(512,10,5)] + [(512,3,2)] * 4``, without evaluating it.

    :raises CheckpointError: The text has another form.
    """
    term = r"\[\s*((?:\(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\)\s*,?\s*)+)\]\s*(?:\*\s*(\d+))?"

    if not re.fullmatch(rf"\s*{term}(?:\s*\+\s*{term})*\s*", text):
        raise CheckpointError(f"`conv_feature_layers` must be a sum of lists of triples, but is {text!r} instead.")

    layers: list[tuple[int, int, int]] = []

    for items, times in re.findall(term, text):
        descs = [(int(a), int(b), int(c)) for a, b, c in re.findall(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)", items)]

        layers += descs * (int(times) if times else 1)

    return layers


def _import_heads(state_dict: Mapping[str, Tensor], config: HubertConfig, num_special: int) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}

    codewords = state_dict["label_embs_concat"]

    sizes = [h.size + num_special for h in config.heads]

    if codewords.size(0) != sum(sizes):
        raise CheckpointError(
            f"`label_embs_concat` must have {sum(sizes)} rows ({len(sizes)} label sets, each with its special symbols "
            f"first), but has {codewords.size(0)} instead."
        )

    for idx, rows in enumerate(codewords.split(sizes)):
        result[f"target_heads.heads.{idx}.codewords"] = rows[num_special:].clone()

    for name in ("weight", "bias"):
        value = state_dict[f"final_proj.{name}"]

        if config.tie_final_proj:
            result[f"target_heads.shared_proj.{name}"] = value
        else:
            for idx, part in enumerate(value.chunk(len(sizes))):
                result[f"target_heads.heads.{idx}.proj.{name}"] = part.clone()

    return result


def _rename(key: str, table: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        new_key, count = re.subn(pattern, replacement, key)

        if count:
            return new_key

    raise CheckpointError(f"The key '{key}' is not one of a HuBERT pretraining checkpoint.")


def _int(value: object) -> int:
    return int(str(value))


def _float(value: object) -> float:
    return float(str(value))
