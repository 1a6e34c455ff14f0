"""What all fitters share: draw a sample, fit one or several codebooks to it, say how good they are.

Letters: *M* frames, *D* features of a frame, *K* centroids.

Memory is bounded by the sample: ``max_frames`` times D times 4 bytes (156 MB for a million of MFCC), twice that while
the columns of a sub-space are copied. Several hundred frames a unit fix a centroid: a larger sample changes the inertia
in the third digit only. ``max_frames: null`` takes in every frame of the corpus all the same: after the fit on a sample
of :data:`SAMPLE_FRAMES`, the whole stream is read once more, with mini-batch updates (``sklearn``) or for one pass of
Lloyd's algorithm (``torch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fairseq2.gang import Gang
from fairseq2.logging import log
from fairseq2.utils.progress import ProgressReporter
from numpy.typing import NDArray

from hubert_plugin.errors import UnitModelError
from hubert_plugin.ranks import raise_together
from hubert_plugin.registry import Features, LabelSetSpec
from hubert_plugin.units.collective import Ranks
from hubert_plugin.units.estimator import SAMPLE_FRAMES, ClusteringConfig, create_estimator
from hubert_plugin.units.fit import FitReport, FrameSample, UnitModelFitter, sample_frames, shuffled_frames
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.stream import FeatureStream
from hubert_plugin.units.threads import Workers


@dataclass(frozen=True)
class CodebookSpec:
    """A codebook to fit."""

    label_set: str

    num_clusters: int

    columns: slice | None = None
    """The sub-space: which features it sees; ``None`` is all of them."""


@dataclass(frozen=True)
class Clustering:
    """Fitted codebooks."""

    specs: tuple[CodebookSpec, ...]

    centroids: tuple[Features, ...]
    """*Shape of an item:* (K, columns), float32."""

    reports: tuple[FitReport, ...]

    num_frames: int
    """The number of frames that were clustered, on all ranks."""

    sample: Features
    """This rank's part of the frames that reports are measured on. *Shape:* (M, D)."""

    ranks: Ranks
    """The ranks that hold the sample."""

    def codebooks(self, rate: int) -> dict[LabelSetSpec, Features]:
        """Return the centroids by label set, of ``rate`` units per second."""
        return {
            LabelSetSpec(s.label_set, s.num_clusters, rate): c for s, c in zip(self.specs, self.centroids, strict=True)
        }


