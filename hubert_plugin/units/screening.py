"""Nearest centroids from rounded products, with how sure they are.

Letters: *M* frames, *D* features of a frame, *K* centroids.

The mean of the centroids is removed, frames and centroids are rounded to a half (:class:`HalfScreen`) or a quarter
(:class:`ByteScreen`) of their bits, and what is nearest is told together with the frames whose two best scores are
closer than the rounding can explain. Those are for the caller to score again.

The rounding of frame and centroid makes D errors that add like random numbers. Those of the frame meet the difference
of two centroids, which is at most as long as both together; those of the centroids come twice.
"""

from __future__ import annotations

import math
from typing import Final, Protocol, final

import numpy as np
import torch
from torch import Tensor

_BF16_STD: Final = 2.0**-9 / math.sqrt(3.0)
"""The standard deviation of the relative error of rounding to bfloat16, at the most."""

_INT8_STD: Final = 1.0 / math.sqrt(12.0)
"""The standard deviation of rounding to whole numbers."""

_DEVIATIONS: Final = 6.0
"""How many standard deviations of the rounding two scores must be apart."""

_MAX_WHOLE: Final = 2.0**30
"""What products and squared lengths of the byte screen may each be at most, for 32 bits to hold their sum."""

MAX_BYTE_DIM: Final = int(_MAX_WHOLE) // 128**2
"""So many features a product of bytes may have."""


class Screen(Protocol):
    """Finds nearest centroids with little precision."""

    def __call__(self, frames: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest centroid of each frame, and the frames (as indices) of which it is not sure.

        :param frames: *Shape:* (M, D), float32.
        :param room: What :meth:`make_room` returned, for as many frames or more; it is overwritten.
        :returns: *Shape:* (M,) and (N,), int64.
        """

    def make_room(self, num_frames: int) -> Tensor:
        """Return memory to compute in, which one thread may use at a time."""


@final
class HalfScreen:
    """Products of bfloat16."""

    def __init__(self, centroids: Tensor) -> None:
        """:param centroids: *Shape:* (K, D), float32."""
        self._mean, centred, self._half_norms, self._max_norm = _centre(centroids)

        self._minus_t = (-centred).T.contiguous().to(torch.bfloat16)  # (D, K)

    def make_room(self, num_frames: int) -> Tensor:
        return torch.empty((num_frames, self._minus_t.size(1)), device=self._minus_t.device)

    def __call__(self, frames: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        x = frames - self._mean

        products = x.to(torch.bfloat16) @ self._minus_t  # (M, K)

        scores = torch.add(products, self._half_norms, out=room[: len(frames)])

        best = first_lowest(scores)

        norms = torch.linalg.vector_norm(x, dim=1)

        variance = (2.0 * _BF16_STD * self._max_norm * norms).square_().div_(frames.size(1))

        # The products come out rounded, too, each by a share of its own size.
        variance += 2.0 * (_BF16_STD * products.gather(1, best.unsqueeze(1)).squeeze(1).float()).square_()

        return best, _unsure(_gaps(scores, best), variance)


@final
class ByteScreen:
    """Products of bytes, summed in whole numbers: scores are never turned into floating-point numbers.

    Frames of a block share the size of a step, so that one pass rounds them.
    """

    def __init__(self, centroids: Tensor) -> None:
        """:param centroids: *Shape:* (K, D), float32, on a CPU; D is at most :data:`MAX_BYTE_DIM`."""
        self._mean, centred, self._half_norms, self._max_norm = _centre(centroids)

        self._step = max(float(centred.abs().max()), 1e-30) / 127.0

        self._minus_t = (centred / -self._step).round_().to(torch.int8).T  # (D, K)

        # With a finer step, squared lengths would not be held.
        self._finest = max(float(self._half_norms.max()) / (self._step * _MAX_WHOLE), 1e-32)

    def make_room(self, num_frames: int) -> Tensor:
        dim, num_centroids = self._minus_t.shape

        return torch.empty(num_frames * (dim + num_centroids))

    def __call__(self, frames: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        num_frames, dim = frames.shape

        num_centroids = self._minus_t.size(1)

        x = torch.sub(frames, self._mean, out=room[: num_frames * dim].view(num_frames, dim))

        lowest, highest = torch.aminmax(x)

        step = max(-float(lowest), float(highest), 127.0 * self._finest) / 127.0

        space = room[x.numel() : x.numel() + num_frames * num_centroids].view(torch.int32)

        scores = torch._int_mm(_to_bytes(x, step), self._minus_t, out=space.view(num_frames, num_centroids))

        unit = step * self._step  # what a score of 1 is worth

        scores += (self._half_norms / unit).round_().to(torch.int32)

        best = first_lowest(scores)

        norms = torch.linalg.vector_norm(x, dim=1)

        variance = 2.0 * _INT8_STD**2 * ((norms * self._step).square_() + (self._max_norm * step) ** 2)

        return best, _unsure(_gaps(scores, best).float().mul_(unit), variance)


def first_lowest(scores: Tensor) -> Tensor:
    """Return the column of the smallest value of each row. NumPy's loop is several times PyTorch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmin(axis=1))

    return scores.argmin(dim=1)


def _centre(centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the mean, what is left without it, half of the squared lengths of that, and the greatest length."""
    mean = centroids.mean(dim=0)

    centred = centroids - mean

    half_norms = centred.double().square().sum(dim=1).mul_(0.5).float()

    return mean, centred, half_norms, float(centred.norm(dim=1).max())


def _to_bytes(x: Tensor, step: float) -> Tensor:
    """Return ``x / step``, rounded, in one pass; dividing, rounding and converting are three. *Shape:* as ``x``."""
    quantized = torch.quantize_per_tensor(x, step, 0, torch.qint8)

    # `int_repr()` would copy, which takes four times as long.
    return torch.empty(0, dtype=torch.int8).set_(quantized.untyped_storage(), 0, x.shape, x.stride())


def _gaps(scores: Tensor, best: Tensor) -> Tensor:
    """Return by how much the best score is ahead of the second best. ``scores`` are spoiled. *Shape:* (M,)."""
    columns = best.unsqueeze(1)

    lowest = scores.gather(1, columns)

    highest = torch.inf if scores.is_floating_point() else np.iinfo(np.int32).max

    return scores.scatter_(1, columns, highest).amin(dim=1).sub_(lowest.squeeze(1))


def _unsure(gaps: Tensor, variance: Tensor) -> Tensor:
    return torch.nonzero(gaps <= _DEVIATIONS * variance.sqrt_()).squeeze(1)
