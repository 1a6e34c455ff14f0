"""The nearest centroid of each frame.

Letters: *M* frames, *D* features of a frame, *K* centroids.

``argmin_k ‖x - c_k‖² = argmin_k ‖c_k‖² / 2 - x · c_k``: the term ``‖x‖²`` is the same for every centroid of a frame and
is left out, as scikit-learn does, which also keeps float32 rounding out of near ties.

In float32 (``fp32``) the labels are those of scikit-learn's ``predict`` and fairseq's ``dump_km_label.py``.

``bf16`` and ``int8`` screen first: the mean of the centroids is removed, products are computed in a half or a quarter
of the bits, and what these leave open is computed again. ``auto`` is ``int8`` where there are enough features and
centroids for it to pay (without the compiled kernel: on CPUs with VNNI), else ``fp32``.

On a CPU this is done by a kernel in C (:mod:`hubert_plugin.units.kernel`), if the machine has a compiler for it; its
``int8`` gives the labels of exact arithmetic, as what is left open is told by the bound of the rounding. ``fast`` takes
its standard deviation instead, which leaves out most of what is computed again, and sums in 16 bits where it can (on
GPUs it is ``bf16``): a label may be another where two centroids are almost equally near.

Without the kernel, products are NumPy's, whose library is a tenth to a third faster at these shapes than the one that
PyTorch comes with, or PyTorch's (:mod:`hubert_plugin.units.screening`): with these, labels are those of ``fp32`` but
for near ties that six standard deviations of the rounding do not cover.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin.units.byte_kernel import ByteKernel, fits_bytes
from hubert_plugin.units.kernel import FloatKernel, create_byte_kernel, load_nearest_library
from hubert_plugin.units.screening import MAX_BYTE_DIM, ByteScreen, HalfScreen, Screen
from hubert_plugin.units.threads import Workers, blocks_of, split_range
from hubert_plugin.units.word_kernel import WordKernel

Precision = Literal["auto", "fp32", "bf16", "int8", "fast"]

PRECISIONS: Final = ("auto", "fp32", "bf16", "int8", "fast")

_BLOCK_FRAMES: Final = 1024
"""Frames that are scored at a time on a CPU: fewer make products slow, more do not fit into a core's cache."""

_BLOCK_SCORES: Final = 1 << 18
"""With few centroids and features, more frames fit: so many scores are computed at a time, a megabyte."""

_GPU_SCORES: Final = 1 << 28

_MIN_SCREEN_DIM: Final = 128
"""With fewer features, a product is so cheap that the passes over the scores cost more than it saves."""

_MIN_SCREEN_CENTROIDS: Final = 128
"""With fewer centroids, products take less time than rounding the frames."""

_FAST_DEVIATIONS: Final = 1.0
"""For ``fast``: how many standard deviations of the rounding are waited for. With D features, each rounded on its own,
the bound is the square root of D times as far, and two centroids that are near have less between them to be rounded."""

