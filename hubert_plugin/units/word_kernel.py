"""Nearest centroids by ``words_avx2.h``, by products of bytes that are summed in 16 bits.

Letters: *M* frames, *D* features of a frame, *K* centroids, *G* groups of centroids.
"""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.registry import Features
from hubert_plugin.units.kernel_layout import ExactCentroids, call_in_room, max_norm, pack, pad

if TYPE_CHECKING:
    from hubert_plugin.units.kernel import NearestLibrary

_REACH: Final = 1.5
"""How many times as long as the longest centroid, and how many times as large as the largest of its numbers, frames may
be, without the mean of the centroids: those beyond are scored exactly, one by one. More makes steps coarser for all."""

_MAX_OFFSET: Final = 2.0**12
"""How many steps the mean may be from zero: frames and their mean are rounded to float32 in steps, 2^-11 off then."""

_MAX_SCORE: Final = np.iinfo(np.int16).max - 1

_MAX_CENTROIDS: Final = 1 << 16


class WordCentroids(Structure):
    """``word_centroids`` of ``words_avx2.h``."""

    _fields_: Final = [  # type: ignore[misc]
        ("num_centroids", c_int64),
        ("num_groups", c_int64),
        ("offsets", c_void_p),
        ("bytes", c_void_p),
        ("starts", c_void_p),
        ("exact", ExactCentroids),
        ("inverse", c_float),
        ("max_squares", c_float),
        ("width_per_rest", c_float),
        ("width_per_norm", c_float),
        ("width", c_float),
    ]


@final
class WordKernel:
    """As :class:`~hubert_plugin.units.byte_kernel.ByteKernel`, and of the same units; for few features."""

    def __init__(self, library: NearestLibrary, centroids: Features, part: float = 1.0) -> None:
        """
        :param centroids: *Shape:* (K, D); D is at most ``library.word_dim``.
        :param part: Which part of the bound of the rounding is waited for; with less than 1 some units may be others.
        :raises ValueError: They are too far from zero, or all the same (see :meth:`fits`).
        """
        self._library = library

        num_centroids, dim = centroids.shape

        self._exact = ExactCentroids.of(centroids)

        centred = centroids.astype(np.float64) - self._exact.mean_array

        frame_step, centroid_step = _choose_steps(centred)

        if not _is_near(self._exact.mean_array, frame_step):
            raise ValueError("`centroids` must differ, and not be far from zero by what they have in common.")

        whole = np.rint(centred / centroid_step)
        rests = centred / centroid_step - whole

        half_norms = np.square(centred).sum(axis=1) / (2.0 * frame_step * centroid_step)

        starts = np.rint(half_norms) + 128.0 * whole.sum(axis=1)

        # Nothing is nearest to a score that is as high as can be.
        padded_starts = pad(starts.astype(np.int64), library.word_group, np.iinfo(np.int16).max)

        offsets = np.zeros(library.word_dim, np.float32)
        offsets[:dim] = -self._exact.mean_array.astype(np.float64) / frame_step

        # Kept here for as long as they are pointed to.
        self._arrays: dict[str, NDArray[Any]] = {
            "offsets": offsets,
            "bytes": pack(pad(_twice(_pairs(-whole)), library.word_group), library.word_group),
            "starts": _twice(padded_starts.astype(np.uint16).view(np.int16)),
        }

        max_whole = max(max_norm(whole), 1.0)

        # Rounding to bytes may add half a step to each feature.
        max_frame = (_MAX_SCORE - half_norms.max()) / max_whole - 0.5 * np.sqrt(dim) - 1.0

        # Both of two scores may be off, and what sums in float32 lack.
        per_rest, per_norm = (2.0 * part * (1.0 + 1e-5) * norm for norm in (max_whole, max_norm(rests)))

        self._struct = WordCentroids(
            num_centroids=num_centroids,
            num_groups=len(padded_starts) // library.word_group,
            exact=self._exact,
            inverse=1.0 / frame_step,
            max_squares=max_frame**2 if max_frame > 0.0 else -1.0,
            width_per_rest=per_rest,
            width_per_norm=per_norm,
            # Half of one for each of the two scores, and for the width, as these are rounded.
            width=2.0 + per_rest * _MAX_OFFSET * 2.0**-22 * np.sqrt(dim),
            **{name: array.ctypes.data for name, array in self._arrays.items()},
        )

        self._room_size: int = library.num_word_room_bytes(dim, self._struct.num_groups)

    @staticmethod
    def fits(library: NearestLibrary, centroids: Features) -> bool:
        """Return whether the kernel is for such centroids: of few features, not far from zero for their size, and no
        more than 16 bits can count.

        :param centroids: *Shape:* (K, D).
        """
        if centroids.shape[1] > library.word_dim or len(centroids) > _MAX_CENTROIDS:
            return False

        # As the kernel has it: at the limit, digits of float32 decide.
        mean = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)

        return _is_near(mean, _choose_steps(centroids.astype(np.float64) - mean)[0])

    def __call__(self, frames: Features, out: NDArray[np.int64]) -> int:
        """Write the nearest centroids to ``out``: see :func:`~hubert_plugin.units.kernel_layout.call_in_room`."""
        return call_in_room(self._library.nearest_words, self._struct, self._room_size, frames, out)


def _choose_steps(centred: NDArray[np.float64]) -> tuple[float, float]:
    """Return the sizes of the steps of frames and of centroids.

    Products of both are to fit into 16 bits: ``|x - m| |c - m| + |c - m|² / 2`` in steps, for frames that are
    :data:`_REACH` times as long as the longest centroid. Frames are to fit into bytes, and so are two neighbours of a
    centroid together: the processor adds two products, of at most 255 with at most 128 in sum, before it wraps around.

    :param centred: *Shape:* (K, D).
    """
    largest, longest = max(float(np.abs(centred).max()), 1e-30), max(max_norm(centred), 1e-30)

    least_frame = _REACH * largest / 126.0

    # Each of the two may be rounded up by a half.
    least_centroid = max(float(np.abs(_pairs_of(centred)).sum(axis=-1).max()), 1e-30) / 127.0

    # A part is left for what rounding adds.
    product = (_REACH + 0.5) * longest**2 / (0.95 * _MAX_SCORE)

    frame = max(least_frame, float(np.sqrt(product)))
    centroid = max(least_centroid, product / frame)

    return max(least_frame, product / centroid), centroid


def _is_near(mean: NDArray[Any], frame_step: float) -> bool:
    return bool(np.abs(mean).max() <= _MAX_OFFSET * frame_step)


def _pairs_of(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return two features after another: (K, D) as (K, ceil(D / 2), 2), with zeros from D on."""
    padded = np.zeros((len(numbers), numbers.shape[1] + numbers.shape[1] % 2))

    padded[:, : numbers.shape[1]] = numbers

    return padded.reshape(len(numbers), -1, 2)


def _pairs(whole: NDArray[np.float64]) -> NDArray[np.int16]:
    """Return two features as bytes, in one number of 16 bits: *Shape:* (K, ceil(D / 2))."""
    return np.ascontiguousarray(_pairs_of(whole).astype(np.int8)).view(np.int16)[..., 0]


def _twice(numbers: NDArray[np.int16]) -> NDArray[np.int32]:
    """Return each number twice, in 32 bits: to spread these over a vector takes one instruction."""
    return np.ascontiguousarray(np.repeat(numbers[..., None], 2, axis=-1)).view(np.int32)[..., 0]
