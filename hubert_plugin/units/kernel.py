"""Nearest centroids by compiled sources: by ``nearest.c`` in float32, by ``nearest_bytes.c`` in bytes.

Letters: *M* frames, *D* features of a frame, *K* centroids.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from hubert_plugin.compiled import CompileError, compile_library
from hubert_plugin.registry import Features
from hubert_plugin.units.byte_kernel import ByteCentroids, ByteKernel
from hubert_plugin.units.kernel_layout import half_norms, pack, pad
from hubert_plugin.units.word_kernel import WordCentroids, WordKernel

SOURCE: Final = Path(__file__).with_name("nearest.c")

BYTE_SOURCE: Final = Path(__file__).with_name("nearest_bytes.c")


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

        self.has_first: bool = byte_library.has_first() != 0
        """Whether centroids can be excluded by some of the features."""

        def declare(name: str, *argtypes: Any) -> Any:
            function = getattr(byte_library, name)

            function.argtypes, function.restype = argtypes, c_int64

            return function

        frames_of = (c_void_p, c_int64, c_int64)

        self.nearest_bytes = declare("nearest_bytes", *frames_of, POINTER(ByteCentroids), c_void_p, c_void_p)

        self.num_row_quads = declare("num_row_quads", c_int64)

        self.num_room_bytes = declare("num_room_bytes", c_int64, c_int64)

        self.word_dim: int = byte_library.word_dim()
        """How many features frames may have for sums of 16 bits throughout; 0 if 32 bits are there for all."""

        if self.word_dim > 0:
            self.word_group: int = byte_library.word_group()
            """How many centroids meet a block of frames at a time, by sums of 16 bits."""

            self.nearest_words = declare("nearest_words", *frames_of, POINTER(WordCentroids), c_void_p, c_void_p)

            self.num_word_room_bytes = declare("num_word_room_bytes", c_int64, c_int64)

    def bytes_pay(self, num_centroids: int, dim: int) -> bool:
        """Return whether products of bytes are faster than those of float32. They take a quarter of the time, but
        frames are rounded first, and what is left open is computed again.

        Measured with AVX-512: with 39 features, 50 centroids are even, with 768, 32 are.
        """
        num_products = dim * -(-num_centroids // self.lanes)

        return 0.75 * num_products > (1.5 * dim + 60) * 16 / self.lanes

    def words_pay(self, num_centroids: int, dim: int) -> bool:
        """Return whether sums of 16 bits are faster than float32, with a part of the bound.

        Measured with AVX2, for 13, 26, 39 and 64 features. With fewer centroids, more frames are farther away than any.
        """
        return 13 <= dim <= self.word_dim and num_centroids >= 25


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

    # With many features, centroids are excluded by some of them.
    for dim in (37, 520):
        c, noise = rng.standard_normal((77, dim), np.float32), rng.standard_normal((130, dim), np.float32)

        x = c[rng.integers(0, len(c), len(noise))] + noise

        expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2).argmin(axis=1)

        kernels: list[FloatKernel | ByteKernel | WordKernel] = [FloatKernel(library, c), ByteKernel(library, c)]

        if WordKernel.fits(library, c):
            kernels.append(WordKernel(library, c))

        for kernel in kernels:
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

        padded = pad(centroids, library.lanes)

        self._num_vectors = len(padded) // library.lanes

        self._packed = pack(padded, library.lanes * library.panel)
        self._half_norms = pad(half_norms(centroids), library.lanes, np.inf)

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


def create_byte_kernel(library: NearestLibrary, centroids: Features, part: float = 1.0) -> ByteKernel | WordKernel:
    """Create the kernel of bytes that is the fastest for such centroids.

    Scores of 16 bits are coarser: with the whole bound, several times as much is left to be computed again.

    :param centroids: *Shape:* (K, D).
    :param part: See the kernels.
    """
    if part < 1.0 and WordKernel.fits(library, centroids):
        return WordKernel(library, centroids, part)

    return ByteKernel(library, centroids, part)