_MAX_UNSURE: Final = 0.4
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

        # Its own: the caller's may change later.
        c = torch.as_tensor(centroids, dtype=torch.float32, device=device).detach().clone()

        self._making = (c, device, precision)

        self.device = c.device

        self.num_centroids, self.dim = c.shape

        self._kernel = self._create_kernel(c, precision)

        self.precision: Precision

        if self._kernel is not None:
            self.precision = "fp32" if isinstance(self._kernel, FloatKernel) else "int8"

            return

        self.precision = self._choose_precision(precision)

        self._minus_t = (-c).T.contiguous()  # (D, K)
        self._half_norms = c.double().square().sum(dim=1).mul_(0.5).float()  # (K,)

        self._screen: Screen | None = None

        if self.precision == "bf16":
            self._screen = HalfScreen(c)
        elif self.precision == "int8":
            self._screen = ByteScreen(c)

        self._block_size = self._choose_block_size()

    def __reduce__(self) -> tuple[Any, ...]:
        # Pointers into memory are of no use elsewhere.
        return type(self), self._making

    def _create_kernel(self, centroids: Tensor, precision: Precision) -> FloatKernel | ByteKernel | WordKernel | None:
        if self.device.type != "cpu" or precision == "bf16" or (library := load_nearest_library()) is None:
            return None

        size = self.num_centroids, self.dim

        pays = library.bytes_pay(*size) or (precision == "fast" and library.words_pay(*size))

        if precision == "fp32" or (precision != "int8" and not pays):
            return FloatKernel(library, centroids.numpy())

        if self.dim > MAX_BYTE_DIM or not fits_bytes(centroids.numpy()):
            return FloatKernel(library, centroids.numpy())

        part = min(1.0, _FAST_DEVIATIONS / math.sqrt(self.dim)) if precision == "fast" else 1.0

        return create_byte_kernel(library, centroids.numpy(), part)

    def _choose_precision(self, precision: Precision) -> Precision:
        on_cpu = self.device.type == "cpu"

        if precision == "fast" and not on_cpu:
            return "bf16"

        if precision in ("auto", "fast"):
            pays = self.dim >= _MIN_SCREEN_DIM and self.num_centroids >= _MIN_SCREEN_CENTROIDS

            precision = "int8" if pays and on_cpu and _has_vnni() else "fp32"

        if precision == "int8" and not on_cpu:
            return "bf16"

        # PyTorch's product of bytes (2.9) is wrong where there is one feature only.
        if precision == "int8" and not 1 < self.dim <= MAX_BYTE_DIM:
            return "fp32"

        return precision

    def _choose_block_size(self) -> int:
        if self.device.type == "cuda":
            return max(1, _GPU_SCORES // self.num_centroids)

        if self.dim >= _MIN_SCREEN_DIM:
            return _BLOCK_FRAMES

        return max(_BLOCK_FRAMES, min(_BLOCK_SCORES // self.num_centroids, 4 * _BLOCK_FRAMES))

    def __call__(self, frames: Tensor, workers: Workers | None = None) -> Tensor:
        """Return the index of the nearest centroid of each frame; of the first of several equally near ones.

        :param frames: *Shape:* (M, D), float32, on the device of the centroids.
        :param workers: Threads to share the work, on a CPU.
        :returns: *Shape:* (M,), int64.
        :raises ValueError: Frames have other features than centroids.
        """
        if frames.ndim != 2 or frames.size(1) != self.dim:
            raise ValueError(
                f"`frames` must have the shape (frames, {self.dim}), but has {tuple(frames.shape)} instead."
            )

        frames = frames.detach().to(torch.float32)

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
        if self._kernel is not None:
            self._kernel(frames.contiguous().numpy(), out.numpy())

            return

        done = 0

        if self._screen is not None:
            done, unsure = self._assign_screened(self._screen, frames, out)

            if len(unsure):
                again = torch.empty_like(unsure)

                self._assign_exactly(frames[unsure], again)

                out[unsure] = again

        if done < len(frames):
            self._assign_exactly(frames[done:], out[done:])

    def _assign_exactly(self, frames: Tensor, out: Tensor) -> None:
        """Assign by ``‖c‖² / 2 - x · c`` in float32."""
        if self.device.type == "cpu":
            self._assign_in_numpy(frames.numpy(), out.numpy())

            return

        scores = torch.empty((min(self._block_size, len(frames)), self.num_centroids), device=self.device)

        for block in blocks_of(len(frames), self._block_size):
            x = frames[block]

            torch.addmm(self._half_norms, x, self._minus_t, out=scores[: len(x)])  # (M, K)

            out[block] = scores[: len(x)].argmin(dim=1)

    def _assign_in_numpy(self, frames: NDArray[np.float32], out: NDArray[np.int64]) -> None:
        num_frames = min(self._block_size, len(frames))

        minus_t, half_norms = self._minus_t.numpy(), self._half_norms.numpy()

        scores = np.empty((num_frames, self.num_centroids), np.float32)

        # A pass over few features is cheaper than one over the scores: a feature that is 1 brings in the norms.
        if few_features := self.dim < _MIN_SCREEN_DIM:
            minus_t = np.concatenate([minus_t, half_norms[None]])  # (D + 1, K)

            features = np.ones((num_frames, self.dim + 1), np.float32)

        for block in blocks_of(len(frames), self._block_size):
            x = frames[block]

            s = scores[: len(x)]

            if few_features:
                features[: len(x), :-1] = x

                np.matmul(features[: len(x)], minus_t, out=s)
            else:
                np.matmul(x, minus_t, out=s)

                s += half_norms

            s.argmin(axis=1, out=out[block])

    def _assign_screened(self, screen: Screen, frames: Tensor, out: Tensor) -> tuple[int, Tensor]:
        """Assign by rounded scores; return how many frames were done, and which of these are not sure."""
        room = screen.make_room(min(self._block_size, len(frames)))

        done, unsure = 0, [torch.empty(0, dtype=torch.int64, device=self.device)]

        for block in blocks_of(len(frames), self._block_size):
            out[block], rows = screen(frames[block], room)

            unsure.append(rows + block.start)

            done = block.stop

            if len(rows) > _MAX_UNSURE * (block.stop - block.start):
                break

        return done, torch.cat(unsure)


def _has_vnni() -> bool:
    return bool(getattr(torch.cpu, "_is_vnni_supported", bool)()) and hasattr(torch, "_int_mm")
