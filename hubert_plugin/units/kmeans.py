"""K-means on streamed features.

The estimator is scikit-learn's ``MiniBatchKMeans`` with the settings of fairseq's ``learn_kmeans.py`` (the paper's). It
is fitted on a seeded random sample of at most ``max_frames`` frames, so its quality is that of scikit-learn's own
``fit`` on that sample, and memory is bounded by ``max_frames`` times D times 4 bytes (156 MB for a million of MFCC).
Several hundred frames a unit fix a centroid: a larger sample changes the inertia in the third digit only.

``max_frames: null`` uses every frame of the corpus: the fit on a sample of :data:`SAMPLE_FRAMES` is continued with
``partial_fit`` over the whole stream, in mini-batches from a shuffle buffer of the same size. Running ``partial_fit``
from the first frame on would draw the initial centroids from a single mini-batch and only once; this way they are the
best of ``n_init``, as in ``fit``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, final

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import Features, LabelSetSpec
from hubert_plugin.units.fit import (
    FitReport,
    FitResult,
    UnitModelFitter,
    entropy_bits,
    sample_frames,
    shuffled_frames,
)
from hubert_plugin.units.model import KMeansUnitModel
from hubert_plugin.units.stream import FeatureStream

KMEANS_FITTER: Final = "kmeans"
"""The name under which the fitter is registered."""

SAMPLE_FRAMES: Final = 1_000_000
"""The default size of the sample that k-means is fitted on."""


@dataclass(kw_only=True)
class KMeansConfig(Validatable):
    """Configures the unit model ``kmeans``. The defaults are those of fairseq's ``learn_kmeans.py``."""

    label_set: str = "km"
    """The name of the label set; also the extension of its label files (``train.km``)."""

    num_clusters: int = 100
    """The number of units, K. The paper uses 100 on MFCC and 500 on layers."""

    max_frames: int | None = SAMPLE_FRAMES
    """How many frames, drawn at random, are clustered. ``null`` uses all frames of the corpus, in a second pass."""

    max_iter: int = 100
    """The maximum number of passes over the sample (at least two are made)."""

    batch_size: int = 10_000
    """The number of frames of a mini-batch."""

    tol: float = 0.0
    """Stop early when the centroids move less than this (squared, relative to the variance of the features)."""

    max_no_improvement: int | None = 100
    """Stop early when this many mini-batches brought no improvement of the smoothed inertia."""

    n_init: int = 20
    """How many random initialisations are tried; the best one is continued."""

    reassignment_ratio: float = 0.0
    """Units less frequent than this share of the most frequent one are moved elsewhere; 0 moves none."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.label_set or not self.label_set.replace("_", "").replace("-", "").isalnum():
            result.add_error(f"`label_set` must consist of letters, digits, '-' and '_', but is '{self.label_set}'.")

        for name in ("num_clusters", "max_frames", "max_iter", "batch_size", "n_init", "max_no_improvement"):
            if (value := getattr(self, name)) is not None and value < 1:
                result.add_error(f"`{name}` must be 1 or greater, but is {value} instead.")

        for name in ("tol", "reassignment_ratio"):
            if (value := getattr(self, name)) < 0.0:
                result.add_error(f"`{name}` must be 0 or greater, but is {value} instead.")

        return result


@final
class KMeansFitter(UnitModelFitter):
    """Fits one k-means codebook."""

    def __init__(self, config: KMeansConfig | None = None) -> None:
        self._config = config or KMeansConfig()

    @override
    def fit(
        self, stream: FeatureStream, *, seed: int, progress: ProgressReporter = NOOP_PROGRESS_REPORTER
    ) -> FitResult:
        """
        :raises UnitModelError: There are fewer frames than clusters.
        """
        config = self._config

        num_corpus_frames = int(stream.num_frames().sum())

        # Said before anything is read, and again below should the manifest have promised too much.
        self._check_num_frames(num_corpus_frames)

        use_all = config.max_frames is None

        sample = sample_frames(stream, config.max_frames or SAMPLE_FRAMES, seed=seed, progress=progress)

        self._check_num_frames(len(sample.frames))

        log.info(
            "Clustering {:,} of {:,} frames into {} units.", len(sample.frames), num_corpus_frames, config.num_clusters
        )

        with progress.create_task("k-means", total=None):
            estimator = self._fit_estimator(sample.frames, seed)

        num_frames, num_utterances = len(sample.frames), sample.num_utterances

        if use_all and num_frames < num_corpus_frames:
            blocks = shuffled_frames(stream, SAMPLE_FRAMES, seed=seed, progress=progress)

            num_frames, num_utterances = 0, len(stream.num_frames())

            for block in blocks:
                with _limit_threads(stream.dim * config.num_clusters):
                    for start in range(0, len(block), config.batch_size):
                        estimator.partial_fit(block[start : start + config.batch_size])

                num_frames += len(block)

        model = KMeansUnitModel(
            {LabelSetSpec(config.label_set, config.num_clusters, stream.rate): estimator.cluster_centers_},
            {
                "features": stream.describe(),
                "data": stream.describe_data(),
                "kmeans": asdict(config),
                "seed": seed,
                "num_frames": num_frames,
                "versions": _versions(),
            },
        )

        report = _report(model, sample.frames, num_frames, num_corpus_frames, num_utterances, int(estimator.n_steps_))

        if report.num_dead_units > 0:
            log.warning("{} of {} units are never used. Consider fewer clusters.", report.num_dead_units, model.size)

        return FitResult(model, report)

    def _fit_estimator(self, frames: Features, seed: int) -> Any:
        from sklearn.cluster import MiniBatchKMeans

        config = self._config

        estimator = MiniBatchKMeans(
            n_clusters=config.num_clusters,
            init="k-means++",
            max_iter=max(config.max_iter, 2),  # scikit-learn fails after a single mini-batch
            batch_size=min(config.batch_size, len(frames)),
            tol=config.tol,
            max_no_improvement=config.max_no_improvement,
            n_init=config.n_init,
            reassignment_ratio=config.reassignment_ratio,
            compute_labels=False,
            random_state=seed,
        )

        with _limit_threads(frames.shape[1] * config.num_clusters):
            return estimator.fit(frames)

    def _check_num_frames(self, num_frames: int) -> None:
        if num_frames < self._config.num_clusters:
            raise UnitModelError(
                f"k-means with {self._config.num_clusters} clusters needs at least as many frames, but there are "
                f"{num_frames}. Lower `num_clusters` (or raise `max_frames`), or give more audio."
            )


@contextmanager
def _limit_threads(work_per_frame: int) -> Iterator[None]:
    """Keep scikit-learn to one thread where a mini-batch is little work.

    Its threads wait for each other at every mini-batch: for K = 50 on MFCC (2 cores, other work beside) one thread took
    8 s for 360,000 frames, two took 23 s.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    with threadpool_limits(1 if work_per_frame < 1 << 15 else None, user_api="openmp"):
        yield


