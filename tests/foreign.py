"""Checkpoints of other projects, as tests need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golden import FAIRSEQ
from safetensors.torch import load_file
from torch import Tensor

from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.interop.reader import read_checkpoint
from hubert_plugin.models.interop.recognize import Checkpoint, Recognised, recognize
from hubert_plugin.models.interop.sources import recognize_path

DATA = FAIRSEQ.parent

HINT = HubertConfig(num_heads=4)

HF_GROUP = DATA / "transformers/hf_group"


def parameters(name: str) -> dict[str, Tensor]:
    """The state dict in a golden file of each format."""
    files = {
        "fairseq": ("fairseq/tiny_post.pt", "model"),
        "fairseq ctc": ("fairseq/tiny_ctc.pt", "model"),
        "torchaudio": ("torchaudio/ta_post.pth", None),
        "minimal_hubert": ("minimal_hubert/mh_base12.pt", "model"),
    }

    if name == "Hugging Face":
        return load_file(HF_GROUP / "model.safetensors")

    if name == "fairseq2":
        return recognize_path(FAIRSEQ / "tiny_post.pt").state_dict

    file, entry = files[name]

    content = read_checkpoint(DATA / file)

    return content[entry] if entry else content


def of(content: dict[str, Any], hint: HubertConfig | None = HINT) -> Recognised:
    return recognize(Checkpoint(Path("file.pt"), content), hint)
