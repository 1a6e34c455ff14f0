"""Problems for the compiled kernel, and the kernel where the machine can have it."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

from hubert_plugin import compiled
from hubert_plugin.compiled import CompileError, compile_library, find_compiler
from hubert_plugin.units.byte_kernel import ByteKernel
from hubert_plugin.units.kernel import BYTE_SOURCE, SOURCE, FloatKernel, NearestLibrary
from hubert_plugin.units.word_kernel import WordKernel

Kernel = type[FloatKernel] | type[ByteKernel] | type[WordKernel]

KERNELS: list[Kernel] = [FloatKernel, ByteKernel, WordKernel]


def load(target: str = "native") -> NearestLibrary:
    if platform.machine() != "x86_64" or os.environ.get(compiled.SWITCH) == "0":
        pytest.skip("not for this processor, or switched off")

    try:
        find_compiler()
    except CompileError as ex:
        pytest.skip(str(ex))

    return NearestLibrary(compile_library(SOURCE, target=target), compile_library(BYTE_SOURCE, target=target))


def load_for(cls: Kernel) -> NearestLibrary:
    """Processors with VNNI have no use for sums of 16 bits."""
    return load("haswell" if cls is WordKernel else "native")


def assign(k: FloatKernel | ByteKernel | WordKernel, x: np.ndarray) -> np.ndarray:
    out = np.full(len(x), -1, np.int64)

    k(x, out)

    return out


def exact_scores(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In float64."""
    return 0.5 * np.square(c, dtype=np.float64).sum(axis=1) - x.astype(np.float64) @ c.T.astype(np.float64)


def problem(k: int, dim: int, n: int, seed: int, spread: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    scale = np.exp(spread * rng.standard_normal(dim))
    mean = offset * rng.standard_normal(dim)

    c, x = ((rng.standard_normal((m, dim)) * scale + mean).astype(np.float32) for m in (k, n))

    return c, x


def losses(x: np.ndarray, c: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much the scores of ``units`` are above the lowest, in float64, and the size of what was summed."""
    scores = exact_scores(x, c)

    lost = np.take_along_axis(scores, units[:, None], axis=1)[:, 0] - scores.min(axis=1)

    norms = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(c.astype(np.float64), axis=1).max()

    return lost, norms + np.abs(scores).max(initial=0.0)
