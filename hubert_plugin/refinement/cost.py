"""What a refinement will take: operations from the shapes of models, sizes from counts, time from a stated speed.

Operations are counted from shapes (1 multiply-add = 2; convolutions, projections, attention; a training step is three
times a forward pass): 15.3 GFLOP for a second of audio and a forward pass of base, 39.6 for large, 110 for x-large. Not
counted are k-means itself, reading audio, validation, ABX and correlations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hubert_plugin.models.hubert.flops import count_encoder_flops
from hubert_plugin.refinement.settings import apply_overrides, flow_yaml

_CONV: Final = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)

_SECONDS: Final = 15.0
"""The length of the utterances that attention is counted for: its part grows with the length."""

GPU_TFLOPS: Final = 100.0
CORE_TFLOPS: Final = 0.06

MFCC_SPEED: Final = 1500.0
"""Seconds of audio for which a core computes MFCC in a second."""

START_SECONDS: Final = 15.0
"""What a step takes before it does anything: imports (12 to 18 s on two cores, FACTS 13)."""

BYTES_PER_PARAM: Final = 4


@dataclass(frozen=True)
class Shape:
    """What the cost of a model depends on."""

    model_dim: int = 768

    num_layers: int = 12

    ffn_dim: int = 3072

    pos_conv_kernel: int = 128

    pos_conv_groups: int = 16

    conv_layers: Sequence[Sequence[int]] = _CONV

    conv_norm: str = "group"

    final_dim: int = 256

    views: int = 1
    """How often the Transformer computes an utterance in training."""

    num_dropped_heads: int = 0
    """How many heads take no part in an update. Heads cost next to nothing; but options must fit it (``fit.py``)."""

    def forward_flops(self, num_layers: int | None = None, *, views: int = 1) -> float:
        """Return the operations for a second of audio, up to a layer."""
        parts = count_encoder_flops(self, int(_SECONDS * 16_000), num_layers)

        # All views pass the convolutions once.
        once = parts["conv"] + parts["proj"]

        return (once + views * (sum(parts.values()) - once)) / _SECONDS

    def training_flops(self) -> float:
        """Return the operations for a second of audio in training."""
        return 3.0 * self.forward_flops(views=self.views)

    def num_params(self) -> int:
        """Return the number of parameters of the encoder, without heads."""
        dim, input_dim, conv = self.model_dim, 1, 0

        for output_dim, kernel, _ in self.conv_layers:
            conv += input_dim * output_dim * kernel

            input_dim = output_dim

        norms = 2 * self.conv_layers[0][0] if self.conv_norm == "group" else sum(2 * c[0] for c in self.conv_layers)

        proj = 2 * input_dim + (input_dim * dim + dim if input_dim != dim else 0)

        pos = dim * (dim // self.pos_conv_groups) * self.pos_conv_kernel + self.pos_conv_kernel + dim

        layer = 4 * (dim * dim + dim) + 2 * dim * self.ffn_dim + self.ffn_dim + dim + 4 * dim

        return conv + norms + proj + pos + self.num_layers * layer + 2 * dim


_LARGE: Final = Shape(model_dim=1024, num_layers=24, ffn_dim=4096, conv_norm="layer", final_dim=768)

SHAPES: Final[Mapping[str, Shape]] = {
    "tiny": Shape(
        model_dim=256,
        num_layers=4,
        ffn_dim=1024,
        pos_conv_kernel=32,
        conv_layers=(
            *((32, 10, 5), (64, 3, 2), (128, 3, 2), (192, 3, 2), (256, 3, 2)),
            *((256, 2, 2),) * 2,
        ),
        final_dim=128,
    ),
    "base": Shape(),
    "large": _LARGE,
    "xlarge": replace(_LARGE, model_dim=1280, num_layers=48, ffn_dim=5120, final_dim=1024),
    "ms_hubert_base": Shape(views=2, num_dropped_heads=2),
}
"""The shapes of the architectures that this package registers."""


@dataclass(frozen=True)
class Training:
    """What a training's options say of its cost."""

    arch: str

    shape: Shape | None
    """``None``: an architecture of another package."""

    num_updates: int

    update_seconds: float
    """Audio of an update over all ranks."""

    num_checkpoints: int

    heads: Sequence[Mapping[str, Any]] = ()
    """The target heads that are described (``model.config_overrides.heads``)."""

    def flops(self) -> float | None:
        """Return the operations of all updates."""
        if self.shape is None:
            return None

        return self.shape.training_flops() * self.num_updates * self.update_seconds

    def size_bytes(self) -> float | None:
        """Return what its checkpoints take: model and the two moments of Adam."""
        if self.shape is None:
            return None

        return 3.0 * BYTES_PER_PARAM * self.shape.num_params() * self.num_checkpoints


PRETRAIN_DEFAULTS: Final[Mapping[str, Any]] = {
    "model": {"arch": "tiny"},
    "task": {"config": {"global_batch_seconds": None, "batching": {"batch_seconds": 15.0}}},
    "trainer": {"grad_accumulation": {"num_batches": 1}},
    "regime": {"num_steps": 700, "keep_last_n_checkpoints": 1, "keep_best_n_checkpoints": 1},
}
"""What `pretrain` does without a preset, as far as its cost depends on it."""


def read_training(preset: Path | None, options: Mapping[str, Any], num_ranks: int) -> Training:
    """Return what the options of ``pretrain`` say of its cost.

    :param preset: The preset's file.
    :param options: Options by dotted key.
    """
    from hubert_plugin.config_check import read_config_file
    from hubert_plugin.refinement.settings import merge

    values = dict(PRETRAIN_DEFAULTS)

    if preset is not None:
        values = merge(values, read_config_file(preset).values)

    values = apply_overrides(values, [f"{k}={flow_yaml(v)}" for k, v in options.items()])

    arch = str(values["model"].get("arch"))

    shape = SHAPES.get(arch)

    changes = values["model"].get("config_overrides") or {}

    if shape is not None:
        known = {k: v for k, v in changes.items() if k in Shape.__dataclass_fields__ and v is not None}

        if isinstance(swap := changes.get("swap"), bool):
            known["views"] = 2 if swap else 1

        shape = replace(shape, **known)

    batching = values["task"]["config"]

    update = batching.get("global_batch_seconds")

    if update is None:
        accumulated = values["trainer"]["grad_accumulation"]["num_batches"]

        update = num_ranks * accumulated * batching["batching"]["batch_seconds"]

    regime = values["regime"]

    kept = (regime.get("keep_last_n_checkpoints") or 0) + (regime.get("keep_best_n_checkpoints") or 0)

    described = changes.get("heads")

    heads = [h for h in described if isinstance(h, Mapping)] if isinstance(described, list) else []

    return Training(arch, shape, int(regime["num_steps"]), float(update), max(1, kept), heads)


def default_tflops() -> tuple[float, str]:
    """Return the speed that is taken where none is stated, and what it is taken of."""
    if Path("/dev/nvidia0").exists():
        return GPU_TFLOPS, "a GPU"

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    return CORE_TFLOPS * cores, f"{cores} CPU cores"


def label_bytes(seconds: float, rate: int, sizes: Sequence[int]) -> float:
    """Return what fairseq's text labels take: the digits of each unit and a space."""
    return sum(seconds * rate * (len(str(max(size - 1, 0))) + 1) for size in sizes)
