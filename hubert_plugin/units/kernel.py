"""Nearest centroids by ``nearest.c`` and ``nearest_bytes.c``: layouts of centroids, and calls.

Letters: *M* frames, *D* features of a frame, *K* centroids.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from hubert_plugin.compiled import CompileError, compile_library
from hubert_plugin.registry import Features

SOURCE: Final = Path(__file__).with_name("nearest.c")

BYTE_SOURCE: Final = Path(__file__).with_name("nearest_bytes.c")


BYTE_NORMS: Final = (1e-12, 1e15)
"""How long the longest centroid may be, without the mean of all, for float32 to hold products of steps and squares."""


_MIN_LEVELS: Final = 40
"""To how many steps the largest number of centroids is rounded at least: fewer leave more candidates, and 37 won
nothing over 56 any more (768 features, 500 centroids)."""


class _ByteCentroids(Structure):
    """``byte_centroids`` of ``nearest_bytes.c``."""

    _fields_: Final = [  # type: ignore[misc]
        ("num_centroids", c_int64),
        ("num_groups", c_int64),
        ("num_together", c_int64),
        ("mean", c_void_p),
        ("bytes", c_void_p),
        ("offsets", c_void_p),
        ("half_norms", c_void_p),
        ("centroids", c_void_p),
        ("full_norms", c_void_p),
        ("step", c_float),
        ("max_norm", c_float),
        ("max_bytes_norm", c_float),
        ("max_rest", c_float),
        ("max_full_norm", c_float),
        ("mean_norm", c_float),
    ]


@final
class NearestLibrary:
    """The compiled sources. Calls let other threads of Python run."""

    def __init__(self, library: ctypes.CDLL, byte_library: ctypes.CDLL) -> None:
        self.lanes: int = library.lanes()
        """How many centroids are scored by one instruction."""

        self.panel: int = library.panel()
        """How many such vectors of centroids meet a group of frames at a time."""

        self.nearest_f32: Any = library.nearest_f32

        self.nearest_f32.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p]
        self.nearest_f32.restype = None

        self.group: int = byte_library.group()
        """How many centroids meet a block of frames at a time, by bytes."""

        self.zero: int = byte_library.zero()
        """What frames of zeros are as bytes."""

        self.together: int = byte_library.together()
        """How many quads are summed in 16 bits, at most; 0 if 32 bits are there for all."""

        self.nearest_bytes: Any = byte_library.nearest_bytes

        self.nearest_bytes.argtypes = [c_void_p, c_int64, c_int64, POINTER(_ByteCentroids), c_void_p, c_void_p]
        self.nearest_bytes.restype = c_int64

        self.num_room_bytes: Any = byte_library.num_room_bytes

        self.num_room_bytes.argtypes = [c_int64, c_int64]
        self.num_room_bytes.restype = c_int64

    def bytes_pay(self, num_centroids: int, dim: int) -> bool:
        """Return whether products of bytes are faster than those of float32. They take a quarter of the time, but
        frames are rounded first, and what is left open is computed again.

        Measured with AVX-512: with 39 features, 50 centroids are even, with 768, 32 are.
        """
        num_products = dim * -(-num_centroids // self.lanes)

        return 0.75 * num_products > (1.5 * dim + 60) * 16 / self.lanes


@lru_cache(maxsize=1)
def load_nearest_library() -> NearestLibrary | None:
    """Return the compiled sources; ``None`` if they cannot be had, or do not compute what they should."""
    try:
        library = NearestLibrary(compile_library(SOURCE), compile_library(BYTE_SOURCE))
    except (CompileError, AttributeError) as ex:
        log.info("Units are assigned by NumPy and PyTorch, which is slower than in compiled form: {}.", ex)

        return None

    if not _computes_well(library):
        log.warning("Units are assigned by NumPy and PyTorch: the compiled form computes wrongly here.")

        return None

    return library


def _computes_well(library: NearestLibrary) -> bool:
    rng = np.random.default_rng(0)

    c, x = rng.standard_normal((77, 37), np.float32), rng.standard_normal((50, 37), np.float32)

    expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2).argmin(axis=1)

    for kernel in (FloatKernel(library, c), ByteKernel(library, c)):
        out = np.empty(len(x), np.int64)

        kernel(x, out)

        if not np.array_equal(out, expected):
            return False

    return True


@final
class FloatKernel:
    """Nearest centroids by float32 sums, feature by feature."""

    def __init__(self, library: NearestLibrary, centroids: Features) -> None:
        """:param centroids: *Shape:* (K, D)."""
        self._library = library

        padded = _pad(centroids, library.lanes)

        self._num_vectors = len(padded) // library.lanes

        self._packed = _pack(padded, library.lanes * library.panel)
        self._half_norms = _pad(_half_norms(centroids), library.lanes, np.inf)

    def __call__(self, frames: Features, out: NDArray[np.int64]) -> None:
        """Write the nearest centroids to ``out``; the first of equally near ones.

        :param frames: *Shape:* (M, D), contiguous.
        :param out: *Shape:* (M,), contiguous.
        """
        self._library.nearest_f32(
            frames.ctypes.data,
            *frames.shape,
            self._packed.ctypes.data,
            self._half_norms.ctypes.data,
            self._num_vectors,
            out.ctypes.data,
        )


@final
class ByteKernel:
    """Nearest centroids by products of bytes that tell which centroids it can be, and exact sums for these.

    The units are those of exact arithmetic: where two are closer than float32 tells apart, float64 decides. That holds
    for frames up to 1e18, whose squares float32 holds, and for centroids in :data:`BYTE_NORMS`.
    """

    def __init__(self, library: NearestLibrary, centroids: Features) -> None:
        """:param centroids: *Shape:* (K, D); D is at most 2^16, for 32 bits to hold sums of bytes."""
        self._library = library

        num_centroids, dim = centroids.shape

        mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)

        centred = centroids.astype(np.float64) - mean

        num_together, num_levels = _plan_sums(centred, library)

        step = np.float32(max(float(np.abs(centred).max()), 1e-30) / num_levels)

        whole = np.rint(centred / step).clip(-num_levels, num_levels)

        padded = _pad(_quads(whole, np.int8), library.group)  # (K, Q, 4)

        # Kept here for as long as they are pointed to.
        self._arrays: dict[str, NDArray[Any]] = {
            "mean": mean,
            "bytes": _pack(padded, library.group),
            "offsets": padded.sum(axis=(1, 2), dtype=np.int32) * np.int32(-library.zero),
            "half_norms": _pad(_half_norms(centred), library.group, np.inf),
            "centroids": np.array(centroids, np.float32, order="C"),
            "full_norms": _half_norms(centroids),
        }

        self._struct = _ByteCentroids(
            num_centroids=num_centroids,
            num_groups=len(padded) // library.group,
            num_together=num_together,
            step=float(step),
            max_norm=_max_norm(centred),
            max_bytes_norm=_max_norm(whole * np.float64(step)),
            max_rest=_max_norm(centred - whole * np.float64(step)),
            max_full_norm=_max_norm(centroids.astype(np.float64)),
            mean_norm=_max_norm(mean[None].astype(np.float64)),
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )

        self._room_size: int = library.num_room_bytes(dim, self._struct.num_groups)

    def __call__(self, frames: Features, out: NDArray[np.int64]) -> int:
        """Write the nearest centroids to ``out``; the first of equally near ones.

        :param frames: *Shape:* (M, D), contiguous.
        :param out: *Shape:* (M,), contiguous.
        :returns: How many scores the bytes left to be computed again.
        """
        room = np.empty(self._room_size, np.uint8)

        again: int = self._library.nearest_bytes(
            frames.ctypes.data, *frames.shape, self._struct, room.ctypes.data, out.ctypes.data
        )

        return again


def _plan_sums(centred: NDArray[np.float64], library: NearestLibrary) -> tuple[int, int]:
    """Return how many quads of products are summed in 16 bits, and to how many steps the largest number is rounded.

    Fewer steps let more quads fit; what they leave open is computed again.

    :param centred: *Shape:* (K, D).
    """
    if library.together == 0:
        return 0, 127

    quads = _quads(centred / max(float(np.abs(centred).max()), 1e-30), np.float64)

    # What the bytes of centroids that meet in 16 bits may add up to.
    largest_sum = np.iinfo(np.int16).max // (2 * library.zero - 1)

    for num_together in range(min(quads.shape[1], library.together), 1, -1):
        # Rounded, each of 2 num_together numbers may be larger by a half. (A single centroid is all zeros.)
        num_levels = int((largest_sum - num_together) / max(_largest_sum(quads, num_together), 1.0))

        if num_levels >= _MIN_LEVELS:
            return num_together, min(num_levels, 127)

    return 1, 127


def _quads(centroids: NDArray[np.float64], dtype: type[np.generic]) -> NDArray[Any]:
    """Return four features after another, as they are multiplied: (K, D) as (K, Q, 4), with zeros from D on."""
    num_centroids, dim = centroids.shape

    quads = np.zeros((num_centroids, -(-dim // 4) * 4), dtype)

    quads[:, :dim] = centroids

    return quads.reshape(num_centroids, -1, 4)


def _largest_sum(quads: NDArray[np.float64], num_together: int) -> float:
    """Return the largest sum of numbers of one sign that meet in 16 bits: neighbours, of ``num_together`` quads.

    Frames, as bytes, are not negative: sums of products are between those of the negative numbers and of the others.

    :param quads: *Shape:* (K, Q, 4).
    """
    pairs = quads.reshape(*quads.shape[:2], 2, 2)

    starts = np.arange(0, quads.shape[1], num_together)

    sums = [np.add.reduceat(part.sum(axis=-1), starts, axis=1) for part in (-pairs.clip(max=0.0), pairs.clip(min=0.0))]

    return max(float(s.max()) for s in sums)


def fits_bytes(centroids: Features) -> bool:
    """Return whether the longest centroid, without the mean of all, is neither too short nor too long."""
    lowest, highest = BYTE_NORMS

    return lowest <= _max_norm(centroids - centroids.mean(axis=0, dtype=np.float64)) <= highest


def _pack(centroids: NDArray[Any], size: int) -> NDArray[Any]:
    """Return centroids, ``size`` after ``size``, feature by feature, in one axis."""
    groups = [centroids[i : i + size].swapaxes(0, 1).ravel() for i in range(0, len(centroids), size)]

    return np.concatenate(groups)


def _pad(rows: NDArray[Any], multiple: int, value: float = 0.0) -> NDArray[Any]:
    """Append rows of ``value`` up to a multiple of ``multiple`` rows."""
    missing = -len(rows) % multiple

    return np.concatenate([rows, np.full((missing, *rows.shape[1:]), value, rows.dtype)])


def _half_norms(centroids: NDArray[Any]) -> NDArray[np.float32]:
    return (0.5 * np.square(centroids, dtype=np.float64).sum(axis=1)).astype(np.float32)


def _max_norm(vectors: NDArray[np.float64]) -> float:
    # Rounded up: bounds are not to be missed by the last digit.
    return float(np.linalg.norm(vectors, axis=1).max() * (1.0 + 1e-6))
