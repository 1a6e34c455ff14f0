"""The nearest centroid of each frame.

Letters: *M* frames, *D* features of a frame, *K* centroids.

``argmin_k ‖x - c_k‖² = argmin_k ‖c_k‖² / 2 - x · c_k``: the term ``‖x‖²`` is the same for every centroid of a frame and
is left out, as scikit-learn does, which also keeps float32 rounding out of near ties.

In float32 (``fp32``) the labels are those of scikit-learn's ``predict`` and fairseq's ``dump_km_label.py``.

``bf16`` and ``int8`` screen first: the mean of the centroids is removed, products are computed in a half or a quarter
of the bits, and every frame whose two best scores are closer than the rounding can explain is scored again in float32.
So the labels are those of ``fp32``, but for near ties that six standard deviations of the rounding do not cover.
``auto`` is ``int8`` where the CPU multiplies bytes (VNNI) and there are enough features for it to pay, else ``fp32``.
"""

from __future__ import annotations

import math
from typing import Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin.units.threads import Workers, blocks_of, split_range

Precision = Literal["auto", "fp32", "bf16", "int8"]

PRECISIONS: Final = ("auto", "fp32", "bf16", "int8")

_SCORES: Final = 1 << 16
"""Scores that are computed at a time on a CPU: a quarter of a megabyte, which a core's cache holds."""

_GPU_SCORES: Final = 1 << 28

_BF16_STD: Final = 2.0**-9 / math.sqrt(3.0)
"""The standard deviation of the relative error of rounding to bfloat16, at the most."""

_INT8_STD: Final = 1.0 / math.sqrt(12.0)
"""The standard deviation of rounding to whole numbers."""

_DEVIATIONS: Final = 6.0
"""How many standard deviations of the rounding two scores must be apart."""

_MIN_SCREEN_DIM: Final = 128
"""With fewer features, a product is so cheap that the passes over the scores cost more than it saves."""

_MAX_NEAR: Final = 0.4
"""If more than this share of a block has to be scored again, screening does not pay, and is given up for the call."""


