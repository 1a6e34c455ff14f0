"""Export to torchaudio: a ``.pth`` file of parameters, and beside it a ``.json`` that says which function builds the
model from which arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.export.parity import AnyModel, Outputs, Probe, has_logits, model_input
from hubert_plugin.models.export.targets import check_file, save_torch
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import AnyConfig, encoder_config
from hubert_plugin.models.interop.torchaudio import export_torchaudio_kwargs, export_torchaudio_state_dict


def save_torchaudio(state_dict: Mapping[str, Tensor], config: AnyConfig, path: Path, *, overwrite: bool) -> None:
    """Write the parameters to ``path`` and the building plan beside it.

    :raises CheckpointError: torchaudio has no such model.
    """
    plan = building_plan(config)

    tensors = export_torchaudio_state_dict(state_dict, config)

    plan_path = path.with_suffix(".json")

    check_file(plan_path, overwrite=overwrite)

    save_torch({k: v.contiguous() for k, v in tensors.items()}, path, overwrite=overwrite)

    write_text_atomic(plan_path, json.dumps(plan, indent=2) + "\n")


def building_plan(config: AnyConfig) -> dict[str, Any]:
    """Return which function of ``torchaudio.models`` builds the model, from which arguments, and what a recogniser's
    outputs stand for."""
    hubert = encoder_config(config)

    arguments = export_torchaudio_kwargs(config)

    # torchaudio takes a factor between 0 and 1 only, and `None` for gradients as they are.
    if hubert.heads and not 0.0 < hubert.feature_grad_scale < 1.0:
        arguments["feature_grad_mult"] = None

    plan: dict[str, Any] = {
        "function": "hubert_pretrain_model" if hubert.heads else "wav2vec2_model",
        "arguments": arguments,
        "sample_rate": hubert.sample_rate,
        # torchaudio's models take waveforms as they are: normalising, each by itself, is the caller's (trap T29).
        "normalize_each_waveform": hubert.normalize_audio,
        "how": (
            "plan = json.load(open(THIS)); model = getattr(torchaudio.models, plan['function'])(**plan['arguments']); "
            "model.load_state_dict(torch.load(PTH, weights_only=True)); model.eval()"
        ),
    }

    # torchaudio has no place for what the outputs stand for.
    if isinstance(config, HubertCtcConfig):
        plan |= {"symbols": list(config.symbols), "blank": config.blank}

    return plan


def torchaudio_outputs(path: Path, model: AnyModel, probe: Probe) -> tuple[Outputs, str]:
    """Return what torchaudio computes with an exported file, built as its plan says, and what to call it."""
    import torchaudio.models

    plan = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))

    peer = getattr(torchaudio.models, plan["function"])(**plan["arguments"]).eval()

    peer.load_state_dict(torch.load(path, weights_only=True))

    encoder = peer.wav2vec2 if plan["function"] == "hubert_pretrain_model" else peer

    waveform = model_input(model, probe)

    with torch.inference_mode():
        states, _ = encoder.extract_features(waveform)

        final, _ = encoder(waveform)

    outputs = {f"layer {nr}": state[0] for nr, state in enumerate(states, start=1)}

    outputs["logits" if has_logits(model) else "output"] = final[0]

    return outputs, f"loaded back with torchaudio {version('torchaudio')}"