def create_kmeans_fitter(resolver: DependencyResolver, config: KMeansConfig) -> UnitModelFitter:
    """Create the fitter ``kmeans`` (the factory that is registered)."""
    return KMeansFitter(config)


def _report(
    model: KMeansUnitModel,
    sample: Features,
    num_frames: int,
    num_corpus_frames: int,
    num_utterances: int,
    num_steps: int,
) -> FitReport:
    sizes: NDArray[np.int64] = np.zeros(model.size, np.int64)

    inertia = 0.0

    for start in range(0, len(sample), 1 << 16):
        chunk = sample[start : start + (1 << 16)]

        units = model.assign(chunk)[0]

        sizes += np.bincount(units, minlength=model.size)

        inertia += float(np.square(chunk - model.centroids[0][units], dtype=np.float64).sum())

    return FitReport(
        num_units=model.size,
        num_frames=num_frames,
        num_corpus_frames=num_corpus_frames,
        num_utterances=num_utterances,
        inertia_per_frame=inertia / len(sample),
        min_cluster_size=int(sizes.min()),
        median_cluster_size=float(np.median(sizes)),
        max_cluster_size=int(sizes.max()),
        num_dead_units=int((sizes == 0).sum()),
        unit_entropy_bits=entropy_bits(sizes),
        num_steps=num_steps,
    )


def _versions() -> dict[str, str]:
    import sklearn

    from hubert_plugin import __version__

    return {
        "fairseq2-hubert": __version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
