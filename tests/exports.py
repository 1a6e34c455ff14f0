"""Models to export, and where they go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from builders import speech_like, tiny_config
from golden import FAIRSEQ

from hubert_plugin import load_hubert
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel

WAVE = speech_like(2.03, 1, np.random.default_rng(0))

TARGETS = {"huggingface": "hf", "torchaudio": "model.pth", "fairseq": "model.pt", "onnx": "model.onnx"}

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", "A", "B", "C"]


def golden_model(case: str) -> HubertModel:
    return load_hubert(FAIRSEQ / f"{case}.pt")


def create_model(**overrides: Any) -> HubertModel:
    torch.manual_seed(0)

    return create_hubert_model(replace(tiny_config(), **overrides)).eval()


def create_recogniser(**overrides: Any) -> HubertCtcModel:
    torch.manual_seed(0)

    encoder = replace(tiny_config(), heads=[], **overrides)

    return create_hubert_ctc_model(HubertCtcConfig(encoder=encoder, vocab_size=8, symbols=SYMBOLS)).eval()
