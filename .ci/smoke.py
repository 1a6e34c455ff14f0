"""Checks an installed wheel: the package imports, fairseq2 starts beside it, a tiny model runs."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import hubert_plugin  # first: it brings libsndfile, which fairseq2 asks for

assert "site-packages" in str(Path(hubert_plugin.__file__)), f"not the installed package: {hubert_plugin.__file__}"

hubert_plugin.setup_fairseq2_extension  # noqa: B018 - loads the composition root

from hubert_plugin.models.hubert.config import HubertConfig  # noqa: E402
from hubert_plugin.models.hubert.factory import create_hubert_model  # noqa: E402

config = HubertConfig(
    model_dim=32,
    num_layers=2,
    num_heads=2,
    ffn_dim=64,
    conv_layers=[(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2],
    pos_conv_kernel=16,
    pos_conv_groups=4,
)

model = create_hubert_model(config).eval()

with torch.inference_mode():
    features = model.encode(torch.randn(1, 16_000))

# One second is 49 frames: floor((16000 - 400) / 320) + 1.
assert features.output.shape == (1, 49, 32), features.output.shape
assert bool(torch.isfinite(features.output).all())

print(f"smoke test passed on Python {platform.python_version()}, PyTorch {torch.__version__}")
