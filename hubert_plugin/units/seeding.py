"""Initial centroids: greedy k-means++ (Arthur and Vassilvitskii 2007), all restarts side by side.

Letters: *n* frames to choose from, *D* features of a frame, *K* centroids, *R* restarts, *L* candidates.

A centroid is drawn with probability proportional to the squared distance to those that are there; of L = 2 + ln K draws
the one that lowers the sum of distances most is taken (scikit-learn's ``kmeans_plusplus``). Restarts do not depend on
each other, so the candidates of all of them are scored by one matrix product, which reads the frames once.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hubert_plugin.units.threads import Workers, blocks_of

_BLOCK: Final = 1024
"""Frames that are scored at a time on a CPU: R L times as many distances stay in a core's cache."""


def choose_centroids(frames: Tensor, num_centroids: int, num_restarts: int, seed: int, workers: Workers) -> Tensor:
    """Return the best of ``num_restarts`` draws of initial centroids.

    :param frames: *Shape:* (n, D), float32, at least K of them.
    :returns: *Shape:* (K, D), some of the frames. Equal for equal seeds, whatever the number of threads.
    """
    n, device = len(frames), frames.device

    k, r, num_trials = num_centroids, num_restarts, 2 + int(math.log(num_centroids))

    rng = np.random.default_rng([seed, 3])

    # ‖x‖² - 2 x·c + ‖c‖² as one product: of [x, ‖x‖², 1] with [-2 c, 1, ‖c‖²]. Around the mean less is cancelled.
    x = frames - frames.mean(dim=0)

    norms = x.square().sum(dim=1, keepdim=True)

    ones = torch.ones_like(norms)

    transposed = torch.cat([x, norms, ones], dim=1).T.contiguous()  # (D + 2, n)

    blocks = blocks_of(n, n if device.type == "cuda" else _BLOCK)

    def distances(candidates: Tensor, block: slice) -> Tensor:
        """Squared distances of candidates (*Shape:* (C,)) to the frames of a block. *Shape:* (C, block)."""
        rows = torch.cat([-2.0 * x[candidates], ones[candidates], norms[candidates]], dim=1)

        return rows @ transposed[:, block]

    chosen = torch.from_numpy(rng.integers(n, size=(r, 1))).to(device)  # (R, 1), grows to (R, K)

    closest = torch.empty((r, n), device=device)

    def start(block: slice) -> None:
        with torch.inference_mode():
            closest[:, block] = distances(chosen[:, 0], block).clamp_(min=0.0)

    workers.map(start, blocks)

    restarts = torch.arange(r, device=device)

    for _ in range(1, k):
        cumulated = closest.double().cumsum(dim=1)  # (R, n)

        draws = torch.from_numpy(rng.random((r, num_trials))).to(device) * cumulated[:, -1:]

        candidates = torch.searchsorted(cumulated, draws, right=True).clamp_(max=n - 1)  # (R, L)

        def score(block: slice, candidates: Tensor = candidates) -> tuple[Tensor, Tensor]:
            """Distances to the nearest centroid were the candidate one, and their sums."""
            with torch.inference_mode():
                d = distances(candidates.view(-1), block).view(r, num_trials, -1)

                torch.minimum(d, closest[:, None, block], out=d)

                return d, d.sum(dim=2).double()

        scored = workers.map(score, blocks)

        potentials = torch.stack([s for _, s in scored]).sum(dim=0)  # (R, L); one order, whoever computed them

        best = potentials.argmin(dim=1)  # (R,)

        for block, (d, _) in zip(blocks, scored, strict=True):
            torch.clamp(d[restarts, best], min=0.0, out=closest[:, block])

        chosen = torch.cat([chosen, candidates[restarts, best].unsqueeze(1)], dim=1)

    winner = int(closest.double().sum(dim=1).argmin())

    return frames[chosen[winner]]
