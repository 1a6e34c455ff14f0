"""Which frames are masked: fairseq's sampling, drawn on the CPU from a seed, the epoch and the utterance.

Sources: ``fairseq/data/data_utils.py:399-588`` (static spans, overlap allowed, the draw of ``idc_select_ver=1`` and
``num_mask_ver=2``); FACTS 3. Differences, both documented: short utterances never raise and always keep a frame
unmasked (trap T14), and rows are not trimmed to one count unless ``same_count`` asks for it (trap T14, fairseq#5642).

Letters: T frames, p masking probability, l span length.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.random import Generator
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
"""True at masked frames. *Shape:* (T,)."""


@dataclass(kw_only=True)
class MaskConfig(Validatable):
    """How frames or channels are masked. The defaults are the paper's for frames: 8 % start a span of 10 (FACTS 3)."""

    prob: float = 0.8
    """fairseq's ``mask_prob``: the probability that a frame (or channel) starts a span, times the span length. 0.8 / 10
    = 8 %."""

    span_len: int = 10
    """The length of a span: in frames of 20 ms, or in channels where those are masked."""

    min_spans: int = 2
    """The smallest number of spans of an utterance."""

    same_count: bool = False
    """If true, frames are unmasked at random until all utterances of a batch have as many masked frames as the one with
    the fewest: fairseq's ``require_same_masks``. It breaks spans, and long utterances lose masks to short ones."""

    @property
    def masks_nothing(self) -> bool:
        """Whether no frame of any utterance is ever masked."""
        return self.prob == 0.0 and self.min_spans == 0

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 0.0 <= self.prob <= 1.0:
            result.add_error(f"`prob` must be between 0 and 1, but is {self.prob} instead.")

        if self.span_len < 1:
            result.add_error(f"`span_len` must be greater than or equal to 1, but is {self.span_len} instead.")

        if self.min_spans < 0:
            result.add_error(f"`min_spans` must not be negative, but is {self.min_spans} instead.")

        return result


def sample_mask(num_frames: int, config: MaskConfig, rng: Generator) -> Mask:
    """Return the mask of an utterance of ``num_frames`` frames.

    The number of spans is max(min_spans, floor(p T / l + U[0, 1))). Starts are drawn without replacement from
    [0, T - l), so the last frame stays unmasked; where fewer starts than spans are left, from [0, spans + 1).

    :returns: *Shape:* (T,). At least one frame is unmasked.
    """
    mask = np.zeros(num_frames, dtype=bool)

    span_len = config.span_len

    num_spans = max(config.min_spans, int(config.prob * num_frames / span_len + rng.random()))

    # Below this length fairseq would draw from an empty range, or raise since everything is masked.
    num_spans = min(num_spans, num_frames - 1)

    if num_spans < 1:
        return mask

    num_starts = num_frames - span_len

    if num_starts <= num_spans:
        num_starts = num_spans + 1

    starts = rng.choice(num_starts, num_spans, replace=False)

    covered = (starts[:, None] + np.arange(span_len)).reshape(-1)

    mask[covered[covered < num_frames]] = True

    if mask.all():
        # Cut spans short, at a random end, so that a quarter stays as context; fairseq raises here.
        keep = max(1, num_frames // 4)

        if rng.random() < 0.5:
            mask[:keep] = False
        else:
            mask[-keep:] = False

    return mask


def trim_to_same_count(masks: Sequence[Mask], rng: Generator) -> list[Mask]:
    """Unmask random frames until all masks have the smallest count among them (``require_same_masks``)."""
    target = min(int(m.sum()) for m in masks)

    trimmed = []

    for mask in masks:
        mask = mask.copy()

        masked = np.flatnonzero(mask)

        if masked.size > target:
            mask[rng.choice(masked, masked.size - target, replace=False)] = False

        trimmed.append(mask)

    return trimmed


def utterance_rng(seed: int, epoch: int, utterance_id: str, stream: int) -> Generator:
    """Return a generator that depends on nothing but its arguments (trap T15).

    :param stream: Distinguishes draws of different kinds for the same utterance.
    """
    key = zlib.crc32(utterance_id.encode("utf-8", "surrogateescape"))

    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, key, len(utterance_id), stream])))
