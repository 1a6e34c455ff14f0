"""s3prl's converted checkpoints: fairseq's parameters with plain configurations and dictionaries (FACTS 5.1).

The keys are ``task_cfg``, ``model_cfg``, ``model_weight`` and ``dictionaries_symbols``. MS-HuBERT was released in this
form; its additional projections for training on several layers are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.interop.fairseq import (
    NUM_SPECIAL_SYMBOLS,
    export_fairseq_state_dict,
    import_fairseq_config,
    import_fairseq_state_dict,
    infer_num_symbols,
    is_fairseq_state_dict,
)

_ENTRIES: Final = ("task_cfg", "model_cfg", "model_weight")

_SPECIAL_SYMBOLS: Final = ("<s>", "<pad>", "</s>", "<unk>")


def is_s3prl_checkpoint(content: Mapping[str, object]) -> bool:
    """Return whether the entries of a file are those of s3prl's converter."""
    return all(isinstance(content.get(name), Mapping) for name in _ENTRIES)


def is_s3prl_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of s3prl's HuBERT, which are fairseq's."""
    return is_fairseq_state_dict(state_dict)


def import_s3prl_state_dict(state_dict: Mapping[str, Tensor], config: HubertConfig) -> dict[str, Tensor]:
    """Return ``model_weight`` under this package's names, the special rows dropped (trap T1)."""
    return import_fairseq_state_dict(state_dict, config)


def export_s3prl_state_dict(
    state_dict: Mapping[str, Tensor], config: HubertConfig, special_rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Return parameters as ``model_weight``; the inverse of :func:`import_s3prl_state_dict`."""
    return export_fairseq_state_dict(state_dict, config, special_rows)


def import_s3prl_config(content: Mapping[str, Any]) -> HubertConfig:
    """Return the configuration that the entries of a converted file describe.

    :raises CheckpointError: The model has parts that HuBERT does not have.
    """
    state_dict, model_cfg = content["model_weight"], content["model_cfg"]

    dictionaries: Sequence[Sequence[str]] = content.get("dictionaries_symbols") or ()

    if any(k.startswith("final_proj_list.") for k in state_dict) or "final_proj.weight" not in state_dict:
        num_symbols = []
    elif dictionaries:
        num_symbols = [len(symbols) for symbols in dictionaries]
    else:
        num_symbols = infer_num_symbols(state_dict, int(model_cfg.get("final_dim") or 0))

    return import_fairseq_config(model_cfg, content["task_cfg"], num_symbols)


def export_s3prl_checkpoint(
    state_dict: Mapping[str, Tensor], config: HubertConfig, special_rows: Tensor | None = None
) -> dict[str, Any]:
    """Return the entries of a converted file, plain data and tensors only.

    :raises CheckpointError: The model has heads that fairseq does not have.
    """
    if any(h.kind != "cosine" or h.layer not in (None, config.num_layers) for h in config.heads):
        raise CheckpointError("fairseq's heads score cosines of the last layer; leave other heads out.")

    model_cfg = {
        "extractor_mode": "default" if config.conv_norm == "group" else "layer_norm",
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.model_dim,
        "encoder_ffn_embed_dim": config.ffn_dim,
        "encoder_attention_heads": config.num_heads,
        "activation_fn": "gelu",
        "dropout": config.dropout_p,
        "attention_dropout": config.attn_dropout_p,
        "activation_dropout": config.ffn_inner_dropout_p,
        "dropout_input": config.input_dropout_p,
        "encoder_layerdrop": config.layer_drop_p,
        "final_dim": config.final_dim,
        "untie_final_proj": not config.tie_final_proj,
        "layer_norm_first": config.norm_order == "pre",
        "conv_feature_layers": str([tuple(desc) for desc in config.conv_layers]),
        "conv_bias": config.conv_bias,
        "logit_temp": config.logit_temp,
        "feature_grad_mult": config.feature_grad_scale,
        "conv_pos": config.pos_conv_kernel,
        "conv_pos_groups": config.pos_conv_groups,
    }

    label_rate = float(config.heads[0].rate) if config.heads else 50.0

    return {
        "task_cfg": {
            "labels": [h.label_set for h in config.heads],
            "label_rate": label_rate,
            "sample_rate": config.sample_rate,
            "normalize": config.normalize_audio,
        },
        "model_cfg": {**model_cfg, "label_rate": label_rate},
        "model_weight": export_s3prl_state_dict(state_dict, config, special_rows),
        "dictionaries_symbols": [[*_SPECIAL_SYMBOLS, *map(str, range(h.size))] for h in config.heads],
    }


assert len(_SPECIAL_SYMBOLS) == NUM_SPECIAL_SYMBOLS
