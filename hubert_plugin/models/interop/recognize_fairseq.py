"""Recognises fairseq's checkpoints, pretrained and fine-tuned, and s3prl's conversions of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.interop.checkpoint import Checkpoint, Recognised
from hubert_plugin.models.interop.fairseq import (
    NUM_SPECIAL_SYMBOLS,
    get_special_rows,
    import_fairseq_config,
    import_fairseq_ctc_config,
    import_fairseq_state_dict,
    infer_num_symbols,
    is_fairseq_ctc_state_dict,
    is_fairseq_state_dict,
)
from hubert_plugin.models.interop.keys import take_prefix
from hubert_plugin.models.interop.own import import_own_config
from hubert_plugin.models.interop.pickles import to_plain
from hubert_plugin.models.interop.s3prl import import_s3prl_config


def recognize_s3prl(checkpoint: Checkpoint) -> Recognised:
    """Return what a file of s3prl's converter holds."""
    content = cast(dict[str, Any], to_plain(dict(checkpoint.content)))

    weights = content["model_weight"]

    if not is_fairseq_state_dict(weights):
        raise CheckpointError(
            f"'{checkpoint.path}' has the entries of an s3prl checkpoint, but its 'model_weight' holds no HuBERT: the "
            "keys 'encoder.pos_conv.0.…' and 'feature_extractor.conv_layers.…' were looked for."
        )

    config = import_s3prl_config(content)

    return _from_fairseq(checkpoint, "s3prl", weights, config)


def recognize_fairseq(checkpoint: Checkpoint, state_dict: dict[str, Tensor], hint: HubertConfig | None) -> Recognised:
    """Return what a fairseq checkpoint holds; the shapes of ``state_dict`` tell where it has no configuration."""
    content = checkpoint.content

    cfg = _plain_mapping(content.get("cfg"))
    args = _plain_mapping(content.get("args"))

    task_state = _plain_mapping(content.get("task_state")) or {}

    # The older layout is one flat namespace.
    model_cfg, task_cfg = (cfg.get("model") or {}, cfg.get("task") or {}) if cfg else (args or {}, args or {})

    if is_fairseq_ctc_state_dict(state_dict):
        return _recognize_fairseq_ctc(checkpoint, state_dict, model_cfg, task_cfg, task_state, hint)

    if not model_cfg:
        config = _infer_fairseq(state_dict, hint)
    else:
        dictionaries = [_symbols(d) for d in task_state.get("dictionaries") or []]

        if "final_proj.weight" not in state_dict:
            sizes = []
        elif dictionaries:
            sizes = [len(symbols) for symbols in dictionaries]
        else:
            sizes = infer_num_symbols(state_dict, int(model_cfg.get("final_dim") or 0))

        config = import_fairseq_config(model_cfg, task_cfg, sizes)

    format_ = "fairseq" if cfg or not args else "fairseq (older layout)"

    return _from_fairseq(checkpoint, format_, state_dict, config, states_normalization=bool(model_cfg))


def _from_fairseq(
    checkpoint: Checkpoint,
    format_: str,
    state_dict: Mapping[str, Tensor],
    config: HubertConfig,
    *,
    states_normalization: bool = True,
) -> Recognised:
    notes = []

    left_out = sorted({k.partition(".")[0] for k in state_dict if k.startswith(("final_proj", "label_embs"))})

    if left_out and not config.heads:
        notes.append(f"The parameters {', '.join(left_out)} were left out: nothing says which label sets they are for.")

    return Recognised(
        checkpoint.path,
        format_,
        config,
        import_fairseq_state_dict(state_dict, config),
        special_rows=get_special_rows(state_dict, config) if config.heads else None,
        states_normalization=states_normalization,
        notes=notes,
    )


def _recognize_fairseq_ctc(
    checkpoint: Checkpoint,
    state_dict: Mapping[str, Tensor],
    model_cfg: Mapping[str, Any],
    task_cfg: Mapping[str, Any],
    task_state: Mapping[str, Any],
    hint: HubertConfig | None,
) -> Recognised:
    nested = model_cfg.get("w2v_args")

    if isinstance(nested, Mapping):
        # Nested likewise in the newer layout, flat in the older.
        pretrain = nested.get("model") if isinstance(nested.get("model"), Mapping) else nested
        pretrain_task = nested.get("task") if isinstance(nested.get("task"), Mapping) else nested

        encoder = import_fairseq_config(cast(Any, pretrain), cast(Any, pretrain_task), [])
    else:
        encoder = _infer_fairseq(take_prefix(state_dict, "w2v_encoder.w2v_model."), hint)

    vocab_size = state_dict["w2v_encoder.proj.weight"].size(0)

    symbols = _symbols(task_state.get("target_dictionary"))

    config = import_fairseq_ctc_config(encoder, model_cfg, task_cfg, symbols)

    config.vocab_size = vocab_size

    if len(config.symbols) != vocab_size or config.symbols == placeholder_symbols(vocab_size):
        config.symbols = []

    unused = sorted(take_prefix(state_dict, "w2v_encoder.w2v_model.").keys() & {"label_embs_concat", "label_embs"})

    return Recognised(
        checkpoint.path,
        "fairseq",
        config,
        import_fairseq_state_dict(state_dict, config),
        notes=[f"The parameter {key}, which recognition does not use, was left out." for key in unused],
        states_normalization="normalize" in task_cfg or "normalize" in model_cfg,
    )


def placeholder_symbols(size: int) -> list[str]:
    """Return what our export puts for symbols that are not known: fairseq asks for a dictionary's length and gets it.
    They say nothing of the outputs, and must not be written as text when the file is read back."""
    return [f"symbol{i}" for i in range(size)]


def _infer_fairseq(state_dict: Mapping[str, Tensor], hint: HubertConfig | None) -> HubertConfig:
    """Return the configuration of a checkpoint that has none: the shapes say most of it."""
    layer_norm = "feature_extractor.conv_layers.1.2.1.weight" in state_dict

    if hint is not None:
        norm_order = hint.norm_order
    else:
        norm_order = "pre" if layer_norm else "post"

    bare = HubertConfig(norm_order=norm_order)

    config = import_own_config(import_fairseq_state_dict(state_dict, bare), hint=hint)

    assert isinstance(config, HubertConfig)

    config.always_project_features = False

    if sizes := infer_num_symbols(state_dict, 0 if "final_proj.weight" not in state_dict else _final_dim(state_dict)):
        config.heads = [HubertHeadConfig(size=sizes[0] - NUM_SPECIAL_SYMBOLS)]
        config.final_dim = _final_dim(state_dict)
        config.tie_final_proj = False

    return config


def _final_dim(state_dict: Mapping[str, Tensor]) -> int:
    rows = state_dict.get("label_embs_concat", state_dict.get("label_embs"))

    return 0 if rows is None else rows.size(1)


def _plain_mapping(value: object) -> dict[str, Any] | None:
    plain = to_plain(value)

    return cast(dict[str, Any], plain) if isinstance(plain, dict) else None


def _symbols(dictionary: Any) -> list[str]:
    """Return the symbols of a dictionary: fairseq's object, or the plain list that our export writes in its place."""
    if isinstance(dictionary, Mapping):
        dictionary = dictionary.get("symbols")

    return list(dictionary or [])
