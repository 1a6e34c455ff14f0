"""Which utterances meet in a batch, how long each is cut, and in which order batches come.

Crop first, then bucket by length: fairseq2's batcher would drop utterances over the maximum before the cropper sees
them (FACTS 12.3). A plan is a pure function of the lengths, the configuration, the seed and the epoch, so any epoch
can be made again and entered anywhere: that is what makes exact resuming simple.

Everything is counted in frames; crops start and end on the frame clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray

from hubert_plugin import frames


@dataclass(kw_only=True)
class BatchConfig(Validatable):
    """How utterances are cut and put into batches."""

    batch_seconds: float = 87.5
    """The seconds of audio, padding included, of a batch (paper, base: 87.5 s on each of 32 GPUs)."""

    max_seconds: float = 15.625
    """Of longer utterances pretraining takes so much, cropped at random; fine-tuning leaves them out (fairseq
    ``max_sample_size`` 250,000 samples)."""

    min_seconds: float = 2.0
    """Shorter utterances are left out (fairseq ``min_sample_size`` 32,000 samples)."""

    length: Literal["bucket", "shortest", "pad", "pad_bucket"] = "bucket"
    """``bucket``: cut each utterance to the next lower of a fixed set of lengths: no padding, few shapes, and what is
    cut does not depend on the neighbours. ``shortest``: cut to the shortest of the batch, as fairseq. ``pad``: cut
    nothing but to ``max_seconds``, pad with zeros. ``pad_bucket``: likewise, but a batch holds utterances of one bucket
    in any order, so that batches have new members in every epoch at the price of a little padding."""

    bucket_growth: float = 1.08
    """The ratio of neighbouring bucket lengths."""

    max_examples: int | None = None
    """The largest number of utterances of a batch."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.min_seconds > self.max_seconds:
            result.add_error(
                f"`min_seconds` ({self.min_seconds}) must not be greater than `max_seconds` ({self.max_seconds})."
            )

        if self.max_seconds < frames.seconds(frames.RECEPTIVE_FIELD):
            result.add_error(f"`max_seconds` must be at least 0.025, one frame, but is {self.max_seconds} instead.")

        if not math.isfinite(self.batch_seconds):
            result.add_error(f"`batch_seconds` must be a finite number, but is {self.batch_seconds} instead.")

        if self.batch_seconds < self.max_seconds:
            result.add_error(
                f"`batch_seconds` ({self.batch_seconds}) must not be smaller than `max_seconds` ({self.max_seconds})."
            )

        if self.bucket_growth <= 1.0:
            result.add_error(f"`bucket_growth` must be greater than 1, but is {self.bucket_growth} instead.")

        if self.max_examples is not None and self.max_examples < 1:
            result.add_error(f"`max_examples` must be greater than or equal to 1, but is {self.max_examples} instead.")

        return result


@dataclass(frozen=True)
class PlannedBatch:
    """Which utterances a batch holds."""

    indices: NDArray[np.int64]
    """Positions in the manifest. *Shape:* (N,)."""

    num_frames: int | None
    """The number of frames that each utterance is cut to; ``None``: only to the maximum (padding mode)."""


def usable_utterances(num_samples: NDArray[np.int64], config: BatchConfig) -> NDArray[np.int64]:
    """Return the positions of utterances that are not too short."""
    return np.flatnonzero(num_samples >= max(config.min_seconds * frames.SAMPLE_RATE, frames.RECEPTIVE_FIELD))


def max_frames(config: BatchConfig) -> int:
    """Return the number of frames of ``max_seconds``."""
    return frames.num_frames(int(config.max_seconds * frames.SAMPLE_RATE))


def bucket_lengths(shortest: int, longest: int, growth: float) -> NDArray[np.int64]:
    """Return the bucket lengths, in frames, from ``shortest`` up to ``longest``, each ``growth`` times the one
    before."""
    lengths = [longest]

    while lengths[-1] > shortest:
        lengths.append(max(shortest, min(int(lengths[-1] / growth), lengths[-1] - 1)))

    return np.asarray(lengths[::-1], dtype=np.int64)


def plan_epoch(
    num_frames: NDArray[np.int64], usable: NDArray[np.int64], config: BatchConfig, rng: np.random.Generator | None
) -> list[PlannedBatch]:
    """Return the batches of an epoch.

    :param num_frames: The frames of every utterance that have labels. *Shape:* (manifest length,).
    :param usable: The positions that take part.
    :param rng: Shuffles utterances and batches; ``None``: longest first, nothing shuffled.
    """
    longest = max_frames(config)

    lengths = np.minimum(num_frames[usable], longest)

    usable, lengths = usable[lengths > 0], lengths[lengths > 0]

    if usable.size == 0:
        return []

    if config.length == "bucket":
        buckets = bucket_lengths(int(lengths.min()), int(lengths.max()), config.bucket_growth)

        lengths = buckets[np.searchsorted(buckets, lengths, side="right") - 1]
    elif config.length == "pad_bucket":
        buckets = bucket_lengths(int(lengths.min()), int(lengths.max()), config.bucket_growth)

        lengths = buckets[np.searchsorted(buckets, lengths)]

    # Ties are broken at random (fairseq ``ordered_indices``), so batches have new members in every epoch.
    tie = np.arange(usable.size) if rng is None else rng.permutation(usable.size)

    order = np.lexsort((tie, -lengths))

    usable, lengths = usable[order], lengths[order]

    batches: list[PlannedBatch] = []

    start = 0

    while start < usable.size:
        width = int(lengths[start])

        # Longest first, so the first utterance gives the width of a padded or cut batch.
        seconds = frames.seconds(frames.num_samples_of(width))

        size = max(1, int(config.batch_seconds / seconds))

        if config.max_examples is not None:
            size = min(size, config.max_examples)

        end = min(start + size, usable.size)

        if config.length == "bucket":
            end = min(end, start + int(np.searchsorted(-lengths[start:end], -width, side="right")))

        cut = None if config.length in ("pad", "pad_bucket") else int(lengths[end - 1])

        batches.append(PlannedBatch(usable[start:end], cut))

        start = end

    if rng is not None:
        batches = [batches[i] for i in rng.permutation(len(batches))]

    return batches
