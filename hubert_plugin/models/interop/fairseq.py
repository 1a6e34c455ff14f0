"""fairseq's HuBERT checkpoints, pretraining and CTC-fine-tuned: the key table in both directions, and configurations.

Key names: FACTS 5.1. fairseq's label sets begin with the four special symbols ``<s> <pad> </s> <unk>``: unit *u* is row
*u* + 4 of ``label_embs_concat`` (trap T1). Importing drops the four rows of each set; exporting needs values for them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from hubert_plugin.errors import CheckpointError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import (
    AnyConfig,
    KeyTable,
    encoder_config,
    has_prefix,
    join_recogniser,
    require,
    split_recogniser,
    take_output_layer,
    take_prefix,
    with_old_weight_norm,
)

NUM_SPECIAL_SYMBOLS: Final = 4
"""The rows of ``label_embs_concat`` that come before the units of each label set."""

_NAME: Final = "a fairseq HuBERT"

_CTC_ENCODER: Final = "w2v_encoder.w2v_model."

_CTC_PROJ: Final = "w2v_encoder.proj."

_HEAD_KEYS: Final = ("final_proj.", "label_embs", "final_proj_list.")

_FRONTEND: Final = "encoder_frontend"

_LAYER: Final = "encoder.layers.{i}"


def fairseq_key_table(config: HubertConfig) -> KeyTable:
    """Return what the parameters of an encoder are called there and here."""
    # The encoder's norm is at the input of post-norm models and at the output of pre-norm ones (trap T24).
    layer_norm = f"{_FRONTEND}.layer_norm.*" if config.norm_order == "post" else "encoder.layer_norm.*"

    return KeyTable(
        _NAME,
        [
            ("mask_emb", "masker.temporal_mask_embed"),
            ("feature_extractor.conv_layers.{i}.0.*", f"{_FRONTEND}.feature_extractor.layers.{{i}}.conv.*"),
            ("feature_extractor.conv_layers.0.2.*", f"{_FRONTEND}.feature_extractor.layers.0.group_norm.*"),
            ("feature_extractor.conv_layers.{i}.2.1.*", f"{_FRONTEND}.feature_extractor.layers.{{i}}.layer_norm.*"),
            ("layer_norm.*", f"{_FRONTEND}.post_extract_layer_norm.*"),
            ("post_extract_proj.*", f"{_FRONTEND}.model_dim_proj.*"),
            ("encoder.pos_conv.0.*", f"{_FRONTEND}.pos_encoder.conv.*"),
            ("encoder.layer_norm.*", layer_norm),
            *((f"{_LAYER}.self_attn.{p}_proj.*", f"{_LAYER}.self_attn.{p}_proj.*") for p in "qkv"),
            (f"{_LAYER}.self_attn.out_proj.*", f"{_LAYER}.self_attn.output_proj.*"),
            (f"{_LAYER}.self_attn_layer_norm.*", f"{_LAYER}.self_attn_layer_norm.*"),
            (f"{_LAYER}.fc1.*", f"{_LAYER}.ffn.inner_proj.*"),
            (f"{_LAYER}.fc2.*", f"{_LAYER}.ffn.output_proj.*"),
            (f"{_LAYER}.final_layer_norm.*", f"{_LAYER}.ffn_layer_norm.*"),
        ],
    )


def is_fairseq_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of a fairseq HuBERT, pretrained or fine-tuned."""
    return any(
        has_prefix(state_dict, f"{p}encoder.pos_conv.0.")
        and has_prefix(state_dict, f"{p}feature_extractor.conv_layers.")
        for p in ("", _CTC_ENCODER)
    )


