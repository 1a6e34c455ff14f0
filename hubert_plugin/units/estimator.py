"""Estimators of one codebook: what they are asked, their configuration, and the two backends.

Letters: *M* frames, *D* features of a frame, *K* centroids.

``sklearn`` is scikit-learn's ``MiniBatchKMeans`` with the settings of fairseq's ``learn_kmeans.py`` (the paper's), in
one process. ``torch`` is this package's own (``lloyd.py``): several times faster at the same inertia, on CPU or GPU,
over all ranks, and its result does not depend on threads or ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.device import parse_device
from hubert_plugin.registry import Features
from hubert_plugin.units.collective import Ranks
from hubert_plugin.units.lloyd import Lloyd, LloydOptions
from hubert_plugin.units.threads import Workers

SAMPLE_FRAMES: Final = 1_000_000
"""The default size of the sample that k-means is fitted on."""


@dataclass(kw_only=True)
class ClusteringConfig(Validatable):
    """How codebooks are fitted. The defaults are those of fairseq's ``learn_kmeans.py``."""

    backend: str = "sklearn"
    """``sklearn`` (fairseq's MiniBatchKMeans), or ``torch``: faster, on CPU or GPU, over all ranks of ``torchrun``."""

    device: str | None = None
    """Where ``torch`` computes: ``cpu`` or ``cuda``; ``null`` is the device of the recipe."""

    algorithm: str = "lloyd"
    """What ``torch`` does: ``lloyd`` passes over the whole sample, ``mini_batch`` over ``batch_size`` frames a time."""

    max_frames: int | None = SAMPLE_FRAMES
    """How many frames, drawn at random, are clustered. ``null`` uses all frames of the corpus, in a second pass."""

    max_iter: int = 100
    """The maximum number of passes over the sample (at least two are made)."""

    batch_size: int = 10_000
    """The number of frames of a mini-batch."""

    tol: float = 0.0
    """``sklearn``: stop early when the centroids move less than this (squared, relative to the variance)."""

    min_improvement: float = 1e-4
    """``torch`` with ``lloyd``: stop when a pass lowers the inertia by less than this share."""

    max_no_improvement: int | None = 100
    """Mini-batches: stop early when this many brought no improvement of the smoothed inertia."""

    n_init: int = 20
    """How many random initialisations are tried; the best one is continued."""

    reassignment_ratio: float = 0.0
    """``sklearn``: units less frequent than this share of the most frequent one are moved elsewhere; 0 moves none.
    (``torch`` with ``lloyd`` moves empty ones; with ``mini_batch`` it moves none.)"""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.backend not in ("sklearn", "torch"):
            result.add_error(f"`backend` must be 'sklearn' or 'torch', but is '{self.backend}' instead.")

        if self.algorithm not in ("lloyd", "mini_batch"):
            result.add_error(f"`algorithm` must be 'lloyd' or 'mini_batch', but is '{self.algorithm}' instead.")

        for name in ("max_frames", "max_iter", "batch_size", "n_init", "max_no_improvement"):
            if (value := getattr(self, name)) is not None and value < 1:
                result.add_error(f"`{name}` must be 1 or greater, but is {value} instead.")

        for name in ("tol", "reassignment_ratio", "min_improvement"):
            if (value := getattr(self, name)) < 0.0:
                result.add_error(f"`{name}` must be 0 or greater, but is {value} instead.")

        return result


