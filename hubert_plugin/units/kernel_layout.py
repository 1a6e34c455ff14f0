"""How centroids are laid out for the kernels in C, and what these are called with."""

from __future__ import annotations

from ctypes import Structure, c_float, c_void_p
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hubert_plugin.registry import Features


class ExactCentroids(Structure):
    """``exact_centroids`` of ``nearest_exact.h``, and the arrays that it points to."""

    _fields_: Final = [  # type: ignore[misc]
        ("centroids", c_void_p),
        ("full_norms", c_void_p),
        ("mean", c_void_p),
        ("max_full_norm", c_float),
        ("mean_norm", c_float),
    ]

    mean_array: NDArray[np.float32]
    """The mean of the centroids, in float32. *Shape:* (D,)."""

    @classmethod
    def of(cls, centroids: Features) -> Self:
        """:param centroids: *Shape:* (K, D)."""
        mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)

        copies, full_norms = np.array(centroids, np.float32, order="C"), half_norms(centroids)

        self = cls(
            copies.ctypes.data,
            full_norms.ctypes.data,
            mean.ctypes.data,
            max_norm(centroids.astype(np.float64)),
            max_norm(mean[None].astype(np.float64)),
        )

        self.mean_array = mean

        # Kept here for as long as they are pointed to.
        self._arrays = (copies, full_norms)

        return self


def pack(centroids: NDArray[Any], size: int) -> NDArray[Any]:
    """Return centroids, ``size`` after ``size``, feature by feature, in one axis."""
    groups = [centroids[i : i + size].swapaxes(0, 1).ravel() for i in range(0, len(centroids), size)]

    return np.concatenate(groups)


def pad(rows: NDArray[Any], multiple: int, value: float = 0.0) -> NDArray[Any]:
    """Append rows of ``value`` up to a multiple of ``multiple`` rows."""
    missing = -len(rows) % multiple

    return np.concatenate([rows, np.full((missing, *rows.shape[1:]), value, rows.dtype)])


def half_norms(centroids: NDArray[Any]) -> NDArray[np.float32]:
    return (0.5 * np.square(centroids, dtype=np.float64).sum(axis=1)).astype(np.float32)


def max_norm(vectors: NDArray[np.float64]) -> float:
    # Rounded up: bounds are not to be missed by the last digit.
    return float(np.linalg.norm(vectors, axis=1).max() * (1.0 + 1e-6))


def call_in_room(function: Any, centroids: Structure, room_size: int, frames: Features, out: NDArray[np.int64]) -> int:
    """Call a kernel of bytes, which writes the nearest centroids to ``out``; the first of equally near ones.

    :param room_size: How many bytes it needs to compute in.
    :param frames: *Shape:* (M, D), contiguous.
    :param out: *Shape:* (M,), contiguous.
    :returns: How many scores the bytes left to be computed again.
    """
    room = np.empty(room_size, np.uint8)

    again: int = function(frames.ctypes.data, *frames.shape, centroids, room.ctypes.data, out.ctypes.data)

    return again