def fit_codebooks(
    stream: FeatureStream,
    specs: Sequence[CodebookSpec],
    config: ClusteringConfig,
    *,
    seed: int,
    progress: ProgressReporter,
    gang: Gang | None = None,
) -> Clustering:
    """Fit all codebooks in one pass over ``stream`` (two with ``max_frames: null`` and a large corpus).

    :param gang: Only for the backend ``torch``.
    :raises UnitModelError: There are fewer frames than clusters, or the features cannot be used.
    """
    ranks, device = Ranks(gang), torch.device("cpu") if gang is None else gang.device

    num_corpus_frames = int(stream.num_frames().sum())

    largest = max(s.num_clusters for s in specs)

    # Said before anything is read, and again below should the manifest have promised too much.
    _check_num_frames(largest, num_corpus_frames)

    sample = _sample(stream, config.max_frames or SAMPLE_FRAMES, seed, progress, ranks, gang)

    num_frames = _total(ranks, len(sample.frames))
    num_utterances = _total(ranks, sample.num_utterances)

    _check_num_frames(largest, num_frames)

    log.info(
        "Clustering {:,} of {:,} frames into {} units.",
        num_frames,
        num_corpus_frames,
        " + ".join(str(s.num_clusters) for s in specs),
    )

    with Workers() as workers:
        estimators = [create_estimator(config, s.num_clusters, seed, ranks, workers, device) for s in specs]

        with progress.create_task("k-means", total=len(specs)) as task:
            for spec, estimator in zip(specs, estimators, strict=True):
                estimator.fit(_columns(sample.frames, spec))

                task.step()

        if config.max_frames is None and num_frames < num_corpus_frames:
            num_frames, num_utterances = 0, len(stream.num_frames())

            # Like the sample, the buffers of all ranks together are bounded.
            buffer_size = max(1, SAMPLE_FRAMES // ranks.size)

            blocks = shuffled_frames(
                stream, buffer_size, seed=seed, progress=progress, rank=ranks.rank, num_ranks=ranks.size
            )

            for block in blocks:
                for spec, estimator in zip(specs, estimators, strict=True):
                    estimator.feed(_columns(block, spec))

                num_frames += len(block)

            num_frames = _total(ranks, num_frames)

            for estimator in estimators:
                estimator.finish()

        centroids = tuple(e.centroids for e in estimators)

        reports = []

        for spec, c, estimator in zip(specs, centroids, estimators, strict=True):
            frames = _columns(sample.frames, spec)

            units = NearestCentroid(c)(torch.from_numpy(frames), workers).numpy()

            sizes, inertia = measure(frames, units, c, ranks)

            reports.append(
                FitReport(
                    num_units=spec.num_clusters,
                    num_frames=num_frames,
                    num_corpus_frames=num_corpus_frames,
                    num_utterances=num_utterances,
                    inertia_per_frame=inertia,
                    cluster_sizes=tuple(sizes.tolist()),
                    num_steps=estimator.num_steps,
                    label_set=spec.label_set,
                )
            )

    for report in reports:
        if report.num_dead_units > 0:
            log.warning(
                "{} of {} units of '{}' are never used. Consider fewer clusters.",
                report.num_dead_units,
                report.num_units,
                report.label_set,
            )

    return Clustering(tuple(specs), centroids, tuple(reports), num_frames, sample.frames, ranks)


def _sample(
    stream: FeatureStream, max_frames: int, seed: int, progress: ProgressReporter, ranks: Ranks, gang: Gang | None
) -> FrameSample:
    """Draw this rank's part of the sample; if one rank cannot, all end with an error."""
    sample, error = FrameSample(np.empty((0, stream.dim), np.float32), 0), None

    try:
        sample = sample_frames(stream, max_frames, seed=seed, progress=progress, rank=ranks.rank, num_ranks=ranks.size)
    except Exception as ex:
        error = ex

    if gang is not None:
        raise_together(gang, error)
    elif error is not None:
        raise error

    return sample


def measure(
    frames: Features, units: NDArray[np.int64], centroids: Features, ranks: Ranks
) -> tuple[NDArray[np.int64], float]:
    """Return how many frames each unit has, and their mean squared distance to its centroid, over all ranks.

    :param frames: This rank's. *Shape:* (M, D).
    :param units: Their units. *Shape:* (M,).
    """
    totals = np.zeros(len(centroids) + 2, np.float64)  # sizes, inertia, frames

    totals[:-2] = np.bincount(units, minlength=len(centroids))

    for start in range(0, len(frames), 1 << 16):
        chunk = slice(start, start + (1 << 16))

        totals[-2] += float(np.square(frames[chunk] - centroids[units[chunk]], dtype=np.float64).sum())

    totals[-1] = len(frames)

    totals = ranks.sum(torch.from_numpy(totals)).numpy()

    return totals[:-2].astype(np.int64), float(totals[-2] / totals[-1])


def provenance(stream: FeatureStream, fitter: UnitModelFitter, seed: int, clustering: Clustering) -> dict[str, object]:
    """Return what a unit model records of its making."""
    return {**making(stream, fitter, seed), "num_frames": clustering.num_frames, "versions": _versions()}


def making(stream: FeatureStream, fitter: UnitModelFitter, seed: int) -> dict[str, object]:
    """Return what is known of it before the fit: by this, unit models of the same making are told from others."""
    return {"features": stream.describe(), "data": stream.describe_data(), **fitter.describe(), "seed": seed}


def _columns(frames: Features, spec: CodebookSpec) -> Features:
    return frames if spec.columns is None else np.ascontiguousarray(frames[:, spec.columns])


def _total(ranks: Ranks, value: int) -> int:
    return int(sum(ranks.gather(value)))


def _check_num_frames(num_clusters: int, num_frames: int) -> None:
    if num_frames < num_clusters:
        raise UnitModelError(
            f"k-means with {num_clusters} clusters needs at least as many frames, but there are {num_frames}. Lower "
            "the number of clusters (or raise `max_frames`), or give more audio."
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