class CodebookEstimator(ABC):
    """Fits the centroids of one codebook."""

    @abstractmethod
    def fit(self, frames: Features) -> None:
        """Fit to a sample. *Shape:* (M, D), at least K frames over all ranks; it may be changed by rounding."""

    @abstractmethod
    def feed(self, frames: Features) -> None:
        """Take more frames in, in a pass over a corpus larger than the sample. *Shape:* (M, D)."""

    @abstractmethod
    def finish(self) -> None:
        """End that pass."""

    @property
    @abstractmethod
    def centroids(self) -> Features:
        """*Shape:* (K, D), float32."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """How often the centroids were updated."""


def create_estimator(
    config: ClusteringConfig, num_clusters: int, seed: int, ranks: Ranks, workers: Workers, device: torch.device
) -> CodebookEstimator:
    """Create an estimator of ``num_clusters`` centroids as ``config`` says.

    :param device: The device to use where ``config`` names none.
    """
    if config.backend == "sklearn":
        return SklearnEstimator(config, num_clusters, seed)

    if config.device is not None:
        device = parse_device(config.device)

    return TorchEstimator(config, num_clusters, seed, ranks, workers, device)


@final
class SklearnEstimator(CodebookEstimator):
    """scikit-learn's ``MiniBatchKMeans``."""

    def __init__(self, config: ClusteringConfig, num_clusters: int, seed: int) -> None:
        self._config, self._num_clusters, self._seed = config, num_clusters, seed

        self._estimator: Any = None

    @override
    def fit(self, frames: Features) -> None:
        from sklearn.cluster import MiniBatchKMeans

        config = self._config

        self._estimator = MiniBatchKMeans(
            n_clusters=self._num_clusters,
            init="k-means++",
            max_iter=max(config.max_iter, 2),  # scikit-learn fails after a single mini-batch
            batch_size=min(config.batch_size, len(frames)),
            tol=config.tol,
            max_no_improvement=config.max_no_improvement,
            n_init=config.n_init,
            reassignment_ratio=config.reassignment_ratio,
            compute_labels=False,
            random_state=self._seed,
        )

        with _limit_threads(frames.shape[1] * self._num_clusters):
            self._estimator.fit(frames)

    @override
    def feed(self, frames: Features) -> None:
        size = self._config.batch_size

        with _limit_threads(frames.shape[1] * self._num_clusters):
            for start in range(0, len(frames), size):
                self._estimator.partial_fit(frames[start : start + size])

    @override
    def finish(self) -> None:
        pass

    @property
    @override
    def centroids(self) -> Features:
        return np.asarray(self._estimator.cluster_centers_, np.float32)

    @property
    @override
    def num_steps(self) -> int:
        return int(self._estimator.n_steps_)


@final
class TorchEstimator(CodebookEstimator):
    """K-means in PyTorch. Every rank holds its part of the frames and makes the same calls."""

    def __init__(
        self,
        config: ClusteringConfig,
        num_clusters: int,
        seed: int,
        ranks: Ranks,
        workers: Workers,
        device: torch.device,
    ) -> None:
        self._config, self._num_clusters, self._seed = config, num_clusters, seed
        self._ranks, self._workers, self._device = ranks, workers, device

        self._lloyd: Lloyd | None = None
        self._pass: torch.Tensor | None = None

    @override
    def fit(self, frames: Features) -> None:
        c = self._config

        options = LloydOptions(
            mini_batch=c.algorithm == "mini_batch",
            max_iter=c.max_iter,
            batch_size=c.batch_size,
            max_no_improvement=c.max_no_improvement,
            min_improvement=c.min_improvement,
            n_init=c.n_init,
        )

        self._lloyd = Lloyd(
            frames,
            self._num_clusters,
            options,
            seed=self._seed,
            ranks=self._ranks,
            device=self._device,
            workers=self._workers,
        )

        self._lloyd.fit()

    @override
    def feed(self, frames: Features) -> None:
        lloyd = self._fitted

        if self._pass is None:
            self._pass = lloyd.empty_sums()

        lloyd.accumulate(self._pass, lloyd.to_grid(frames))

    @override
    def finish(self) -> None:
        # One pass of Lloyd's algorithm over the whole corpus; a rank without frames takes part.
        lloyd = self._fitted

        lloyd.step_on(lloyd.finish_sums(self._pass if self._pass is not None else lloyd.empty_sums()))

        self._pass = None

    @property
    def _fitted(self) -> Lloyd:
        if self._lloyd is None:
            raise RuntimeError("`fit` must be called first.")

        return self._lloyd

    @property
    @override
    def centroids(self) -> Features:
        return self._fitted.centroids.cpu().numpy()

    @property
    @override
    def num_steps(self) -> int:
        return self._fitted.num_steps


@contextmanager
def _limit_threads(work_per_frame: int) -> Iterator[None]:
    """Keep scikit-learn to one thread where a mini-batch is little work.

    Its threads wait for each other at every mini-batch: for K = 50 on MFCC (2 cores, other work beside) one thread took
    8 s for 360,000 frames, two took 23 s.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    with threadpool_limits(1 if work_per_frame < 1 << 15 else None):
        yield
