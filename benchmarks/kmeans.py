"""K-means: fit and assignment, ours (``backend: torch``) against scikit-learn's MiniBatchKMeans as fairseq sets it.

    python -m benchmarks.kmeans [--only fit|assign] [--dims 39,768] [--units 100,500] [--json FILE]

Frames are made up: sounds held for five frames, of unequal frequency, with noise and a common offset. Both fit the same
frames from the same number of initialisations; the inertia of both is measured by one function on all of them.
Letters: D features of a frame, K units.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

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
from benchmarks.machine import describe_machine, has_bf16_units, print_machine
from hubert_plugin.units.collective import Ranks
from hubert_plugin.units.lloyd import Lloyd, LloydOptions
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.threads import Workers

OURS, PEER = "ours", "scikit-learn"

Frames = NDArray[np.float32]


def make_frames(num_frames: int, dim: int, seed: int) -> Frames:
    rng = np.random.default_rng(seed)

    num_sounds = 400

    scale = np.linspace(3.0, 0.3, dim, dtype=np.float32)

    sounds = 1.5 * rng.standard_normal((num_sounds, dim), np.float32) * scale + 5.0 * rng.standard_normal(dim)

    frequency = rng.gamma(1.0, 1.0, num_sounds)

    which = np.repeat(rng.choice(num_sounds, num_frames // 5 + 1, p=frequency / frequency.sum()), 5)[:num_frames]

    frames = rng.standard_normal((num_frames, dim), np.float32)

    frames *= scale
    frames += sounds[which]

    return frames


def fit_ours(frames: Frames, num_units: int, n_init: int, seed: int, device: torch.device) -> Frames:
    with Workers() as workers:
        lloyd = Lloyd(
            frames.copy(),  # it is rounded in place
            num_units,
            LloydOptions(n_init=n_init),
            seed=seed,
            ranks=Ranks(),
            device=device,
            workers=workers,
        )

        lloyd.fit()

    return lloyd.centroids.cpu().numpy()


def create_peer(num_units: int, n_init: int, seed: int) -> MiniBatchKMeans:
    return MiniBatchKMeans(
        num_units,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        n_init=n_init,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    )


def fit_peer(frames: Frames, num_units: int, n_init: int, seed: int) -> Frames:
    return np.asarray(create_peer(num_units, n_init, seed).fit(frames).cluster_centers_, np.float32)


def inertia(frames: Frames, centroids: Frames) -> float:
    units = NearestCentroid(centroids, precision="fp32")(torch.from_numpy(frames)).numpy()

    total = sum(
        float(np.square(frames[i : i + 65_536] - centroids[units[i : i + 65_536]], dtype=np.float64).sum())
        for i in range(0, len(frames), 65_536)
    )

    return total / len(frames)


def main() -> None:
    parser = create_parser(__doc__)

    parser.add_argument("--only", choices=("fit", "assign"))
    parser.add_argument("--dims", help="D, comma-separated (default: 39,768)")
    parser.add_argument("--units", help="K, comma-separated (default: 100,500)")
    parser.add_argument("--frames", type=int, help="frames to fit (default: 300000 for D < 100, 60000 above)")
    parser.add_argument("--n-init", type=int, default=20)

    args = parser.parse_args()

    device = set_up(args)

    result: dict[str, Any] = {"machine": describe_machine(device)}

    print_machine(result["machine"])

    dims = _numbers(args.dims) or ([6, 130] if args.quick else [39, 768])
    units = _numbers(args.units) or ([10] if args.quick else [100, 500])

    if args.only != "assign":
        result["fit"] = {f"D={d} K={k}": measure_fit(args, device, d, k) for d in dims for k in units}

        _print_fits(result["fit"])

    if args.only != "fit":
        result["assign"] = {f"D={d} K={k}": measure_assignment(args, device, d, k) for d in dims for k in units}

        _print_assignments(result["assign"])

    write_json(args.json, result)


def measure_fit(args: Namespace, device: torch.device, dim: int, num_units: int) -> dict[str, Any]:
    num_frames = args.frames or (2_000 if args.quick else 300_000 if dim < 100 else 60_000)

    frames = make_frames(num_frames, dim, args.seed)

    n_init = 2 if args.quick else args.n_init

    found: dict[str, Frames] = {}

    def fit(name: str) -> None:
        if name == OURS:
            found[name] = fit_ours(frames, num_units, n_init, args.seed, device)
        else:
            found[name] = fit_peer(frames, num_units, n_init, args.seed)

    calls: dict[str, Callable[[], Any]] = {name: partial(fit, name) for name in (OURS, PEER)}

    times = alternate(
        calls,
        device,
        rounds=args.rounds or (1 if args.quick else 3),
        warmup=args.warmup or 0,
        report=lambda text: print(f"fit D={dim} K={num_units}: {text}", file=sys.stderr, flush=True),
    )

    quality = {name: inertia(frames, c) for name, c in found.items()}

    return {
        "frames": num_frames,
        "times": times,
        "inertia": quality,
        "inertia_ratio": quality[OURS] / quality[PEER],
        "speed_ratio": ratios(times[PEER], times[OURS]),
    }


def measure_assignment(args: Namespace, device: torch.device, dim: int, num_units: int) -> dict[str, Any]:
    num_frames = 3_000 if args.quick else 100_000 if dim < 100 else 20_000

    frames = make_frames(num_frames, dim, args.seed)

    # Fitted to the very frames, briefly: how near the ties are is that of a real codebook.
    peer = MiniBatchKMeans(num_units, n_init=1, max_iter=3, batch_size=4096, random_state=args.seed).fit(frames)

    x = torch.from_numpy(frames).to(device)

    precisions = ["fp32", "auto", "fast"]

    if device.type == "cuda" or has_bf16_units(device):
        precisions.append("bf16")

    nearest = {p: NearestCentroid(peer.cluster_centers_, device, p) for p in precisions}  # type: ignore[arg-type]

    expected = peer.predict(frames)

    same = {p: float((n(x).cpu().numpy() == expected).mean()) for p, n in nearest.items()}

    with Workers() as workers:
        calls: dict[str, Callable[[], Any]] = {PEER: partial(peer.predict, frames)}

        calls.update({p: partial(n, x, workers) for p, n in nearest.items()})

        # scikit-learn sets its threads itself; ours are the workers, one PyTorch thread each.
        times = alternate(
            calls,
            device,
            rounds=args.rounds or (1 if args.quick else 7),
            warmup=1,
            inner=args.inner or (1 if args.quick else 50 if dim < 100 else 8),
            report=lambda text: print(f"assign D={dim} K={num_units}: {text}", file=sys.stderr, flush=True),
        )

    return {
        "frames": num_frames,
        "times": times,
        "same_labels": same,
        "chosen": {p: n.precision for p, n in nearest.items()},
        "speed_ratio": {p: ratios(times[PEER], times[p]) for p in precisions},
    }


def _print_fits(fits: dict[str, Any]) -> None:
    rows = [
        [
            name,
            f"{f['frames']:,}",
            format_range(summarize(f["times"][OURS])),
            format_range(summarize(f["times"][PEER])),
            f"{format_range(f['speed_ratio'])} x",
            f"{f['inertia_ratio']:.4f}",
        ]
        for name, f in fits.items()
    ]

    print_table(["fit", "frames", "ours (s)", "scikit-learn (s)", "speed ratio", "inertia ours / theirs"], rows)


def _print_assignments(assignments: dict[str, Any]) -> None:
    rows = []

    for name, a in assignments.items():
        rows.append([name, PEER, _microseconds(a["times"][PEER], a["frames"]), "1", "-"])

        for p, ratio in a["speed_ratio"].items():
            chosen = f"{p} ({a['chosen'][p]})" if a["chosen"][p] != p else p

            rows.append(
                [name, chosen, _microseconds(a["times"][p], a["frames"]), f"{format_range(ratio)} x",
                 f"{100 * a['same_labels'][p]:.3f} %"]
            )  # fmt: skip

    print_table(["assignment", "contender", "µs per frame", "speed ratio", "same labels"], rows)


def _microseconds(times: list[float], num_frames: int) -> str:
    return format_range({k: v / num_frames * 1e6 for k, v in summarize(times).items()})


def _numbers(text: str | None) -> list[int] | None:
    return [int(n) for n in text.split(",")] if text else None


if __name__ == "__main__":
    main()
