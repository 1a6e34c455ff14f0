"""K-means in PyTorch: Lloyd's algorithm on all frames or on mini-batches, on CPU or GPU, over the ranks of a gang.

Letters: *M* frames of this rank, *D* features of a frame, *K* centroids.

Sums have no order here: features are first rounded to a grid of 2⁻²³ of the largest value, which float32 holds exactly
and of which float64 adds 2³⁰ without rounding. So the sums over a cluster are exact, and the result does not depend on
the number of threads or ranks, nor on the order in which a GPU adds. (A frame between two centroids whose scores differ
in the last bit of float32 is the exception: matrix products of another shape may decide it otherwise.)

Lloyd's algorithm runs on a part of the frames first, every 16th, then every fourth, then all of them: most of the way
is made where a pass costs least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from hubert_plugin.registry import Features
from hubert_plugin.units.collective import Ranks
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.seeding import choose_centroids
from hubert_plugin.units.threads import Workers, blocks_of, split_range

_GRID_BITS: Final = 23

_BLOCK_BYTES: Final = 1 << 23

_STAGE_FRAMES: Final = 128
"""The smallest part of the frames that is worth a stage has this many frames for each centroid."""

_STAGE_IMPROVEMENT: Final = 1e-3

_MAX_RELOCATIONS: Final = 10
"""How often empty clusters are given new centroids in a stage, should it not help."""


@dataclass(frozen=True)
class LloydOptions:
    """How to iterate; the fields are those of ``KMeansConfig``."""

    mini_batch: bool = False
    max_iter: int = 100
    batch_size: int = 10_000
    max_no_improvement: int | None = 100
    min_improvement: float = 1e-4
    n_init: int = 20


@dataclass
class _Sums:
    """What a pass over frames leaves."""

    sums: Tensor
    """*Shape:* (K, D), float64."""

    counts: Tensor
    """*Shape:* (K,), float64."""

    norms: float
    """The sum of the squared lengths of all frames."""

    def inertia(self, centroids: Tensor) -> float:
        """Return ``Σ ‖x - c‖² = Σ ‖x‖² + Σ_k (n_k ‖c_k‖² - 2 c_k · s_k)``, for the centroids that were assigned."""
        c = centroids.double()

        return max(self.norms + float((self.counts * c.square().sum(1)).sum() - 2.0 * (c * self.sums).sum()), 0.0)

    def means(self, centroids: Tensor) -> Tensor:
        """Return the means of the clusters; an empty one keeps its centroid. *Shape:* (K, D), float64."""
        used = (self.counts > 0).unsqueeze(1)

        return torch.where(used, self.sums / self.counts.clamp(min=1.0).unsqueeze(1), centroids.double())


def round_to_grid(x: Tensor, step: float) -> Tensor:
    """Round ``x`` in place to multiples of ``step``, a power of two: division and product are exact."""
    return x.div_(step).round_().mul_(step)


def _grid_step(largest: float) -> float:
    """Return the step that divides values up to ``largest`` into at most 2²³."""
    return math.ldexp(1.0, math.frexp(largest)[1] - _GRID_BITS) if largest > 0.0 else 1.0


@final
class Lloyd:
    """Fits centroids to the frames that the ranks hold together."""

    def __init__(
        self,
        frames: Features | Tensor,
        num_centroids: int,
        options: LloydOptions,
        *,
        seed: int,
        ranks: Ranks,
        device: torch.device,
        workers: Workers,
    ) -> None:
        """
        :param frames: This rank's part, one behind another over the ranks; changed by rounding. *Shape:* (M, D).
        """
        self._options, self._seed, self._ranks, self._workers = options, seed, ranks, workers
        self._k, self._device = num_centroids, device

        self._frames = torch.as_tensor(frames).to(device)

        self._dim = self._frames.size(1)

        largest = ranks.max(float(self._frames.abs().max()) if len(self._frames) else 0.0)

        # Squared lengths are summed, too, and rounded for the same reason as features are.
        self._step, self._norm_step = _grid_step(largest), _grid_step(self._dim * largest**2)

        round_to_grid(self._frames, self._step)

        counts = [int(c) for c in ranks.gather(len(self._frames))]

        self._offset, self._total = sum(counts[: ranks.rank]), sum(counts)

        self.num_steps = 0
        """The number of updates of the centroids."""

        self.centroids = torch.zeros((num_centroids, self._dim), device=device)
        """*Shape:* (K, D), float32."""

    def fit(self) -> None:
        """Choose initial centroids and improve them."""
        self.centroids = self._initial_centroids()

        if self._options.mini_batch:
            self._fit_mini_batches()

            return

        for stride in self._strides():
            self._fit_stage(stride, self._options.min_improvement if stride == 1 else _STAGE_IMPROVEMENT)

    def step_on(self, sums: _Sums) -> None:
        """Move the centroids to the means of ``sums``, of all ranks' frames together."""
        self.centroids = sums.means(self.centroids).float()

        self.num_steps += 1

    def empty_sums(self) -> Tensor:
        """Return zeros to accumulate in: features, numbers of frames and squared lengths. *Shape:* (K, D + 2)."""
        return torch.zeros((self._k, self._dim + 2), dtype=torch.float64, device=self._device)

    def accumulate(self, out: Tensor, frames: Tensor) -> None:
        """Assign ``frames`` (*Shape:* (M, D), on the grid) and add them to ``out``."""
        nearest = NearestCentroid(self.centroids, self._device)

        def add(part: slice) -> Tensor:
            total = self.empty_sums()

            with torch.inference_mode():
                # A slice of a strided view is copied into one piece block by block.
                for block in blocks_of(part.stop - part.start, max(1, _BLOCK_BYTES // (8 * self._dim))):
                    x = frames[part.start + block.start : part.start + block.stop].contiguous()

                    units = nearest(x)

                    wide = x.double()

                    total[:, : self._dim].index_add_(0, units, wide)

                    total[:, self._dim] += torch.bincount(units, minlength=self._k)

                    norms = round_to_grid(wide.square_().sum(dim=1), self._norm_step)

                    total[:, self._dim + 1].index_add_(0, units, norms)

            return total

        parts = split_range(len(frames), 1 if self._device.type == "cuda" else self._workers.num_threads)

        for part in self._workers.map(add, parts):
            out += part

    def finish_sums(self, out: Tensor) -> _Sums:
        """Add up what the ranks accumulated."""
        total = self._ranks.sum(out)

        return _Sums(total[:, : self._dim], total[:, self._dim], float(total[:, self._dim + 1].sum()))

    def to_grid(self, frames: Features) -> Tensor:
        """Return other frames (*Shape:* (M, D)) on the device and rounded as the first ones were."""
        return round_to_grid(torch.from_numpy(frames).to(self._device, copy=True), self._step)

    def _sums(self, frames: Tensor) -> _Sums:
        out = self.empty_sums()

        self.accumulate(out, frames)

        return self.finish_sums(out)

    def _initial_centroids(self) -> Tensor:
        """Choose among as many frames as three mini-batches have (scikit-learn's ``init_size``)."""
        size = min(self._total, max(3 * self._options.batch_size, 3 * self._k))

        rng = np.random.default_rng([self._seed, 2])

        indices = np.sort(rng.choice(self._total, size, replace=False)) - self._offset

        mine = np.flatnonzero((indices >= 0) & (indices < len(self._frames)))

        frames = torch.zeros((size, self._dim), device=self._device)

        frames[torch.from_numpy(mine).to(self._device)] = self._frames[torch.from_numpy(indices[mine]).to(self._device)]

        frames = self._ranks.sum(frames)

        centroids = torch.zeros_like(self.centroids)

        if self._ranks.rank == 0:
            centroids = choose_centroids(frames, self._k, self._options.n_init, self._seed, self._workers)

        return self._ranks.from_rank_0(centroids)

    def _strides(self) -> Iterator[int]:
        for stride in (64, 16, 4):
            if self._total // stride >= max(_STAGE_FRAMES * self._k, 3 * self._options.batch_size):
                yield stride

        yield 1

    def _fit_stage(self, stride: int, min_improvement: float) -> None:
        frames = self._every(stride)

        previous, num_relocations = math.inf, 0

        for _ in range(self._options.max_iter):
            sums = self._sums(frames)

            inertia = sums.inertia(self.centroids)

            self.step_on(sums)

            if (sums.counts == 0).any() and num_relocations < _MAX_RELOCATIONS and inertia > 0.0:
                self._relocate(torch.nonzero(sums.counts == 0).squeeze(1), stride)

                previous, num_relocations = math.inf, num_relocations + 1

                continue

            if math.isfinite(previous) and previous - inertia <= min_improvement * previous:
                break

            previous = inertia

    def _every(self, stride: int) -> Tensor:
        """Return this rank's of every ``stride``-th frame of all ranks, wherever the border between two ranks lies."""
        return self._frames[-self._offset % stride :: stride]

    def _relocate(self, empty: Tensor, stride: int) -> None:
        """Move the centroids of empty clusters to the frames that are farthest from theirs."""
        frames = self._every(stride).contiguous()

        units = NearestCentroid(self.centroids, self._device)(frames, self._workers)

        distances = (frames - self.centroids[units]).double().square().sum(dim=1)

        count = min(len(empty), len(frames))

        values, rows = distances.topk(count)

        # A row for each: distance, which frame of all ranks, and the frame itself. Ranks with fewer send distance -1.
        found = torch.full((len(empty), self._dim + 2), -1.0, dtype=torch.float64, device=self._device)

        positions = self._offset + -self._offset % stride + rows * stride

        found[:count, 0], found[:count, 1], found[:count, 2:] = values, positions, frames[rows].double()

        everyones = torch.cat(self._ranks.gather_tensors(found)).cpu().numpy()

        order = np.lexsort((everyones[:, 1], -everyones[:, 0]))[: len(empty)]

        # Frames that lie on their centroid would only make two of it.
        chosen = [i for i in order.tolist() if everyones[i, 0] > 0.0]

        targets = torch.from_numpy(everyones[chosen, 2:]).float().to(self._device)

        self.centroids[empty[: len(chosen)]] = targets

    def _fit_mini_batches(self) -> None:
        """Sculley's mini-batch k-means as scikit-learn runs it: a centroid is the mean of all frames it was ever given.

        Batches are drawn over all ranks' frames; each rank contributes those it holds.
        """
        options, size = self._options, min(self._options.batch_size, self._total)

        seen = torch.zeros(self._k, dtype=torch.float64, device=self._device)

        centroids = self.centroids.double()

        average, best, num_without = math.nan, math.inf, 0

        for batch in self._batches(size):
            sums = self._sums(self._frames[batch])

            inertia = sums.inertia(self.centroids) / size

            seen += sums.counts

            difference = sums.sums - sums.counts.unsqueeze(1) * centroids

            centroids = centroids + difference / seen.clamp(min=1.0).unsqueeze(1)

            self.centroids = centroids.float()

            self.num_steps += 1

            # scikit-learn's smoothing: the weight of a batch is twice its share of the frames.
            weight = min(2.0 * size / (self._total + 1), 1.0)

            average = inertia if math.isnan(average) else average * (1.0 - weight) + inertia * weight

            num_without = 0 if average < best else num_without + 1

            best = min(best, average)

            if options.max_no_improvement is not None and num_without >= options.max_no_improvement:
                break

    def _batches(self, size: int) -> Iterator[Tensor]:
        rng = np.random.default_rng([self._seed, 5])

        num_batches = max(self._options.max_iter * self._total // size, 1)

        per_epoch = max(self._total // size, 1)

        for i in range(num_batches):
            if i % per_epoch == 0:
                order = rng.permutation(self._total)

            batch = np.sort(order[i % per_epoch * size :][:size]) - self._offset

            yield torch.from_numpy(batch[(batch >= 0) & (batch < len(self._frames))]).to(self._device)
