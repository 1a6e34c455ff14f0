"""Export to fairseq: a ``.pt`` file that ``fairseq.checkpoint_utils.load_model_ensemble_and_task`` loads.

It holds tensors and plain data only, so ``torch.load(weights_only=True)`` reads it, too. In place of fairseq's
``Dictionary`` objects stand plain lists of their symbols: to build a model, fairseq asks a dictionary for its length
and nothing else. To *go on training* in fairseq, its own objects are needed: the ``dict.<label set>.txt`` beside the
file are for that (``task.label_dir``, and the checkpoint as ``checkpoint.finetune_from_model``).

fairseq's label sets begin with four special symbols that this package does not have (trap T1). Where the model came
from a fairseq file, their rows are taken from it again; else they are drawn as fairseq starts them, U[0, 1), from a
fixed seed. They are never predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch import Generator, Tensor

from hubert_plugin.errors import CheckpointError, HubertError, OutputDirError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.export.parity import AnyModel, Outputs, Probe, has_logits, model_input, our_outputs
from hubert_plugin.models.export.source import load_source
from hubert_plugin.models.export.targets import check_file, save_torch
from hubert_plugin.models.hubert.config import HubertConfig, resolve_head_layers
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.fairseq import (
    NUM_SPECIAL_SYMBOLS,
    export_fairseq_state_dict,
)
from hubert_plugin.models.interop.keys import AnyConfig
from hubert_plugin.models.interop.reader import read_checkpoint
from hubert_plugin.models.interop.recognize_fairseq import placeholder_symbols

SPECIAL_SYMBOLS: Final = ("<s>", "<pad>", "</s>", "<unk>")
"""What every dictionary of fairseq begins with."""


def save_fairseq(
    state_dict: Mapping[str, Tensor],
    config: AnyConfig,
    path: Path,
    *,
    overwrite: bool,
    special_rows: Tensor | None = None,
) -> None:
    """Write the checkpoint to ``path``, and the dictionaries beside it.

    :param special_rows: The rows of the special symbols of each label set. *Shape:* (4 * heads, d).
    :raises CheckpointError: fairseq has no such model.
    :raises OutputDirError: There is something at ``path``, or in a dictionary's place, that must not be replaced.
    """
    check_file(path, overwrite=overwrite)

    texts = _dictionary_texts(config, path.parent)

    for file, text in texts.items():
        # Exports of models with the same label sets may lie side by side.
        if not (file.is_file() and file.read_bytes() == text.encode()):
            _check_dictionary(file, overwrite=overwrite)

    content = fairseq_checkpoint(state_dict, config, special_rows)

    stale = _earlier_dictionaries(path) - texts.keys()

    for file, text in texts.items():
        write_text_atomic(file, text)

    save_torch(content, path, overwrite=overwrite)

    for file in stale:
        file.unlink(missing_ok=True)


def _earlier_dictionaries(path: Path) -> set[Path]:
    """Return the dictionaries that an earlier export to ``path`` wrote beside it: they must not be taken for those of
    the model that takes its place. A dictionary of other contents is somebody else's."""
    if not path.is_file():
        return set()

    try:
        content = read_checkpoint(path)

        labels, state = content["cfg"]["task"]["labels"], content["task_state"]

        dictionaries = [state["target_dictionary"]] if "target_dictionary" in state else state["dictionaries"]

        texts = {
            path.with_name(f"dict.{k}.txt"): _dictionary_text(v) for k, v in zip(labels, dictionaries, strict=True)
        }

        return {file for file, text in texts.items() if file.is_file() and file.read_bytes() == text.encode()}
    except (HubertError, KeyError, TypeError, ValueError):  # not of ours: of another program, or damaged
        return set()


def _check_dictionary(file: Path, *, overwrite: bool) -> None:
    if file.exists() and not overwrite:
        raise OutputDirError(
            f"'{file}', which would be written beside the checkpoint, exists already and lists other units: those of "
            "another export. Export to a folder of its own (or say `overwrite`)."
        )


def fairseq_notes(config: AnyConfig) -> list[str]:
    """Return what fairseq's files have no place for, a sentence each."""
    if not isinstance(config, HubertCtcConfig) or _has_special_symbols(config):
        return []

    if not config.symbols:
        return [
            "No dict.ltr.txt is written: the model does not say what its outputs stand for. Placeholders stand in the "
            "file's dictionary, so that fairseq finds its length."
        ]

    return [
        f"No dict.ltr.txt is written: fairseq puts its four special symbols ({' '.join(SPECIAL_SYMBOLS)}) before those "
        "of such a file, but the model's symbols do not begin with them."
    ]


