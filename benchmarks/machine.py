"""The machine: what it is, and how fast it multiplies matrices.

The matmul limit is measured, never read off a data sheet: the best rate of ``torch.mm`` over a few shapes, those of the
Transformer's linear layers among them. The share of it that a step reaches says how much is left to gain (FACTS 11).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import DTYPES, synchronize

Shape = tuple[int, int, int]
"""Rows, inner dimension and columns of a matrix product."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return model, cores, threads, versions and load."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16_units": has_bf16_units(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average": _load_average(),
        "date": time.strftime("%Y-%m-%d"),
    }

    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["gpu_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        machine["cuda"] = torch.version.cuda

    return machine


def print_machine(machine: dict[str, Any]) -> None:
    gpu = f"{machine['gpu']} ({machine['gpu_memory_gib']} GiB, CUDA {machine['cuda']}), " if "gpu" in machine else ""

    print(
        f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"Python {machine['python']}, {machine['date']}, load {machine['load_average']}"
    )


def _load_average() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")

    return path.read_text() if path.exists() else ""


def _cpu_model() -> str:
    fields: dict[str, str] = {}

    for line in _cpu_info().splitlines():
        key, _, value = line.partition(":")

        fields.setdefault(key.strip(), value.strip())

    if "model name" not in fields:
        return platform.processor() or platform.machine()

    return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"


def has_bf16_units(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()

    words = set(_cpu_info().split())

    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def matmul_limit(device: torch.device, dtype: str, shapes: Sequence[Shape], seconds: float = 1.0) -> dict[str, Any]:
    """Measure matrix products on random data.

    :param seconds: The time given to each shape.
    :returns: ``flops`` (operations per second, the median of the best shape) and ``by_shape``.
    """
    by_shape: dict[str, float] = {}

    for rows, inner, columns in shapes:
        a = torch.randn(rows, inner, device=device).to(DTYPES[dtype])
        b = torch.randn(inner, columns, device=device).to(DTYPES[dtype])

        for _ in range(3):
            a @ b

        calls = 10 if device.type == "cuda" else 1

        times: list[float] = []

        while len(times) < 3 or (sum(times) * calls < seconds and len(times) < 200):
            synchronize(device)

            start = time.perf_counter()

            for _ in range(calls):
                a @ b

            synchronize(device)

            times.append((time.perf_counter() - start) / calls)

        by_shape[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / median(times)

    return {"flops": max(by_shape.values()), "by_shape": by_shape}


def format_limit(dtype: str, limit: dict[str, Any]) -> str:
    parts = ", ".join(f"{shape} {flops / 1e9:.0f}" for shape, flops in limit["by_shape"].items())

    return f"matmul {dtype}: {limit['flops'] / 1e9:.0f} GFLOP/s at best ({parts})"
