"""A padded batch, packed and not: what fine-tuning and extraction save by computing nothing on padding.

    python -m benchmarks.packing [--lengths 5 8 12 15] [--dtype bf16] [--json FILE]

Both ways run the same model on the same batch; their outputs at valid frames are compared first. The rate counts valid
audio only.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fairseq2.nn import BatchLayout
from torch import Tensor

from benchmarks.common import (
    DTYPES,
    alternate,
    create_parser,
    format_range,
    print_table,
    ratios,
    relative_error,
    set_up,
    summarize,
    write_json,
)
from benchmarks.machine import describe_machine, print_machine
from benchmarks.step import choose_dtypes
from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel

PACKED, PADDED = "packed", "padded"


class Problem:
    """A model and a padded batch."""

    def __init__(self, model: HubertModel, lengths: list[int], dtype: torch.dtype, device: torch.device) -> None:
        self.model = model.to(device)
        self.lengths = lengths
        self.dtype = dtype
        self.device = device

        self.waveforms = torch.randn(len(lengths), max(lengths), device=device)

        self.num_frames = [frames.num_frames(n) for n in lengths]

    def encode(self, name: str, training: bool) -> Tensor:
        """Return the output, (N, T, M); in training, gradients are computed as well."""
        model = self.model

        model.encoder.pack = name == PACKED

        frontend = model.encoder_frontend

        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = frontend.extract(self.waveforms, self.lengths, skip_padding=name == PACKED)

            seqs = frontend.project(features)

            layout = BatchLayout.of(seqs, self.num_frames)

            output, _ = model.encoder(frontend.position(seqs, layout), layout)

        if training:
            model.zero_grad()

            torch.cat(self.valid(output)).float().square().mean().backward()

        return output.detach()  # type: ignore[no-any-return]

    def valid(self, output: Tensor) -> list[Tensor]:
        return [output[i, :size] for i, size in enumerate(self.num_frames)]

    def difference(self) -> float:
        """Return the relative difference of the outputs, without dropout."""
        self.model.eval()

        with torch.inference_mode():
            packed, padded = (torch.cat(self.valid(self.encode(name, False))) for name in (PACKED, PADDED))

        return relative_error(packed, padded)

    def run(self, name: str, training: bool) -> None:
        self.model.train(training)

        with torch.inference_mode(not training):
            self.encode(name, training)


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--lengths", type=float, nargs="+", default=[5.0, 8.0, 12.0, 15.0], help="seconds")

    args = parser.parse_args()

    device = set_up(args)

    config = HubertConfig(layer_drop_p=0.0)

    if args.quick:
        config = HubertConfig(model_dim=32, num_layers=2, num_heads=2, ffn_dim=64, layer_drop_p=0.0)

    lengths = [round(n * frames.SAMPLE_RATE / (10 if args.quick else 1)) for n in args.lengths]

    result: dict[str, Any] = {"machine": describe_machine(device), "lengths": lengths, "cells": []}

    print_machine(result["machine"])

    padding = 1 - sum(lengths) / (len(lengths) * max(lengths))

    print(f"base, {len(lengths)} utterances, {sum(lengths) / frames.SAMPLE_RATE:.1f} s, padding {padding:.0%}")

    model = create_hubert_model(config)

    for dtype_name in choose_dtypes(args, device):
        problem = Problem(model, lengths, DTYPES[dtype_name], device)

        difference = problem.difference()

        print(f"{dtype_name}: relative difference of the outputs {difference:.1e}")

        for training in (False, True):
            cell = measure(args, problem, training)

            result["cells"].append({"dtype": dtype_name, "training": training, "difference": difference, **cell})

    print_table(
        ["precision", "pass", "packed (s)", "padded (s)", "ratio"],
        [
            [
                cell["dtype"],
                "forward and backward" if cell["training"] else "forward",
                format_range(summarize(cell["times"][PACKED])),
                format_range(summarize(cell["times"][PADDED])),
                format_range(cell["ratio"]),
            ]
            for cell in result["cells"]
        ],
    )

    write_json(args.json, result)


def measure(args: Namespace, problem: Problem, training: bool) -> dict[str, Any]:
    calls: dict[str, Callable[[], Any]] = {name: partial(problem.run, name, training) for name in (PACKED, PADDED)}

    times = alternate(
        calls,
        problem.device,
        rounds=args.rounds or (1 if args.quick else 3),
        warmup=args.warmup if args.warmup is not None else 1,
        inner=args.inner or 1,
        report=lambda text: print(text, file=sys.stderr, flush=True),
    )

    return {"times": times, "ratio": ratios(times[PADDED], times[PACKED])}


if __name__ == "__main__":
    main()