@final
class NearestCentroid:
    """Finds nearest centroids; the centroids are laid out for it once."""

    def __init__(
        self, centroids: NDArray[np.float32] | Tensor, device: torch.device | str = "cpu", precision: Precision = "auto"
    ) -> None:
        """
        :param centroids: *Shape:* (K, D).
        :raises ValueError: There is no such precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, but is '{precision}' instead.")

        c = torch.as_tensor(centroids, dtype=torch.float32, device=device)

        self.device = c.device

        self.num_centroids, self.dim = c.shape

        self.precision = self._choose_precision(precision)

        self._centroids_t = (-c).T.contiguous()  # (D, K)
        self._half_norms = c.double().square().sum(dim=1).mul_(0.5).float()  # (K,)

        if self.precision != "fp32":
            self._mean = c.mean(dim=0)

            centred = c - self._mean

            self._centred_half_norms = centred.double().square().sum(dim=1).mul_(0.5).float()

            self._max_norm = float(centred.norm(dim=1).max())

            if self.precision == "bf16":
                self._screen_t = (-centred).T.contiguous().to(torch.bfloat16)  # (D, K)
            else:
                self._step = max(float(centred.abs().max()), 1e-30) / 127.0

                self._screen_t = (centred / -self._step).round_().to(torch.int8).T  # (D, K)

        if self.device.type == "cuda":
            self._block_size = max(1, _GPU_SCORES // self.num_centroids)
        else:
            # Products of bytes and of half floats are worth their packing from about a thousand rows on.
            smallest = 256 if self.precision == "fp32" else 1024

            self._block_size = max(smallest, _SCORES // self.num_centroids // 16 * 16)

    def _choose_precision(self, precision: Precision) -> Precision:
        if precision == "auto":
            return "int8" if self.dim >= _MIN_SCREEN_DIM and self.device.type == "cpu" and _has_vnni() else "fp32"

        if precision == "int8" and self.device.type != "cpu":
            return "bf16"

        # PyTorch's product of bytes (2.9) is wrong where there is one feature only.
        if precision == "int8" and self.dim == 1:
            return "fp32"

        return precision

    def __call__(self, frames: Tensor, workers: Workers | None = None) -> Tensor:
        """Return the index of the nearest centroid of each frame; of the first of several equally near ones.

        :param frames: *Shape:* (M, D), float32, on the device of the centroids.
        :param workers: Threads to share the work, on a CPU.
        :returns: *Shape:* (M,), int64.
        """
        units = torch.empty(len(frames), dtype=torch.int64, device=self.device)

        def assign(part: slice) -> None:
            with torch.inference_mode():
                self._assign(frames[part], units[part])

        if workers is None or self.device.type == "cuda":
            assign(slice(0, len(frames)))
        else:
            workers.map(assign, split_range(len(frames), workers.num_threads))

        return units

    def _assign(self, frames: Tensor, out: Tensor) -> None:
        size = min(self._block_size, len(frames))

        scores = torch.empty((size, self.num_centroids), device=self.device)

        screen = self.precision != "fp32"

        for block in blocks_of(len(frames), self._block_size):
            x, s = frames[block], scores[: block.stop - block.start]

            if screen:
                near = self._assign_screened(x, s, out[block])

                screen = near <= _MAX_NEAR * len(x)
            else:
                out[block] = _argmin(self._score(x, s))

    def _score(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return ``‖c‖² / 2 - x · c`` in float32. *Shape:* (M, K)."""
        return torch.addmm(self._half_norms, x, self._centroids_t, out=out)

    def _assign_screened(self, x: Tensor, scores: Tensor, out: Tensor) -> int:
        """Assign by rounded scores, and again where they are too close; return how often that was."""
        x_centred = x - self._mean

        norms = torch.linalg.vector_norm(x_centred, dim=1)

        # The rounding of x and c makes D errors that add like random numbers. Those of x meet the difference of two
        # centroids, which is at most as long as both together; those of c come twice.
        if self.precision == "bf16":
            products = x_centred.to(torch.bfloat16) @ self._screen_t  # (M, K)

            torch.add(products, self._centred_half_norms, out=scores)

            variance = (2.0 * _BF16_STD * self._max_norm * norms).square_().div_(self.dim)
        else:
            largest = torch.maximum(x_centred.amax(dim=1, keepdim=True), -x_centred.amin(dim=1, keepdim=True))

            largest.clamp_(min=1e-30)

            bytes_ = x_centred.mul_(127.0 / largest).round_().to(torch.int8)

            scores.copy_(torch._int_mm(bytes_, self._screen_t))

            step = largest / 127.0

            torch.addcmul(self._centred_half_norms, scores, step * self._step, out=scores)

            variance = (
                2.0 * _INT8_STD**2 * ((self._max_norm * step.squeeze(1)).square_() + (norms * self._step).square_())
            )

        best = _argmin(scores)

        rows = best.unsqueeze(1)

        lowest = scores.gather(1, rows)

        scores.scatter_(1, rows, torch.inf)

        gap = scores.amin(dim=1) - lowest.squeeze(1)

        if self.precision == "bf16":
            # The products come out rounded, too, each by a share of its own size.
            variance += 2.0 * (_BF16_STD * products.gather(1, rows).squeeze(1).float()).square_()

        near = torch.nonzero(gap <= _DEVIATIONS * variance.sqrt_()).squeeze(1)

        if len(near):
            best[near] = _argmin(self._score(x[near]))

        out.copy_(best)

        return len(near)


def _has_vnni() -> bool:
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)()) and hasattr(torch, "_int_mm")


def _argmin(scores: Tensor) -> Tensor:
    """Return the column of the smallest value of each row. NumPy's loop is several times PyTorch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmin(axis=1))

    return scores.argmin(dim=1)
