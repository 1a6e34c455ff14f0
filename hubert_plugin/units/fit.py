"""Fitting unit models: the interface, the report, and which frames a fit sees.

Letters: *N* utterances, *M* frames, *D* features of a frame, *K* units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Final

import numpy as np
from fairseq2.gang import Gang
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter
from numpy.typing import NDArray

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import Features, UnitModel
from hubert_plugin.units.stream import FeatureStream

MIN_FRAME_SHARE: Final = 0.1
"""At least this share of the frames of an utterance that is read is used.

Neighbouring frames are much alike, so a sample thinned tenfold knows ten times as many speakers; thinning further would
mostly cost reading.
"""


@dataclass(frozen=True)
class FitReport:
    """What there is to say about the units of one label set.

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

    cluster_sizes: tuple[int, ...]
    """The number of frames of each unit."""

    num_steps: int
    """How often the centroids were updated."""

    label_set: str = "km"
    """The name of the label set."""

    @property
    def min_cluster_size(self) -> int:
        """The number of frames of the rarest unit."""
        return min(self.cluster_sizes)

    @property
    def median_cluster_size(self) -> float:
        """The median over units of their number of frames."""
        return float(median(self.cluster_sizes))

    @property
    def max_cluster_size(self) -> int:
        """The number of frames of the most frequent unit."""
        return max(self.cluster_sizes)

    @property
    def num_dead_units(self) -> int:
        """The number of units that no frame is assigned to."""
        return self.cluster_sizes.count(0)

    @property
    def unit_entropy_bits(self) -> float:
        """The entropy of the distribution of units; log2 K if all are equally frequent."""
        return entropy_bits(np.array(self.cluster_sizes, np.int64))

    @property
    def perplexity(self) -> float:
        """2 to the entropy: the number of units that would be as hard to guess, were they equally frequent."""
        return float(2.0**self.unit_entropy_bits)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return {
            **asdict(self),
            "cluster_sizes": list(self.cluster_sizes),
            "min_cluster_size": self.min_cluster_size,
            "median_cluster_size": self.median_cluster_size,
            "max_cluster_size": self.max_cluster_size,
            "num_dead_units": self.num_dead_units,
            "unit_entropy_bits": self.unit_entropy_bits,
            "unit_perplexity": self.perplexity,
        }

    def __str__(self) -> str:
        return (
            f"'{self.label_set}': {self.num_units} units from {self.num_frames:,} of {self.num_corpus_frames:,} frames "
            f"({self.num_utterances:,} utterances): inertia {self.inertia_per_frame:.4g} per frame, cluster sizes "
            f"{self.min_cluster_size:,} / {self.median_cluster_size:,.0f} / {self.max_cluster_size:,} "
            f"(min / median / max), {self.num_dead_units} dead, entropy {self.unit_entropy_bits:.2f} bits "
            f"(perplexity {self.perplexity:.1f})"
        )


@dataclass(frozen=True)
class FitResult:
    """A fitted unit model and what there is to say about it."""

    model: UnitModel

    reports: tuple[FitReport, ...]
    """One for each label set of the model, in its order."""

    @property
    def report(self) -> FitReport:
        """The report of the first label set."""
        return self.reports[0]


class UnitModelFitter(ABC):
    """Fits a unit model on a stream of features."""

    @property
    def distributed(self) -> bool:
        """Whether all ranks work: then each calls :meth:`fit` with the gang, else only one does."""
        return False

    def describe(self) -> Mapping[str, object]:
        """Return what unit models record of this fitter: its settings, under its name. By this, models of the same
        making are told from others; nothing is compared of a fitter that says nothing."""
        return {}

    @abstractmethod
    def fit(
        self,
        stream: FeatureStream,
        *,
        seed: int,
        progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
        gang: Gang | None = None,
    ) -> FitResult:
        """Fit a unit model; memory does not grow with the corpus. Equal streams and seeds give equal models.

        :param gang: The ranks that fit together; each reads its share of the stream, and all return the same model.
        :raises UnitModelError: The features cannot be clustered as configured.
        """


@dataclass(frozen=True)
class FrameSample:
    """Frames drawn from a stream."""

    frames: Features
    """Those of this rank; the ranks' parts stand one behind another. *Shape:* (M, D)."""

    num_utterances: int
    """How many utterances the frames of this rank come from."""


