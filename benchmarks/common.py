"""What all benchmarks share: options, alternating runs, ratios, tables.

A machine with neighbours drifts by more than the differences that are looked for. So contenders take turns
(A B C A B C …), a ratio is taken within each turn, and the median of these ratios is what counts; their smallest and
largest tell how far to trust it.
"""

from __future__ import annotations

import json
import signal
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def create_parser(description: str | None) -> ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    parser = ArgumentParser(description=description, allow_abbrev=False)

    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "both"), help="default: what the device computes natively")
    parser.add_argument("--rounds", type=int, help="turns per contender that are timed")
    parser.add_argument("--warmup", type=int, help="calls per contender before")
    parser.add_argument("--inner", type=int, help="calls per turn, timed together")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no memory: only to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    parser.add_argument("--child", help="(internal) measure the peak memory of this contender only")

    return parser


def set_up(args: Namespace) -> torch.device:
    """Apply ``--device``, ``--threads`` and ``--seed``."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("`--device cuda` needs a CUDA device, but PyTorch finds none.")

    if args.threads:
        torch.set_num_threads(args.threads)

    torch.manual_seed(args.seed)

    return torch.device(args.device)


def synchronize(device: torch.device) -> None:
    """Wait for all work of ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_REST: Final = 0.25
"""Seconds before a contender's turn: the threads of the one before spin for a while, on cores that it needs."""


def alternate(
    contenders: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int,
    warmup: int,
    inner: int = 1,
    report: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Time contenders in turns. Turns in which the process was stopped are left out.

    :param inner: The calls of a turn; if more than one, another one before them is not timed. On CUDA the device is
        waited for before the first and after the last of them.
    :returns: For each contender, the seconds per call of each turn.
    """
    for name, call in contenders.items():
        for _ in range(warmup):
            call()

        if report is not None:
            report(f"warmed up {name}")

    times: dict[str, list[float]] = {name: [] for name in contenders}

    pauses = _count_pauses()

    for attempt in range(4 * rounds):
        before, turn = len(pauses), {}

        for name, call in contenders.items():
            synchronize(device)

            time.sleep(_REST)

            # One call more, where calls are short: to fill the caches, and for the clock to rise again after the rest.
            if inner > 1:
                call()

                synchronize(device)

            start = time.perf_counter()

            for _ in range(inner):
                call()

            synchronize(device)

            turn[name] = (time.perf_counter() - start) / inner

        paused = len(pauses) != before

        if report is not None:
            last = "  ".join(f"{name} {seconds:.4g}" for name, seconds in turn.items())

            report(f"turn {attempt + 1} (s): {last}{'; left out: the process was paused' if paused else ''}")

        if paused:
            continue

        for name, seconds in turn.items():
            times[name].append(seconds)

        if len(times[name]) == rounds:
            return times

    raise SystemExit(f"Only {len(times[name])} of {rounds} turns ran without a pause (SIGSTOP) of the process.")


def _count_pauses() -> list[int]:
    """Return a list that grows whenever this process goes on after it was stopped, as neighbours that measure do."""
    pauses: list[int] = []

    if hasattr(signal, "SIGCONT"):
        signal.signal(signal.SIGCONT, lambda number, frame: pauses.append(number))

    return pauses


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Return median and range."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Return median and range of ``slow / fast``, turn by turn."""
    return summarize([a / b for a, b in zip(slow, fast, strict=True)])


def format_range(values: Mapping[str, float], digits: int = 3) -> str:
    """Return ``median (min-max)``."""
    return f"{values['median']:.{digits}g} ({values['min']:.{digits}g}-{values['max']:.{digits}g})"


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ‖value − reference‖ / ‖reference‖, in float64."""
    a, b = value.detach().double().cpu(), reference.detach().double().cpu()

    return float((a - b).norm() / b.norm())


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table, ready for README.md."""
    print()

    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")

    print()


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write all numbers, if ``--json`` names a file."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