def fairseq_checkpoint(
    state_dict: Mapping[str, Tensor], config: AnyConfig, special_rows: Tensor | None = None
) -> dict[str, Any]:
    """Return the contents of the checkpoint: what fairseq's trainer writes (``trainer.py:401-441``), without the
    optimiser."""
    dictionaries = list(_dictionaries(config).values())

    if isinstance(config, HubertCtcConfig):
        if config.blank != 0:
            raise CheckpointError(
                f"fairseq takes output 0 of a recogniser for the blank, but the model's blank is output {config.blank}."
                " Export to another format, or reorder the outputs so that the blank is the first."
            )

        tensors = export_fairseq_state_dict(state_dict, config)

        cfg = {"model": ctc_model_cfg(config), "task": _task_cfg(config.encoder, ["ltr"], -1.0, fine_tuning=True)}

        # fairseq builds the pretraining model first; one unknown dictionary makes it without label embeddings.
        task_state = {"target_dictionary": dictionaries[0], "dictionaries": [None]}
    else:
        check_heads(config)

        if config.heads and special_rows is None:
            special_rows = fresh_special_rows(config, state_dict["target_heads.heads.0.codewords"].dtype)

        tensors = export_fairseq_state_dict(state_dict, config, special_rows)

        if not config.heads:
            tensors |= _no_heads(config, state_dict)

        labels = [h.label_set for h in config.heads]

        cfg = {"model": model_cfg(config), "task": _task_cfg(config, labels, _label_rate(config), fine_tuning=False)}

        task_state = {"dictionaries": dictionaries}

    history = {"criterion_name": "none", "optimizer_name": "none", "lr_scheduler_state": {}, "num_updates": 0}

    return {
        "args": None,
        "cfg": cfg,
        "model": {k: v.contiguous() for k, v in tensors.items()},
        "criterion": None,
        "optimizer_history": [history],
        "task_state": task_state,
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def model_cfg(config: HubertConfig) -> dict[str, Any]:
    """Return ``cfg.model`` of a pretraining checkpoint. What only training reads has the paper's values (FACTS 1.1)."""
    conv_layers = " + ".join(f"[({d},{k},{s})]" for d, k, s in config.conv_layers)

    return {
        "_name": "hubert",
        "label_rate": _label_rate(config),
        "extractor_mode": "default" if config.conv_norm == "group" else "layer_norm",
        "encoder_layers": config.num_layers,
        "encoder_embed_dim": config.model_dim,
        "encoder_ffn_embed_dim": config.ffn_dim,
        "encoder_attention_heads": config.num_heads,
        "activation_fn": "gelu",
        "layer_type": "transformer",
        "dropout": config.dropout_p,
        "attention_dropout": config.attn_dropout_p,
        "activation_dropout": config.ffn_inner_dropout_p,
        "encoder_layerdrop": config.layer_drop_p,
        "dropout_input": config.input_dropout_p,
        "dropout_features": 0.0,
        "final_dim": config.final_dim,
        # Without label sets there is no projection either, which only the untied kind can say.
        "untie_final_proj": not config.tie_final_proj or not config.heads,
        "layer_norm_first": config.norm_order == "pre",
        "conv_feature_layers": conv_layers,
        "conv_bias": config.conv_bias,
        "logit_temp": config.logit_temp,
        "target_glu": False,
        "feature_grad_mult": config.feature_grad_scale,
        "mask_length": 10,
        "mask_prob": 0.8,
        "mask_selection": "static",
        "mask_other": 0.0,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_length": 10,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "conv_pos": config.pos_conv_kernel,
        "conv_pos_groups": config.pos_conv_groups,
        "conv_pos_batch_norm": False,
        "latent_temp": [2.0, 0.5, 0.999995],
        "skip_masked": False,
        "skip_nomask": False,
        "checkpoint_activations": False,
        "required_seq_len_multiple": 2,
        "depthwise_conv_kernel_size": 31,
        "attn_type": "",
        "pos_enc_type": "abs",
        "fp16": False,
    }


def ctc_model_cfg(config: HubertCtcConfig) -> dict[str, Any]:
    """Return ``cfg.model`` of a fine-tuned checkpoint. It carries the encoder's in ``w2v_args``, so that no other file
    is needed. What only training reads has the values of fairseq's ``base_10h.yaml`` (FACTS 1.5)."""
    encoder = config.encoder

    return {
        "_name": "hubert_ctc",
        "w2v_path": "",
        "w2v_args": {
            "model": model_cfg(encoder),
            "task": _task_cfg(encoder, [], _label_rate(encoder), fine_tuning=False),
        },
        "no_pretrained_weights": False,
        "dropout_input": encoder.input_dropout_p,
        "final_dropout": config.final_dropout_p,
        "dropout": encoder.dropout_p,
        "attention_dropout": encoder.attn_dropout_p,
        "activation_dropout": encoder.ffn_inner_dropout_p,
        "encoder_embed_dim": encoder.model_dim,
        "apply_mask": True,
        "mask_length": 10,
        "mask_prob": 0.75,
        "mask_selection": "static",
        "mask_other": 0.0,
        "no_mask_overlap": False,
        "mask_channel_length": 64,
        "mask_channel_prob": 0.5,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "no_mask_channel_overlap": False,
        "freeze_finetune_updates": 10_000,
        "feature_grad_mult": encoder.feature_grad_scale,
        "layerdrop": encoder.layer_drop_p,
        "normalize": encoder.normalize_audio,
        "data": "",
        "autoregressive": False,  # fairseq's main reads it, though its dataclass lacks it
    }


def _task_cfg(config: HubertConfig, labels: list[str], label_rate: float, *, fine_tuning: bool) -> dict[str, Any]:
    return {
        "_name": "hubert_pretraining",
        "data": "",
        "fine_tuning": fine_tuning,
        "labels": labels,
        "label_dir": None,
        "label_rate": label_rate,
        "sample_rate": config.sample_rate,
        "normalize": config.normalize_audio,
        "enable_padding": False,
        "max_keep_size": None,
        "max_sample_size": 250_000,
        "min_sample_size": 32_000,
        "single_target": fine_tuning,
        # A recogniser must see whole utterances (trap T21).
        "random_crop": not fine_tuning,
        "pad_audio": fine_tuning,
    }


def _dictionaries(config: AnyConfig) -> dict[str, list[str]]:
    """Return the symbols of each label set, the special ones included."""
    if isinstance(config, HubertCtcConfig):
        return {"ltr": list(config.symbols) or placeholder_symbols(config.vocab_size)}

    return {h.label_set: [*SPECIAL_SYMBOLS, *map(str, range(h.size))] for h in config.heads}


def _dictionary_texts(config: AnyConfig, folder: Path) -> dict[Path, str]:
    """Return the contents of the dictionaries' files. fairseq adds the special symbols itself when it reads them; the
    number after a symbol is a count that nothing reads."""
    if isinstance(config, HubertCtcConfig) and not _has_special_symbols(config):
        return {}

    return {folder / f"dict.{name}.txt": _dictionary_text(symbols) for name, symbols in _dictionaries(config).items()}


def _dictionary_text(symbols: Sequence[str]) -> str:
    return "".join(f"{s} 1\n" for s in symbols[NUM_SPECIAL_SYMBOLS:])


def _has_special_symbols(config: HubertCtcConfig) -> bool:
    # In any order: Transformers' converter calls the blank `<pad>`, where fairseq's is `<s>`.
    return set(config.symbols[:NUM_SPECIAL_SYMBOLS]) == set(SPECIAL_SYMBOLS)


def _label_rate(config: HubertConfig) -> float:
    return float(config.heads[0].rate) if config.heads else 50.0


def check_heads(config: HubertConfig) -> None:
    """:raises CheckpointError: fairseq has no such heads."""
    last = config.num_layers

    misfits = [h for h in config.heads if h.kind != "cosine" or h.layer not in (None, last)]

    on_several_layers = any(layer != last for layer in resolve_head_layers(config))

    if misfits or on_several_layers or len({h.rate for h in config.heads}) > 1:
        raise CheckpointError(
            "fairseq's HuBERT predicts all label sets by cosines from the last layer, at one label rate, but the "
            f"model's heads are: {', '.join(f'{h.label_set} ({h.kind}, {h.rate} Hz)' for h in config.heads)}"
            f"{', on several layers' if on_several_layers else ''}. Export the "
            "encoder alone: `heads: false`."
        )


def _no_heads(config: HubertConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the empty projection and label embeddings of a fairseq model without label sets."""
    like = next(iter(state_dict.values()))

    return {
        "final_proj.weight": like.new_zeros(0, config.model_dim),
        "final_proj.bias": like.new_zeros(0),
        "label_embs_concat": like.new_zeros(0, config.final_dim or config.model_dim),
    }


def fresh_special_rows(config: HubertConfig, dtype: torch.dtype) -> Tensor:
    """Return rows for the special symbols, the same each time: U[0, 1) as fairseq starts them (``hubert.py:326-329``).

    Not zeros: a codeword of length zero has no direction, and the gradient of its cosine is not finite.
    """
    shape = (NUM_SPECIAL_SYMBOLS * len(config.heads), config.final_dim or config.model_dim)

    return torch.rand(shape, generator=Generator().manual_seed(0)).to(dtype)


def fairseq_outputs(path: Path, model: AnyModel, probe: Probe) -> tuple[Outputs, str]:
    """Return what fairseq computes with an exported file, where it is installed; else what this package does."""
    if find_spec("fairseq") is None:
        return our_outputs(load_source(path).model, probe), "by round trip here (fairseq is not installed)"

    from fairseq import checkpoint_utils

    (peer, *_), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)])

    peer.eval()

    waveform = model_input(model, probe)

    outputs: Outputs = {}

    with torch.inference_mode():
        if has_logits(model):
            result = peer(source=waveform, padding_mask=None)

            outputs["logits"] = result["encoder_out"].transpose(0, 1)[0]

            peer = peer.w2v_encoder.w2v_model

        for nr in range(1, len(peer.encoder.layers) + 1):
            outputs[f"layer {nr}"] = peer.extract_features(waveform, mask=False, output_layer=nr)[0][0]

        outputs["output"] = peer.extract_features(waveform, mask=False)[0][0]

    return outputs, f"loaded back with fairseq {version('fairseq')}"