def is_fairseq_ctc_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of a fairseq HuBERT fine-tuned with CTC."""
    return is_fairseq_state_dict(state_dict) and f"{_CTC_PROJ}weight" in state_dict


def import_fairseq_state_dict(
    state_dict: Mapping[str, Tensor], config: AnyConfig, *, keep_special_rows: bool = False
) -> dict[str, Tensor]:
    """Return fairseq's parameters under this package's names, the special rows dropped.

    :param config: With a :class:`HubertConfig`, a fine-tuned checkpoint gives its encoder.
    :param keep_special_rows: If true, the four rows stay, ``config.heads`` counts them, and unit *u* is class *u* + 4:
        the softmax then has fairseq's never-positive negatives and its loss, to the last digit.
    :raises CheckpointError: A key is not known, or the label embeddings do not have the rows that ``config`` implies.
    """
    encoder = encoder_config(config)

    inner = _inner(state_dict)

    parts = with_old_weight_norm({k: v for k, v in inner.items() if not k.startswith(_HEAD_KEYS)})

    result = fairseq_key_table(encoder).import_(parts)

    if isinstance(config, HubertCtcConfig):
        return join_recogniser(result, take_output_layer(state_dict, _CTC_PROJ, _NAME))

    if config.heads:
        result.update(_import_heads(inner, config, 0 if keep_special_rows else NUM_SPECIAL_SYMBOLS))

    return result


def get_special_rows(state_dict: Mapping[str, Tensor], config: HubertConfig) -> Tensor:
    """Return the rows of the special symbols of each label set, which an import drops and an export takes back.

    :returns: *Shape:* (4 * heads, d).
    """
    rows = _label_embeddings(state_dict)

    parts = rows.split([h.size + NUM_SPECIAL_SYMBOLS for h in config.heads])

    return torch.cat([p[:NUM_SPECIAL_SYMBOLS] for p in parts])


def export_fairseq_state_dict(
    state_dict: Mapping[str, Tensor], config: AnyConfig, special_rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Return parameters under fairseq's names; the inverse of :func:`import_fairseq_state_dict`.

    :param special_rows: The rows of the special symbols of each label set. *Shape:* (4 * heads, d). ``None``: zeros.
    """
    if isinstance(config, HubertCtcConfig):
        encoder, proj = split_recogniser(state_dict)

        inner = fairseq_key_table(config.encoder).export(encoder)

        return {
            **{_CTC_ENCODER + k: v for k, v in inner.items()},
            **{_CTC_PROJ + k: v for k, v in proj.items()},
        }

    parts = {k: v for k, v in state_dict.items() if not k.startswith("target_heads.")}

    result = fairseq_key_table(config).export(parts)

    if not config.heads:
        return result

    codewords: list[Tensor] = []

    for idx in range(len(config.heads)):
        rows = require(state_dict, f"target_heads.heads.{idx}.codewords", "the model")

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
            projs = [state_dict[f"target_heads.heads.{i}.proj.{name}"] for i in range(len(config.heads))]

            result[f"final_proj.{name}"] = torch.cat(projs)

    return result


