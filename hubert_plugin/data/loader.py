"""Turns a planned batch into tensors: read, crop, label, mask, collate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.batch import HubertBatch, collate
from hubert_plugin.data.masks import MaskConfig, sample_mask, trim_to_same_count, utterance_rng
from hubert_plugin.data.plan import PlannedBatch
from hubert_plugin.errors import AudioError

CROP_STREAM, MASK_STREAM, TRIM_STREAM = 0, 1, 2

ReadWaveform = Callable[[int], NDArray[np.float32]]
"""Returns the waveform of the utterance at a manifest position. *Shape:* (n,)."""

ReadUnits = Callable[[int], NDArray[np.int32]]
"""Returns the labels of the utterance at a manifest position, at the rate of their label set."""


@dataclass(frozen=True)
class LabelReader:
    """One label set as the loader sees it."""

    read: ReadUnits
    rate: int

    def units(self, idx: int, first_frame: int, num_frames: int) -> NDArray[np.int32]:
        """Return the units of ``num_frames`` frames from ``first_frame`` on. 100 Hz labels: every second one (T7)."""
        step = frames.labels_per_frame(self.rate)

        return self.read(idx)[first_frame * step : (first_frame + num_frames) * step : step]


@final
class BatchLoader:
    """Makes batches; what it draws depends only on (seed, epoch, utterance)."""

    def __init__(
        self,
        ids: Sequence[str],
        num_frames: NDArray[np.int64],
        read_waveform: ReadWaveform,
        label_readers: Sequence[LabelReader],
        *,
        mask: MaskConfig,
        max_frames: int,
        seed: int,
        on_bad_audio: Literal["raise", "skip"] = "raise",
    ) -> None:
        """
        :param num_frames: The frames of every utterance that have labels. *Shape:* (manifest length,).
        :param max_frames: Longer utterances are cropped to this, also in padding mode.
        """
        self._ids = ids
        self._num_frames = num_frames
        self._read_waveform = read_waveform
        self._label_readers = label_readers
        self._mask = mask
        self._max_frames = max_frames
        self._seed = seed
        self._on_bad_audio = on_bad_audio

    def load(self, batch: PlannedBatch, epoch: int) -> HubertBatch | None:
        """Return the batch, or ``None`` where no utterance of it could be read and the policy is ``skip``."""
        waveforms, labels, masks, ids = [], [], [], []

        num_skipped = 0

        for idx in batch.indices.tolist():
            try:
                waveform = self._read_waveform(idx)
            except AudioError as ex:
                if self._on_bad_audio == "raise":
                    raise

                log.warning("Skipped an utterance: {}", ex)

                num_skipped += 1

                continue

            total = int(self._num_frames[idx])

            length = min(total, self._max_frames) if batch.num_frames is None else batch.num_frames

            first = self._draw_start(idx, epoch, total - length)

            cropped = _crop(waveform, first, length, total)

            if batch.num_frames is not None:
                # Without the samples after the last frame, so that a bucket is one length.
                cropped = cropped[: frames.num_samples_of(length)]

            waveforms.append(cropped)

            labels.append([r.units(idx, first, length) for r in self._label_readers])

            masks.append(sample_mask(length, self._mask, self._rng(idx, epoch, MASK_STREAM)))

            ids.append(self._ids[idx])

        if not waveforms:
            return None

        if self._mask.same_count:
            masks = trim_to_same_count(masks, self._rng(int(batch.indices[0]), epoch, TRIM_STREAM))

        return collate(waveforms, labels, masks, ids, num_skipped)

    def _draw_start(self, idx: int, epoch: int, slack: int) -> int:
        if slack <= 0:
            return 0

        return int(self._rng(idx, epoch, CROP_STREAM).integers(slack + 1))

    def _rng(self, idx: int, epoch: int, stream: int) -> np.random.Generator:
        return utterance_rng(self._seed, epoch, self._ids[idx], stream)


def _crop(waveform: NDArray[np.float32], first: int, length: int, total: int) -> NDArray[np.float32]:
    """Return the samples of ``length`` frames from frame ``first`` on."""
    if length == total == frames.num_frames(waveform.size):
        # The whole utterance, including the last samples that fill no frame.
        return waveform

    start = frames.frame_start(first)

    return waveform[start : start + frames.num_samples_of(length)]