def sample_frames(
    stream: FeatureStream,
    max_frames: int | None,
    *,
    seed: int,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "features",
    rank: int = 0,
    num_ranks: int = 1,
) -> FrameSample:
    """Draw at most ``max_frames`` frames, or take all of them if there are no more (or if ``max_frames`` is ``None``).

    Utterances are read in seeded random order. Each gives the same share of its frames, chosen at random: the share
    that yields ``max_frames`` from the whole corpus, but no less than :data:`MIN_FRAME_SHARE`, so that of a corpus more
    than ten times larger only as much is read as is needed.

    :param rank: Which part of the utterances to read; the parts of all ranks together are the sample of one.
    :raises UnitModelError: Features are not finite, or of another dimension than the stream's.
    """
    frames_of = stream.num_frames()

    num_total = int(frames_of.sum())

    limit = num_total if max_frames is None else min(max_frames, num_total)

    order = np.random.default_rng([seed, 0]).permutation(len(frames_of))

    share = max(limit / max(num_total, 1), MIN_FRAME_SHARE)

    # Systematic rounding: after any number of utterances, exactly ceil(share * frames so far) are taken.
    upto = np.minimum(np.ceil(share * np.cumsum(frames_of[order]) - 1e-9).astype(np.int64), limit)

    counts = np.diff(upto, prepend=0)

    # Each rank takes utterances until it has its share of the frames; those that give none are not read.
    bounds = np.searchsorted(upto - counts, [limit * r // num_ranks for r in range(num_ranks)])

    first, last = int(bounds[rank]), int(bounds[rank + 1]) if rank + 1 < num_ranks else len(order)

    mine = np.arange(first, last)[counts[first:last] > 0]

    count_of = dict(zip(order[mine].tolist(), counts[mine].tolist(), strict=True))

    out = np.empty((sum(count_of.values()), stream.dim), np.float32)

    num_taken = 0

    with progress.create_task(name, total=len(count_of)) as task:
        for idx, features in stream.read(list(count_of)):
            check_frames(features, stream.dim, idx)

            count = min(count_of[idx], len(features))

            if count < len(features):
                # Seeded by the utterance: the choice does not depend on who reads it, nor on what was read before.
                rng = np.random.default_rng([seed, 4, idx])

                features = features[np.sort(rng.choice(len(features), count, replace=False))]

            out[num_taken : num_taken + count] = features

            num_taken += count

            task.step()

    return FrameSample(out[:num_taken], len(count_of))


def check_frames(features: Features, dim: int, utterance: int) -> None:
    """Check the features of an utterance.

    :raises UnitModelError: They are not finite, or not of dimension ``dim``.
    """
    if features.ndim != 2 or features.shape[1] != dim:
        raise UnitModelError(
            f"The features of utterance {utterance} (counted from 0) must have the shape (frames, {dim}), but have the "
            f"shape {features.shape}. All features that are clustered together must come from one source."
        )

    if not is_finite(features):
        raise UnitModelError(
            f"The features of utterance {utterance} (counted from 0) hold NaN or infinite values. Remove the utterance "
            "or mend its features."
        )


def is_finite(features: Features) -> bool:
    """Return whether all values are finite."""
    # A sum is NaN or infinite as soon as one value is; only then each is looked at: finite ones may add up to too much.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(features, axis=None)) or np.isfinite(features).all())


def shuffled_frames(
    stream: FeatureStream,
    buffer_size: int,
    *,
    seed: int,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "k-means",
    rank: int = 0,
    num_ranks: int = 1,
) -> Iterator[Features]:
    """Yield every frame of ``stream`` once, in shuffled blocks of ``buffer_size`` (the last one is smaller).

    Utterances come in seeded random order and the frames of a block are shuffled, so that a mini-batch holds frames of
    as many utterances as the buffer does.
    """
    rng = np.random.default_rng([seed, 1])

    order = rng.permutation(len(stream.num_frames()))[rank::num_ranks]

    buffer = np.empty((buffer_size, stream.dim), np.float32)

    filled = 0

    with progress.create_task(name, total=len(order)) as task:
        for idx, features in stream.read(order.tolist()):
            check_frames(features, stream.dim, idx)

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
