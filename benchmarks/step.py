"""A training step and what it is measured on: architectures, batches, the optimizer; whether contenders agree."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.machine import has_bf16_units
from benchmarks.peers import Contender
from hubert_plugin import frames
from hubert_plugin.data.batch import HubertBatch, collate
from hubert_plugin.data.masks import MaskConfig, sample_mask
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig

ARCHS = ("base", "large", "quick")

NO_DROPOUT: dict[str, Any] = {
    "dropout_p": 0.0,
    "attn_dropout_p": 0.0,
    "ffn_inner_dropout_p": 0.0,
    "input_dropout_p": 0.0,
}


def create_config(arch: str, num_units: int, dropout: bool) -> HubertConfig:
    """Return an architecture of FACTS 1.1 with one head, without layer drop: all contenders run all layers."""
    heads = [HubertHeadConfig(label_set="km", size=num_units)]

    config = HubertConfig(heads=heads, layer_drop_p=0.0)

    if arch == "large":
        config = replace(
            config,
            model_dim=1024,
            num_layers=24,
            num_heads=16,
            ffn_dim=4096,
            norm_order="pre",
            conv_norm="layer",
            feature_grad_scale=1.0,
            final_dim=768,
            **NO_DROPOUT,
        )

    if arch == "quick":
        config = replace(
            config,
            model_dim=64,
            num_layers=2,
            num_heads=4,
            ffn_dim=128,
            conv_layers=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2],
            pos_conv_kernel=16,
            pos_conv_groups=4,
            final_dim=16,
        )

    return config if dropout else replace(config, **NO_DROPOUT)


def create_batch(num_utterances: int, seconds: float, num_units: int, seed: int, device: torch.device) -> HubertBatch:
    """Return random audio of equal length with the paper's masks and random units.

    Accuracies of unmasked frames are logging: their indices are left out, so that no contender computes them.
    """
    rng = np.random.default_rng(seed)

    num_samples = round(seconds * 16_000)

    num_frames = frames.num_frames(num_samples)

    batch = collate(
        [rng.standard_normal(num_samples).astype(np.float32) * 0.1 for _ in range(num_utterances)],
        [[rng.integers(num_units, size=num_frames).astype(np.int32)] for _ in range(num_utterances)],
        [sample_mask(num_frames, MaskConfig(), rng) for _ in range(num_utterances)],
        [str(i) for i in range(num_utterances)],
    )

    batch.unmasked_indices = batch.unmasked_indices[:0]
    batch.unmasked_targets = [t[:0] for t in batch.unmasked_targets]

    batch.to(device)

    return batch


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16")


def create_optimizer(contender: Contender) -> torch.optim.Optimizer:
    # FACTS 1.4, but a small step: the weights should stay near those that were compared.
    return torch.optim.AdamW(
        contender.module.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )


def create_step(
    contender: Contender, optimizer: torch.optim.Optimizer, batch: HubertBatch, dtype: str
) -> Callable[[], None]:
    params = list(contender.module.parameters())

    device = batch.waveforms.device

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)

        with autocast(device, dtype):
            loss = contender.loss(batch)

        (loss / batch.num_masked).backward()

        clip_grad_norm_(params, 10.0)

        optimizer.step()

    return step


def check_equality(contenders: dict[str, Contender], batch: HubertBatch, dtypes: list[str]) -> dict[str, Any]:
    """Return, for each precision and peer, relative differences to our fp32 loss and gradients."""
    result: dict[str, Any] = {}

    reference: dict[str, Any] | None = None

    for dtype in dtypes:
        for name, contender in contenders.items():
            contender.module.zero_grad(set_to_none=True)

            with autocast(batch.waveforms.device, dtype):
                loss = contender.loss(batch)

            loss.backward()

            grads = {k: v.detach().float() for k, v in contender.gradients().items()}

            contender.module.zero_grad(set_to_none=True)

            if reference is None:
                reference = {"loss": loss.item(), "grads": grads}

                result["loss_per_frame"] = loss.item() / batch.num_masked

                continue

            reference_grads = reference["grads"]

            conv, query = "feature_extractor.conv_layers.1.0.weight", "encoder.layers.0.self_attn.q_proj.weight"

            difference = sum(float((grads[k] - g).square().sum()) for k, g in reference_grads.items())

            size = sum(float(g.square().sum()) for g in reference_grads.values())

            result[f"{name} {dtype}"] = {
                "loss": abs(loss.item() - reference["loss"]) / abs(reference["loss"]),
                "grad": (difference / size) ** 0.5,
                **{
                    f"grad {key}": float((grads[key] - reference_grads[key]).norm() / reference_grads[key].norm())
                    for key in (conv, query)
                },
            }

    return result


def choose_dtypes(args: Namespace, device: torch.device) -> list[str]:
    if args.dtype in ("fp32", "bf16"):
        return [args.dtype]

    if args.dtype == "both":
        return ["fp32", "bf16"]

    if device.type == "cuda":
        return ["bf16"]

    return ["fp32", "bf16"] if has_bf16_units(device) else ["fp32"]
