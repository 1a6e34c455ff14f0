"""MFCC features: ours, several utterances at once, against torchaudio's, one utterance after another.

The peer is what fairseq's ``dump_mfcc_feature.py`` calls: ``torchaudio.compliance.kaldi.mfcc`` and ``compute_deltas``
twice.

    python -m benchmarks.mfcc [--threads 1] [--device cuda] [--json FILE]

``--threads N`` gives both N workers with one thread of PyTorch each, as the feature stream does, and so says how it
scales.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torchaudio.compliance.kaldi as kaldi
from numpy.typing import NDArray
from torchaudio.functional import compute_deltas

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
from benchmarks.machine import describe_machine, print_machine
from hubert_plugin.units.mfcc import MfccConfig, MfccSource

OURS, PEER = "ours", "torchaudio"

BATCH = 8
"""Utterances that the feature stream hands to a worker at a time."""

Waveform = NDArray[np.float32]


def torchaudio_mfcc(waveform: Waveform) -> NDArray[np.float32]:
    with torch.inference_mode():
        static = kaldi.mfcc(torch.from_numpy(waveform)[None], sample_frequency=16_000, use_energy=False).T

        delta = compute_deltas(static)

        return torch.cat([static, delta, compute_deltas(delta)]).T.contiguous().numpy()


def make_waveforms(seconds: float, seed: int) -> list[Waveform]:
    """Noise of 2 to 16 seconds an utterance: the cost does not depend on what is said."""
    rng = np.random.default_rng(seed)

    waveforms: list[Waveform] = []

    while sum(map(len, waveforms)) < seconds * 16_000:
        num_samples = int(16_000 * min(rng.uniform(2.0, 16.0), seconds))

        waveforms.append((0.1 * rng.standard_normal(num_samples)).astype(np.float32))

    return waveforms


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--seconds", type=float, help="audio in all (default: 300)")

    args = parser.parse_args()

    device = set_up(args)

    run(args, device, make_waveforms(args.seconds or (5.0 if args.quick else 300.0), args.seed))


def run(args: Namespace, device: torch.device, waveforms: Sequence[Waveform]) -> None:
    num_workers = args.threads or 1

    seconds = sum(map(len, waveforms)) / 16_000

    machine = describe_machine(device)

    result: dict[str, Any] = {"machine": machine, "seconds": seconds, "num_utterances": len(waveforms),
                              "workers": num_workers}  # fmt: skip

    print_machine(machine)

    print(f"MFCC of {len(waveforms)} utterances, {seconds:.0f} s, {num_workers} workers with one thread each")

    source = MfccSource(MfccConfig(device=args.device))

    batches = [waveforms[i : i + BATCH] for i in range(0, len(waveforms), BATCH)]

    ours = [f for b in batches for f in source.extract(b)]

    result["equality"] = max(float(np.abs(a - torchaudio_mfcc(w)).max()) for a, w in zip(ours, waveforms, strict=True))

    print(f"largest difference: {result['equality']:.1e}")

    torch.set_num_threads(1)

    with ThreadPoolExecutor(num_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        calls: dict[str, Callable[[], Any]] = {
            OURS: partial(_map, pool, source.extract, batches),
            PEER: partial(_map, pool, torchaudio_mfcc, waveforms),
        }

        times = alternate(
            calls,
            device,
            rounds=args.rounds or (1 if args.quick else 7),
            warmup=1 if args.warmup is None else args.warmup,
            inner=args.inner or 1,
            report=lambda text: print(text, file=sys.stderr, flush=True),
        )

    ratio = ratios(times[PEER], times[OURS])

    result.update(times=times, speed_ratio=ratio)

    rows = [
        [name, format_range({k: v * 1e3 for k, v in summarize(times[name]).items()}),
         f"{seconds / summarize(times[name])['median']:,.0f}"]
        for name in (OURS, PEER)
    ]  # fmt: skip

    rows.append(["ratio", f"{format_range(ratio)} x", "-"])

    print_table(["MFCC", "ms: median (min-max)", "times real time"], rows)

    write_json(args.json, result)


def _map(pool: ThreadPoolExecutor, fn: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return list(pool.map(fn, items))


if __name__ == "__main__":
    main()