def import_fairseq_config(
    model_cfg: Mapping[str, object], task_cfg: Mapping[str, object], num_symbols: Sequence[int]
) -> HubertConfig:
    """Return the configuration that fairseq's ``cfg.model`` and ``cfg.task`` describe.

    Of the older layout, the flat ``args`` is both.

    :param num_symbols: The sizes of the dictionaries, special symbols included; none for a model without heads.
    :raises CheckpointError: The model has parts that HuBERT does not have, or expects another sample rate.
    """
    _check(model_cfg, task_cfg)

    def get(name: str, default: object) -> object:
        value = model_cfg.get(name, default)

        return default if value is None else value

    conv_layers = get("conv_feature_layers", "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")

    label_rate = float(str(task_cfg.get("label_rate") or model_cfg.get("label_rate") or 50))

    heads = [
        HubertHeadConfig(label_set=name, size=n - NUM_SPECIAL_SYMBOLS, rate=int(label_rate) if label_rate > 0 else 50)
        for name, n in zip(_label_names(task_cfg.get("labels"), len(num_symbols)), num_symbols, strict=True)
    ]

    return HubertConfig(
        model_dim=_int(get("encoder_embed_dim", 768)),
        num_layers=_int(get("encoder_layers", 12)),
        num_heads=_int(get("encoder_attention_heads", 12)),
        ffn_dim=_int(get("encoder_ffn_embed_dim", 3072)),
        norm_order="pre" if get("layer_norm_first", False) else "post",
        conv_layers=parse_conv_layers(str(conv_layers)),
        conv_bias=bool(get("conv_bias", False)),
        conv_norm="group" if _name(get("extractor_mode", "default")) == "default" else "layer",
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


def import_fairseq_ctc_config(
    encoder: HubertConfig, model_cfg: Mapping[str, object], task_cfg: Mapping[str, object], symbols: Sequence[str]
) -> HubertCtcConfig:
    """Return the configuration of a fine-tuned model (FACTS 1.5): the blank is ``<s>``, index 0.

    :param encoder: The configuration of the pretrained encoder (``w2v_args``), or what its shapes say.
    :param model_cfg: ``cfg.model`` of fine-tuning.
    :param task_cfg: ``cfg.task`` of fine-tuning.
    :param symbols: The target dictionary, special symbols included.
    """
    encoder.heads = []

    names = {
        "dropout_p": "dropout",
        "attn_dropout_p": "attention_dropout",
        "ffn_inner_dropout_p": "activation_dropout",
        "input_dropout_p": "dropout_input",
        "layer_drop_p": "layerdrop",
        "feature_grad_scale": "feature_grad_mult",
    }

    for ours, theirs in names.items():
        if (value := model_cfg.get(theirs)) is not None:
            setattr(encoder, ours, _float(value))

    for cfg in (task_cfg, model_cfg):
        if (normalize := cfg.get("normalize")) is not None:
            encoder.normalize_audio = bool(normalize)

            break

    return HubertCtcConfig(
        encoder=encoder,
        vocab_size=len(symbols),
        symbols=list(symbols),
        final_dropout_p=_float(model_cfg.get("final_dropout") or 0.0),
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


def infer_num_symbols(state_dict: Mapping[str, Tensor], final_dim: int) -> list[int]:
    """Return the dictionary sizes of a checkpoint without dictionaries: those of one label set, or none.

    :param final_dim: The dimension of the codewords.
    """
    if "label_embs_concat" not in state_dict and "label_embs" not in state_dict:
        return []

    proj = state_dict.get("final_proj.weight")

    if proj is None or proj.size(0) != (final_dim or proj.size(1)):
        return []  # several label sets, whose sizes nothing tells

    return [_label_embeddings(state_dict).size(0)]


def _import_heads(state_dict: Mapping[str, Tensor], config: HubertConfig, num_special: int) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}

    codewords = _label_embeddings(state_dict)

    sizes = [h.size + num_special for h in config.heads]

    if codewords.size(0) != sum(sizes):
        raise CheckpointError(
            f"`label_embs_concat` must have {sum(sizes)} rows ({len(sizes)} label sets, each with its special symbols "
            f"first), but has {codewords.size(0)} instead."
        )

    for idx, rows in enumerate(codewords.split(sizes)):
        result[f"target_heads.heads.{idx}.codewords"] = rows[num_special:].clone()

    for name in ("weight", "bias"):
        value = require(state_dict, f"final_proj.{name}", _NAME)

        if config.tie_final_proj:
            result[f"target_heads.shared_proj.{name}"] = value
        else:
            for idx, part in enumerate(value.chunk(len(sizes))):
                result[f"target_heads.heads.{idx}.proj.{name}"] = part.clone()

    return result


def _label_embeddings(state_dict: Mapping[str, Tensor]) -> Tensor:
    # The name before fairseq had several label sets (its `update_ckpt.py`).
    if "label_embs" in state_dict:
        return state_dict["label_embs"]

    return require(state_dict, "label_embs_concat", _NAME)


def _inner(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the parameters of the pretrained part."""
    return take_prefix(state_dict, _CTC_ENCODER) or state_dict


def _check(model_cfg: Mapping[str, object], task_cfg: Mapping[str, object]) -> None:
    expected: dict[str, tuple[str, ...]] = {
        "activation_fn": ("gelu",),
        "layer_type": ("transformer",),
        "pos_enc_type": ("abs", ""),
        "extractor_mode": ("default", "layer_norm"),
        "target_glu": ("False",),
        "conv_pos_batch_norm": ("False",),
    }

    problems = [
        f"`{name}` must be {values[0]}, but is {_name(model_cfg[name])}"
        for name, values in expected.items()
        if model_cfg.get(name) is not None and _name(model_cfg[name]) not in values
    ]

    if (rate := _int(task_cfg.get("sample_rate") or 16_000)) != 16_000:
        problems.append(f"`sample_rate` must be 16000, but is {rate}")

    if problems:
        raise CheckpointError(format_problems("This fairseq configuration is not one of a HuBERT here:", problems))


def _label_names(labels: object, count: int) -> list[str]:
    if isinstance(labels, str):
        try:
            labels = ast.literal_eval(labels)
        except (ValueError, SyntaxError):
            labels = [labels]

    names = [str(v) for v in labels] if isinstance(labels, (list, tuple)) else []

    return names if len(names) == count else [f"label{i}" for i in range(count)]


def _name(value: object) -> str:
    """Return the value of an enumeration, or the text of a plain value."""
    return str(getattr(value, "value", value))


def _int(value: object) -> int:
    return int(str(value))


def _float(value: object) -> float:
    return float(str(value))
