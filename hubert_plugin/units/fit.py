"""Fitting unit models: the interface, the report, and which frames a fit sees.

Letters: *N* utterances, *M* frames, *D* features of a frame, *K* units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil
from typing import Final

import numpy as np
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter
from numpy.typing import NDArray

from hubert_plugin.registry import Features, UnitModel
from hubert_plugin.units.stream import FeatureStream

MIN_FRAME_SHARE: Final = 0.1
"""At least this share of the frames of an utterance that is read is used.

Neighbouring frames are much alike, so a sample thinned tenfold knows ten times as many speakers; thinning further would
mostly cost reading.
"""


@dataclass(frozen=True)
class FitReport:
    """What there is to say about a fitted unit model.

    Inertia, sizes and entropy are measured on the sample; that is all frames the model was fitted on, unless
    ``max_frames`` is ``None`` and the corpus is larger than the default sample.
    """

    num_units: int
    """The number of units, K."""

    num_frames: int
    """The number of frames that were clustered."""

    num_corpus_frames: int
    """The number of frames that the corpus has, by its manifest."""

    num_utterances: int
    """The number of utterances that the frames come from."""

    inertia_per_frame: float
    """The mean squared distance of a frame to its centroid."""

    min_cluster_size: int
    median_cluster_size: float
    max_cluster_size: int

    num_dead_units: int
    """The number of units that no frame is assigned to."""

    unit_entropy_bits: float
    """The entropy of the distribution of units; log2 K if all are equally frequent."""

    num_steps: int
    """The number of mini-batches that were seen."""

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.num_units} units from {self.num_frames:,} of {self.num_corpus_frames:,} frames "
            f"({self.num_utterances:,} utterances): inertia {self.inertia_per_frame:.4g} per frame, cluster sizes "
            f"{self.min_cluster_size:,} / {self.median_cluster_size:,.0f} / {self.max_cluster_size:,} "
            f"(min / median / max), {self.num_dead_units} dead, entropy {self.unit_entropy_bits:.2f} bits"
        )


@dataclass(frozen=True)
class FitResult:
    """A fitted unit model and what there is to say about it."""

    model: UnitModel

    report: FitReport


class UnitModelFitter(ABC):
    """Fits a unit model on a stream of features."""

    @abstractmethod
    def fit(
        self, stream: FeatureStream, *, seed: int, progress: ProgressReporter = NOOP_PROGRESS_REPORTER
    ) -> FitResult:
        """Fit a unit model; memory does not grow with the corpus.

        Equal streams and seeds give equal models, unless rounding in threaded libraries leads to others (seen on large
        corpora, between processes).

        :raises UnitModelError: The features cannot be clustered as configured.
        """


@dataclass(frozen=True)
class FrameSample:
    """Frames drawn from a stream."""

    frames: Features
    """*Shape:* (M, D)."""

    num_utterances: int


def sample_frames(
    stream: FeatureStream,
    max_frames: int | None,
    *,
    seed: int,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "features",
) -> FrameSample:
    """Draw at most ``max_frames`` frames, or take all of them if there are no more (or if ``max_frames`` is ``None``).

    Utterances are read in seeded random order. Each gives the same share of its frames, chosen at random: the share
    that yields ``max_frames`` from the whole corpus, but no less than :data:`MIN_FRAME_SHARE`, so that of a corpus more
    than ten times larger only as much is read as is needed.
    """
    frames_of = stream.num_frames()

    num_total = int(frames_of.sum())

    limit = num_total if max_frames is None else min(max_frames, num_total)

    rng = np.random.default_rng([seed, 0])

    order = rng.permutation(len(frames_of))

    share = max(limit / max(num_total, 1), MIN_FRAME_SHARE)

    num_needed = int(np.searchsorted(np.cumsum(frames_of[order]) * share, limit)) + 1

    order = order[:num_needed]

    out = np.empty((limit, stream.dim), np.float32)

    num_read = num_taken = num_utterances = 0

    with progress.create_task(name, total=len(order)) as task:
        for _, features in stream.read(order.tolist()):
            # Systematic rounding: after any number of utterances, exactly ceil(share * frames read) are taken.
            num_read += len(features)

            count = min(ceil(share * num_read - 1e-9), limit) - num_taken

            if count > 0:
                chosen = features

                if count < len(features):
                    chosen = features[np.sort(rng.choice(len(features), count, replace=False))]

                out[num_taken : num_taken + len(chosen)] = chosen

                num_taken += len(chosen)
                num_utterances += 1

            task.step()

    return FrameSample(out[:num_taken], num_utterances)


def shuffled_frames(
    stream: FeatureStream,
    buffer_size: int,
    *,
    seed: int,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "k-means",
) -> Iterator[Features]:
    """Yield every frame of ``stream`` once, in shuffled blocks of ``buffer_size`` (the last one is smaller).

    Utterances come in seeded random order and the frames of a block are shuffled, so that a mini-batch holds frames of
    as many utterances as the buffer does.
    """
    rng = np.random.default_rng([seed, 1])

    order = rng.permutation(len(stream.num_frames()))

    buffer = np.empty((buffer_size, stream.dim), np.float32)

    filled = 0

    with progress.create_task(name, total=len(order)) as task:
        for _, features in stream.read(order.tolist()):
            start = 0

            while start < len(features):
                part = features[start : start + buffer_size - filled]

                buffer[filled : filled + len(part)] = part

                filled += len(part)
                start += len(part)

                if filled == buffer_size:
                    rng.shuffle(buffer)

                    yield buffer

                    filled = 0

            task.step()

    if filled:
        rest = buffer[:filled]

        rng.shuffle(rest)

        yield rest


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the entropy, in bits, of the distribution given by ``counts``; 0 if they are all zero."""
    p = counts[counts > 0] / max(int(counts.sum()), 1)

    return float(-(p * np.log2(p)).sum()) + 0.0
