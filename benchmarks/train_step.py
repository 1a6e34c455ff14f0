"""The whole training step: forward pass, loss, backward pass, clipping, fused AdamW.

Ours against torchaudio's ``HuBERTPretrainModel`` and transformers' ``HubertModel`` with our target head, with the same
weights, batch and masks; first that loss and gradients agree without dropout, then the time.

    python -m benchmarks.train_step [--device cuda --compile] [--arch large] [--profile] [--json FILE]
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import (
    alternate,
    create_parser,
    format_range,
    print_table,
    ratios,
    set_up,
    summarize,
    write_json,
)
from benchmarks.machine import describe_machine, format_limit, matmul_limit, print_machine
from benchmarks.memory import PeakMemory, run_child
from benchmarks.peers import PEERS, Ours, create_contenders
from benchmarks.profiling import print_profile, profile_step
from benchmarks.step import (
    ARCHS,
    check_equality,
    choose_dtypes,
    create_batch,
    create_config,
    create_optimizer,
    create_step,
)
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.flops import count_training_flops
from hubert_plugin.tasks.cpu import keep_freed_memory


def measure_memory(
    name: str, dtype: str, args: Namespace, config: HubertConfig, batch: HubertBatch, device: torch.device
) -> int:
    """Return the peak of two steps over what is held before the model is made: weights, optimizer and activations."""
    peak = PeakMemory(device)

    peak.start()

    contender = create_contenders(config, device, [name])[name]

    if args.compile:
        contender.compile()

    step = create_step(contender, create_optimizer(contender), batch, dtype)

    step()
    step()

    return peak.stop()


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--arch", choices=ARCHS, default="base")
    parser.add_argument("--batch", type=int, help="utterances (default: 4 on the CPU, 6 on CUDA)")
    parser.add_argument("--seconds", type=float, help="length of each (default: 15.6 on the CPU, 14.6 on CUDA: 87.5 s)")
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--no-dropout", action="store_true", help="time without dropout (default: the recipe's)")
    parser.add_argument("--peers", nargs="*", choices=tuple(PEERS), default=list(PEERS))
    parser.add_argument("--keep-memory", action="store_true", help="as the trainer does on CPUs; for all contenders")
    parser.add_argument("--compile", action="store_true", help="torch.compile all contenders (timing only)")
    parser.add_argument("--no-check", action="store_true", help="skip the comparison of losses and gradients")
    parser.add_argument("--profile", action="store_true", help="say where the time of our step goes")

    args = parser.parse_args()

    device = set_up(args)

    if args.quick:
        args.arch, args.batch, args.seconds, args.units = "quick", 2, 1.0, 20

    args.batch = args.batch or (6 if device.type == "cuda" else 4)
    args.seconds = args.seconds or (87.5 / 6 if device.type == "cuda" else 15.6)

    # A peak is that of live memory: children that measure it give memory back.
    if args.keep_memory and not args.child:
        keep_freed_memory()

    batch = create_batch(args.batch, args.seconds, args.units, args.seed, device)

    if args.child:
        name, dtype = args.child.split(":")

        config = create_config(args.arch, args.units, dropout=not args.no_dropout)

        write_json(args.json, {"peak": measure_memory(name, dtype, args, config, batch, device)})

        return

    run(args, device, batch)


def run(args: Namespace, device: torch.device, batch: HubertBatch) -> None:
    dtypes = choose_dtypes(args, device)

    config = create_config(args.arch, args.units, dropout=not args.no_dropout)

    names = [Ours.name, *args.peers]

    result: dict[str, Any] = {"machine": describe_machine(device), "peaks": {}, "limits": {}, "profiles": {}}

    print_machine(result["machine"])

    print(
        f"training step of {args.arch}: {args.batch} x {args.seconds:g} s, {batch.num_masked} masked frames, "
        f"{args.units} units, dropout {'off' if args.no_dropout else 'as in the recipe'}, layer drop off"
        f"{', compiled' if args.compile else ''}{', freed memory kept' if args.keep_memory else ''}"
    )

    num_frames = batch.temporal_mask.numel()

    for dtype in dtypes:
        shapes = [(num_frames, config.model_dim, config.ffn_dim), (num_frames, config.ffn_dim, config.model_dim)]

        if not args.quick:
            shapes.append((8192, 8192, 8192) if device.type == "cuda" else (2048, 2048, 2048))

        limit = result["limits"][dtype] = matmul_limit(device, dtype, shapes, seconds=0.0 if args.quick else 1.0)

        print(format_limit(dtype, limit))

    with_memory = not args.no_memory and not args.quick

    if with_memory and device.type == "cpu":
        for dtype in dtypes:
            for name in names:
                child = run_child("benchmarks.train_step", sys.argv[1:], f"{name}:{dtype}")

                result["peaks"][f"{name} {dtype}"] = child["peak"]

                print(f"peak memory of {name} {dtype}: {child['peak'] / 2**30:.2f} GiB", file=sys.stderr, flush=True)

    if not args.no_check:
        check_config = create_config(args.arch, args.units, dropout=False)

        contenders = create_contenders(check_config, device, names)

        # Full precision first, whatever is timed: only there do equal models agree to the last digits.
        check_dtypes = ["fp32", *(d for d in dtypes if d != "fp32")]

        result["equality"] = equality = check_equality(contenders, batch, check_dtypes)

        del contenders

        print(f"loss {equality['loss_per_frame']:.4f} nats/frame; without dropout, relative to ours in fp32:")

        for key, values in equality.items():
            if isinstance(values, dict):
                print(f"  {key}: " + ", ".join(f"{k} {v:.1e}" for k, v in values.items()))

    if with_memory and device.type == "cuda":
        for dtype in dtypes:
            for name in names:
                result["peaks"][f"{name} {dtype}"] = measure_memory(name, dtype, args, config, batch, device)

    contenders = create_contenders(config, device, names)

    steps: dict[str, Callable[[], Any]] = {}

    for name, contender in contenders.items():
        if args.compile:
            contender.compile()

        optimizer = create_optimizer(contender)

        for dtype in dtypes:
            steps[f"{name} {dtype}"] = create_step(contender, optimizer, batch, dtype)

    times = alternate(
        steps,
        device,
        rounds=args.rounds or (1 if args.quick else 5),
        warmup=args.warmup or (3 if device.type == "cuda" else 1),
        inner=args.inner or (5 if device.type == "cuda" else 1),
        report=lambda text: print(text, file=sys.stderr, flush=True),
    )

    result["times"] = times

    report(args, result, config, batch, times, dtypes)

    if args.profile:
        for dtype in dtypes:
            profiled = result["profiles"][dtype] = profile_step(steps[f"{Ours.name} {dtype}"], config, device)

            print_profile(f"{Ours.name} {dtype}", profiled)

    result["machine"]["load_average_at_end"] = describe_machine(device)["load_average"]

    print(f"load at the end: {result['machine']['load_average_at_end']}")

    write_json(args.json, result)


def report(
    args: Namespace,
    result: dict[str, Any],
    config: HubertConfig,
    batch: HubertBatch,
    times: dict[str, list[float]],
    dtypes: list[str],
) -> None:
    """Print times, shares and ratios."""
    num_masked = batch.num_masked / batch.num_examples

    flops = batch.num_examples * count_training_flops(config, batch.num_samples[0], num_masked)

    result["training_gflop_per_audio_second"] = flops / batch.audio_seconds / 1e9

    print(f"training: {result['training_gflop_per_audio_second']:.1f} GFLOP per second of audio (FACTS 11)")

    rows = []

    result["summary"] = {}

    for key, seconds in times.items():
        limit = result["limits"][key.split()[1]]["flops"]

        middle = summarize(seconds)["median"]

        speed, share = batch.audio_seconds / middle, flops / middle / limit

        peak = result["peaks"].get(key)

        result["summary"][key] = {"seconds": summarize(seconds), "audio_seconds_per_second": speed, "share": share}

        rows.append(
            [
                key,
                format_range(summarize(seconds)),
                f"{speed:.4g}",
                f"{share:.0%}",
                f"{peak / 2**30:.2f}" if peak else "-",
            ]
        )

    print_table(["contender", "s per step: median (min-max)", "audio-s/s", "share of matmul limit", "peak GiB"], rows)

    result["ratios"] = {}

    for dtype in dtypes:
        # In each precision, and our half precision against their full one, against the fastest peer.
        for peer_dtype in {dtype, dtypes[0]}:
            peers = {k: v for k, v in times.items() if k.endswith(peer_dtype) and not k.startswith(Ours.name)}

            ours = times.get(f"{Ours.name} {dtype}")

            if peers and ours is not None:
                fastest = min(peers, key=lambda k: summarize(peers[k])["median"])

                ratio = result["ratios"][f"{Ours.name} {dtype} / {fastest}"] = ratios(times[fastest], ours)

                print(f"{Ours.name} {dtype} is {format_range(ratio)} times as fast as the fastest peer, {fastest}")

        peaks = {k: v for k, v in result["peaks"].items() if k.endswith(dtype) and not k.startswith(Ours.name)}

        if peaks and f"{Ours.name} {dtype}" in result["peaks"]:
            leanest = min(peaks, key=lambda k: peaks[k])

            print(f"peak memory {dtype}: {result['peaks'][f'{Ours.name} {dtype}'] / peaks[leanest]:.2f} of {leanest}'s")


if __name__ == "__main__":
    main()
