"""Projection-weighted canonical correlation of a layer with words or phones (PWCCA, Morcos et al., 2018).

How much of what is spoken can be had from a layer by a linear map: 0 nothing, 1 everything. As in the layer-wise
analyses of Pasad et al. (2021, 2023): one view are segments' mean features, the other is the segments' labels as
one-hot vectors; directions are found on 8 of 10 parts of the segments, the regularisation is chosen on one part and the
score is taken on the last, several times.

Letters: n segments, D features, C labels, r directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.errors import LabelError

Matrix = NDArray[np.float64]

_EPSILONS: Final = (1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)
"""What the covariances are regularised with, relative to their largest entry (layerwise-analysis, tools.py)."""

_NUM_PARTS: Final = 10

_MIN_VARIANCE: Final = 1e-12
"""Directions with a variance below this share of the largest one are none: one-hot vectors add up to 1."""


@dataclass(frozen=True)
class CcaDirections:
    """The canonical directions of two views."""

    mean_x: Matrix

    mean_y: Matrix

    x: Matrix
    """*Shape:* (D, r)."""

    y: Matrix
    """*Shape:* (C, r)."""

    weights: Matrix
    """How much of the smaller view each direction accounts for; sums to 1. *Shape:* (r,)."""

    def correlations(self, x: Matrix, y: Matrix) -> Matrix:
        """Return the correlation along each direction of segments that need not be those it was found on.
        *Shape:* (r,)."""
        u, v = (x - self.mean_x) @ self.x, (y - self.mean_y) @ self.y

        u, v = u - u.mean(axis=0), v - v.mean(axis=0)

        scale = np.sqrt((u**2).sum(axis=0) * (v**2).sum(axis=0))

        # Where a view does not vary, nothing can be had from it.
        return np.asarray(np.divide((u * v).sum(axis=0), scale, out=np.zeros(len(scale)), where=scale > 1e-12))

    def score(self, x: Matrix, y: Matrix) -> float:
        """Return the weighted mean of the correlations."""
        return float(self.correlations(x, y) @ self.weights)


class CcaProblem:
    """Two views of the same segments, decomposed once for any regularisation."""

    def __init__(self, x: Matrix, y: Matrix) -> None:
        """
        :param x: *Shape:* (n, D).
        :param y: *Shape:* (n, C).
        :raises LabelError: There are fewer than two segments, or a view is the same in all.
        """
        if len(x) < 2 or len(x) != len(y):
            raise LabelError(
                f"Canonical correlation needs two or more segments in both views, but has {len(x)} and {len(y)}."
            )

        self._mean_x, self._mean_y = x.mean(axis=0), y.mean(axis=0)

        self._x, self._y = x - self._mean_x, y - self._mean_y

        self._values_x, self._vectors_x = _decompose(self._x)
        self._values_y, self._vectors_y = _decompose(self._y)

        if not len(self._values_x) or not len(self._values_y):
            raise LabelError("Canonical correlation needs views that vary, but one is the same in all segments.")

        # The cross-covariance between the principal directions.
        self._cross = (self._x @ self._vectors_x).T @ (self._y @ self._vectors_y) / (len(x) - 1)

    def solve(self, epsilon_x: float = 0.0, epsilon_y: float = 0.0) -> CcaDirections:
        """Return the canonical directions: the singular vectors of Σxx^(-1/2) Σxy Σyy^(-1/2).

        The weight of direction i is Σ_j |⟨h_i, z_j⟩|, with h_i the segments' coordinates along it in the view with
        fewer dimensions, scaled to length 1, and z_j that view's column j (Morcos et al., equation 2; which view as in
        Google's ``svcca`` and in layerwise-analysis).

        :param epsilon_x: Added to the variances, relative to the largest one.
        """
        scale_x = 1.0 / np.sqrt(self._values_x + epsilon_x * self._values_x.max())
        scale_y = 1.0 / np.sqrt(self._values_y + epsilon_y * self._values_y.max())

        left, _, right = np.linalg.svd(scale_x[:, None] * self._cross * scale_y, full_matrices=False)

        directions_x = self._vectors_x @ (scale_x[:, None] * left)  # (D, r)
        directions_y = self._vectors_y @ (scale_y[:, None] * right.T)  # (C, r)

        view, directions = (
            (self._x, directions_x) if len(self._values_x) <= len(self._values_y) else (self._y, directions_y)
        )

        coordinates = view @ directions  # (n, r)

        norms = np.linalg.norm(coordinates, axis=0)

        coordinates = np.divide(coordinates, norms, out=np.zeros_like(coordinates), where=norms > 1e-12)

        weights = np.abs(coordinates.T @ view).sum(axis=1)

        return CcaDirections(self._mean_x, self._mean_y, directions_x, directions_y, weights / weights.sum())


def pwcca(x: Matrix, y: Matrix) -> float:
    """Return the projection-weighted correlation on the very segments that the directions are found on.

    With few segments it is too high: independent views of D and C dimensions have √((D + C) / n) or so.

    :param x: *Shape:* (n, D).
    :param y: *Shape:* (n, C).
    """
    return CcaProblem(x, y).solve().score(x, y)


@dataclass(frozen=True)
class CcaScore:
    """The result of an analysis."""

    score: float
    """The mean over the trials of the projection-weighted correlation on held-out segments."""

    std: float
    """The standard deviation over the trials."""

    num_segments: int

    num_labels: int


def cca_with_labels(
    features: NDArray[np.floating], labels: Sequence[str], *, num_trials: int = 3, seed: int = 0
) -> CcaScore:
    """Return the correlation of segments' features with their labels, on held-out segments.

    :param features: One row for each segment. *Shape:* (n, D).
    :param labels: Each should occur ten times or more, so that every part has it.
    :param num_trials: How many times parts are chosen, at most 5: no part is chosen twice.
    :raises LabelError: There are fewer than two labels, or fewer than ten segments.
    """
    names, numbers = np.unique(labels, return_inverse=True)

    if len(names) < 2 or len(features) < _NUM_PARTS:
        raise LabelError(
            f"The correlation with labels needs at least {_NUM_PARTS} segments of two labels, but there are "
            f"{len(features)} segments of {len(names)}."
        )

    x = np.asarray(features, np.float64)
    y = np.eye(len(names))[numbers]

    rng = np.random.default_rng(seed)

    parts = _split(numbers, rng)

    held_out = rng.permutation(_NUM_PARTS)[: 2 * min(num_trials, _NUM_PARTS // 2)].reshape(-1, 2)

    scores = []

    for dev, test in held_out.tolist():
        is_train = (parts != dev) & (parts != test)

        problem = CcaProblem(x[is_train], y[is_train])

        def on_dev(directions: CcaDirections, dev: int = dev) -> float:
            return directions.score(x[parts == dev], y[parts == dev])

        # Every second value of each: what differs by a factor of ten differs in the third digit at most.
        solutions = (problem.solve(*epsilons) for epsilons in product(_EPSILONS[::2], repeat=2))

        scores.append(max(solutions, key=on_dev).score(x[parts == test], y[parts == test]))

    return CcaScore(float(np.mean(scores)), float(np.std(scores)), len(x), len(names))


def _split(numbers: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the part of each segment. The segments of a label are spread evenly, beginning with any part."""
    parts = np.empty(len(numbers), np.int64)

    for number in range(int(numbers.max()) + 1):
        indices = rng.permutation(np.flatnonzero(numbers == number))

        parts[indices] = (np.arange(len(indices)) + rng.integers(_NUM_PARTS)) % _NUM_PARTS

    return parts


def _decompose(centered: Matrix) -> tuple[Matrix, Matrix]:
    """Return the variances and principal directions of a view, those without variance left out."""
    values, vectors = np.linalg.eigh(centered.T @ centered / (len(centered) - 1))

    keep = values > _MIN_VARIANCE * max(values.max(), np.finfo(np.float64).tiny)

    return values[keep], vectors[:, keep]
