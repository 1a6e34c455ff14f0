"""Nearest centroids by ``nearest_bytes.c``, by products of bytes.

Letters: *M* frames, *D* features of a frame, *K* centroids.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.registry import Features
from hubert_plugin.units.kernel_layout import ExactCentroids, call_in_room, half_norms, max_norm, pack, pad

if TYPE_CHECKING:
    from hubert_plugin.units.kernel import NearestLibrary

BYTE_NORMS: Final = (1e-12, 1e15)
"""How long the longest centroid may be, without the mean of all, for float32 to hold products of steps and squares."""


_MIN_STEPS: Final = 40
"""To how many steps the largest number of centroids is rounded at least: fewer leave more candidates, and 37 won
nothing over 56 any more (768 features, 500 centroids)."""


_MAX_LEVELS: Final = 4
"""``MAX_LEVELS`` of ``nearest_bytes.c``."""

_FIRST_SHARES: Final = (0.625, 0.5, 0.375, 0.25)
"""Which shares of the features are tried as those that exclude centroids before the others are looked at, in this
order."""

_MIN_FIRST_DIM: Final = 512
"""With fewer features, what a part of them leaves to be done weighs more: most problems of 128 and 256 took as long, or
longer. Above, those of 768 were measured."""


class FirstQuads(Structure):
    """``first_quads`` of ``nearest_bytes.c``."""

    _fields_: Final = [  # type: ignore[misc]
        ("num_quads", c_int64),
        ("offsets", c_void_p),
        ("rest_norms", c_void_p),
        ("half_rests", c_void_p),
    ]


class ByteCentroids(Structure):
    """``byte_centroids`` of ``nearest_bytes.c``."""

    _fields_: Final = [  # type: ignore[misc]
        ("num_centroids", c_int64),
        ("num_groups", c_int64),
        ("num_together", c_int64),
        ("bytes", c_void_p),
        ("rows", c_void_p),
        ("places", c_void_p),
        ("offsets", c_void_p),
        ("half_norms", c_void_p),
        ("exact", ExactCentroids),
        ("step", c_float),
        ("max_norm", c_float),
        ("max_bytes_norm", c_float),
        ("max_rest", c_float),
        ("part", c_float),
        ("num_levels", c_int64),
        ("levels", FirstQuads * _MAX_LEVELS),
    ]


@final
class ByteKernel:
    """Nearest centroids by products of bytes that tell which centroids it can be, and exact sums for these.

    The units are those of exact arithmetic: where two are closer than float32 tells apart, float64 decides. That holds
    for frames up to 1e18, whose squares float32 holds, and for centroids in :data:`BYTE_NORMS`.
    """

    def __init__(self, library: NearestLibrary, centroids: Features, part: float = 1.0) -> None:
        """
        :param centroids: *Shape:* (K, D); D is at most 2^16, for 32 bits to hold sums of bytes.
        :param part: Which part of the bound of the rounding is waited for; with less than 1 some units may be others.
        """
        self._library = library

        num_centroids, dim = centroids.shape

        self._exact = ExactCentroids.of(centroids)

        mean = self._exact.mean_array

        centred = centroids.astype(np.float64) - mean

        num_row_quads: int = library.num_row_quads(dim)

        shares = _FIRST_SHARES if library.has_first and dim >= _MIN_FIRST_DIM else ()

        order = _order_quads(centred) if shares else np.arange(-(-dim // 4))

        num_together, num_steps = _plan_sums(centred, order, library)

        step = np.float32(max(float(np.abs(centred).max()), 1e-30) / num_steps)

        whole = np.rint(centred / step).clip(-num_steps, num_steps)

        quads = _quads(whole, np.int8)  # (K, Q, 4)

        padded = pad(quads[:, order], library.group)

        # Kept here for as long as they are pointed to.
        self._arrays: dict[str, NDArray[Any]] = {
            "bytes": pack(padded, library.group),
            "rows": np.pad(quads, ((0, 0), (0, num_row_quads - len(order)), (0, 0))),
            "places": np.concatenate([np.argsort(order), np.arange(len(order), num_row_quads)]).astype(np.int32),
            "offsets": _offsets(padded, library.zero),
            "half_norms": pad(half_norms(centred), library.group, np.inf),
        }

        self._firsts = [_FirstPart(padded, max(1, round(s * len(order))), float(step), library.zero) for s in shares]

        self._struct = ByteCentroids(
            num_centroids=num_centroids,
            num_groups=len(padded) // library.group,
            num_together=num_together,
            step=float(step),
            max_norm=max_norm(centred),
            max_bytes_norm=max_norm(whole * np.float64(step)),
            max_rest=max_norm(centred - whole * np.float64(step)),
            part=part,
            num_levels=len(self._firsts),
            levels=tuple(f.struct for f in self._firsts),
            exact=self._exact,
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )

        self._room_size: int = library.num_room_bytes(dim, self._struct.num_groups)

    def __call__(self, frames: Features, out: NDArray[np.int64]) -> int:
        """Write the nearest centroids to ``out``: see :func:`~hubert_plugin.units.kernel_layout.call_in_room`."""
        return call_in_room(self._library.nearest_bytes, self._struct, self._room_size, frames, out)


class _FirstPart:
    """Some quads of centroids, the first ones, and what is kept of the others."""

    def __init__(self, quads: NDArray[np.int8], num_first: int, step: float, zero: int) -> None:
        """
        :param quads: *Shape:* (K, Q, 4).
        :param step: What bytes count.
        """
        rests = quads[:, num_first:].reshape(len(quads), -1).astype(np.float64)

        self._offsets = _offsets(quads[:, :num_first], zero)

        # Rounded up, as in `max_norm`.
        self._rest_norms = (np.linalg.norm(rests, axis=1) * (1.0 + 1e-6)).astype(np.float32)

        self._half_rests = (0.5 * np.square(step * rests).sum(axis=1)).astype(np.float32)

        arrays = (self._offsets, self._rest_norms, self._half_rests)

        self.struct = FirstQuads(num_first, *(array.ctypes.data for array in arrays))


def _offsets(quads: NDArray[np.int8], zero: int) -> NDArray[np.int32]:
    """Return what takes the place of zero out of sums of products. *Shape:* (K, Q, 4), and (K,)."""
    return quads.sum(axis=(1, 2), dtype=np.int32) * np.int32(-zero)


def _order_quads(centred: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the quads of features, those in which centroids differ most first: (Q,).

    :param centred: *Shape:* (K, D).
    """
    spread = np.square(_quads(centred, np.float64)).sum(axis=(0, 2))

    return np.argsort(-spread, kind="stable")


def _plan_sums(centred: NDArray[np.float64], order: NDArray[np.int64], library: NearestLibrary) -> tuple[int, int]:
    """Return how many quads of products are summed in 16 bits, and to how many steps the largest number is rounded.

    Fewer steps let more quads fit; what they leave open is computed again.

    :param centred: *Shape:* (K, D).
    :param order: In which order quads are summed. *Shape:* (Q,).
    """
    if library.together == 0:
        return 0, 127

    quads = _quads(centred / max(float(np.abs(centred).max()), 1e-30), np.float64)[:, order]

    # What the bytes of centroids that meet in 16 bits may add up to.
    largest_sum = np.iinfo(np.int16).max // (2 * library.zero - 1)

    for num_together in range(min(quads.shape[1], library.together), 1, -1):
        # Rounded, each of 2 num_together numbers may be larger by a half. (A single centroid is all zeros.)
        num_steps = int((largest_sum - num_together) / max(_largest_sum(quads, num_together), 1.0))

        if num_steps >= _MIN_STEPS:
            return num_together, min(num_steps, 127)

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

    return lowest <= max_norm(centroids - centroids.mean(axis=0, dtype=np.float64)) <= highest
