"""The loss over units, forward and backward: one normalised matrix product against the materialised form.

fairseq scores each frame against a [C + 1, N, D] tensor, the positive codeword first, and removes the positive from
among the others (``hubert.py:384-394, 482-521``; FACTS 2). That is C-way softmax over cosines, which takes one [N, C]
product.

    python -m benchmarks.loss_head [--device cuda] [--json FILE]

Letters: C units, N masked frames, D projected dimension.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Identity, Parameter
from torch.nn.functional import cosine_similarity, cross_entropy

from benchmarks.common import (
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
from benchmarks.memory import PeakMemory, run_child
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.heads import CosineHead

OURS, MATERIALISED = "ours", "materialised"


class Problem:
    """Random frames, codewords and targets, and the two ways to the loss."""

    def __init__(self, num_units: int, num_frames: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        config = HubertConfig(model_dim=dim, final_dim=dim, heads=[HubertHeadConfig(size=num_units)])

        self.head = CosineHead(config, config.heads[0], None).to(device)

        # The frames come projected: what is measured is what the two forms do differently.
        self.head.proj = Identity()  # type: ignore[assignment]

        self.temperature = config.logit_temp

        self.frames = Parameter(torch.randn(num_frames, dim, device=device).to(dtype))

        self.targets = torch.randint(num_units, (num_frames,), device=device)

    def ours(self) -> Tensor:
        return cross_entropy(self.head(self.frames), self.targets, reduction="sum")

    def materialised(self) -> Tensor:
        codewords, targets, num_frames = self.head.codewords, self.targets, len(self.targets)

        others = codewords[:, None, :].expand(-1, num_frames, -1)  # (C, N, D)

        candidates = torch.cat([codewords[targets][None], others])  # (C + 1, N, D)

        cosines = cosine_similarity(self.frames.float()[None], candidates.float(), dim=-1)  # (C + 1, N)

        logits = cosines / self.temperature

        # fairseq finds the positive among the others by comparing vectors; its index is known, and costs less.
        removed = torch.zeros_like(logits, dtype=torch.bool)

        removed[targets + 1, torch.arange(num_frames, device=targets.device)] = True

        logits = logits.masked_fill(removed, -torch.inf).T  # (N, C + 1)

        return cross_entropy(logits, torch.zeros_like(targets), reduction="sum")

    def run(self, name: str) -> Tensor:
        """Forward and backward; gradients are left in ``frames`` and ``head.codewords``."""
        self.frames.grad = self.head.codewords.grad = None

        loss = self.ours() if name == OURS else self.materialised()

        loss.backward()

        return loss.detach()

    def gradients(self) -> tuple[Tensor, Tensor]:
        frames, codewords = self.frames.grad, self.head.codewords.grad

        assert frames is not None and codewords is not None

        return frames.clone(), codewords.clone()


def check_equality(problem: Problem) -> dict[str, float]:
    """Return relative differences of the loss and of both gradients."""
    loss = problem.run(MATERIALISED)

    frames, codewords = problem.gradients()

    our_loss = problem.run(OURS)

    our_frames, our_codewords = problem.gradients()

    return {
        "loss": relative_error(our_loss, loss),
        "grad_frames": relative_error(our_frames, frames),
        "grad_codewords": relative_error(our_codewords, codewords),
    }


def measure_memory(name: str, problem: Problem, tiny: Problem, device: torch.device) -> int:
    # The tiny call loads the code, so that only data is counted.
    tiny.run(name)

    peak = PeakMemory(device)

    peak.start()

    problem.run(name)

    return peak.stop()


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--units", type=int, help="C (default: 504)")
    parser.add_argument("--frames", type=int, help="N (default: 4400)")
    parser.add_argument("--dim", type=int, help="D (default: 256)")

    args = parser.parse_args()

    device = set_up(args)

    units, frames, dim = (args.units or 504, args.frames or 4400, args.dim or 256)

    if args.quick:
        units, frames, dim = 20, 50, 16

    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32

    def create(num_frames: int) -> Problem:
        return Problem(units, num_frames, dim, dtype, device)

    if args.child:
        write_json(args.json, {"peak": measure_memory(args.child, create(frames), create(8), device)})

        return

    run(args, device, create(frames), create(8), {"units": units, "frames": frames, "dim": dim})


def run(args: Namespace, device: torch.device, problem: Problem, tiny: Problem, sizes: dict[str, int]) -> None:
    result: dict[str, Any] = {"sizes": sizes, "machine": describe_machine(device)}

    print_machine(result["machine"])

    print(f"loss head: C={sizes['units']}, N={sizes['frames']}, D={sizes['dim']}, forward + backward")

    peaks: dict[str, int] = {}

    # First, while this process holds little: the materialised form needs many times the memory of its tensor.
    if not args.no_memory and not args.quick:
        for name in (OURS, MATERIALISED):
            if device.type == "cuda":
                peaks[name] = measure_memory(name, problem, tiny, device)
            else:
                peaks[name] = run_child("benchmarks.loss_head", sys.argv[1:], name)["peak"]

    equality = result["equality"] = check_equality(problem)

    print("relative differences: " + ", ".join(f"{k} {v:.1e}" for k, v in equality.items()))

    calls: dict[str, Callable[[], Any]] = {name: partial(problem.run, name) for name in (OURS, MATERIALISED)}

    times = alternate(
        calls,
        device,
        rounds=args.rounds or (1 if args.quick else 3),
        warmup=args.warmup or 0,  # the comparison has warmed up both
        inner=args.inner or (5 if device.type == "cuda" else 1),
        report=lambda text: print(text, file=sys.stderr, flush=True),
    )

    ratio = ratios(times[MATERIALISED], times[OURS])

    result.update(times=times, speed_ratio=ratio, peaks=peaks)

    rows = []

    for name in (OURS, MATERIALISED):
        peak = f"{peaks[name] / 2**20:.0f} MiB" if peaks else "-"

        rows.append([name, format_range({k: v * 1e3 for k, v in summarize(times[name]).items()}), peak])

    memory_ratio = peaks[MATERIALISED] / peaks[OURS] if peaks else None

    result["memory_ratio"] = memory_ratio

    rows.append(["ratio", f"{format_range(ratio)} x", f"{memory_ratio:.0f} x" if memory_ratio else "-"])

    print_table(["form", "ms: median (min-max)", "peak memory"], rows)

    write_json(args.json, result)


if __name__ == "__main__":
    main()
