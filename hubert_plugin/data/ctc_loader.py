"""Turns a planned batch of recognition into tensors: read, mask, collate. Nothing is cut (trap T21)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, final

import numpy as np
from fairseq2.logging import log
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.data.ctc_batch import CtcBatch, collate_ctc
from hubert_plugin.data.ctc_text import SplitTexts
from hubert_plugin.data.loader import MASK_STREAM
from hubert_plugin.data.masks import Mask, MaskConfig, sample_mask, utterance_rng
from hubert_plugin.data.plan import PlannedBatch
from hubert_plugin.errors import AudioError

CHANNEL_STREAM: Final = 4
"""Distinguishes the draws of channel masks from the others of an utterance."""


@dataclass(kw_only=True)
class CtcMaskConfig(Validatable):
    """What is masked in fine-tuning; in training only. The defaults are fairseq's ``base_10h.yaml`` (FACTS 1.5)."""

    time: MaskConfig = field(default_factory=lambda: MaskConfig(prob=0.75))
    """Frames that become the mask embedding. ``prob`` 0: none."""

    channel: MaskConfig = field(default_factory=lambda: MaskConfig(prob=0.5, span_len=64, min_spans=0))
    """Channels that become 0 in all frames of an utterance; a span is one of channels. ``prob`` 0: none."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("time", "channel"):
            if getattr(self, name).same_count:
                result.add_error(f"`{name}.same_count` must be false: utterances are masked one by one.")

        return result


@final
class CtcLoader:
    """Makes batches; what it draws depends only on (seed, epoch, utterance)."""

    def __init__(
        self,
        ids: Sequence[str],
        texts: SplitTexts,
        read_waveform: Callable[[int], NDArray[np.float32]],
        *,
        mask: CtcMaskConfig | None,
        model_dim: int,
        seed: int,
        on_bad_audio: Literal["raise", "skip"] = "raise",
    ) -> None:
        """
        :param read_waveform: Returns the waveform of the utterance at a manifest position. *Shape:* (n,).
        :param mask: ``None``: nothing is masked (validation).
        """
        self._ids = ids
        self._texts = texts
        self._read_waveform = read_waveform
        self._mask = mask
        self._model_dim = model_dim
        self._seed = seed
        self._on_bad_audio = on_bad_audio

    def load(self, batch: PlannedBatch, epoch: int) -> CtcBatch | None:
        """Return the batch, or ``None`` where no utterance of it could be read and the policy is ``skip``."""
        waveforms: list[NDArray[np.float32]] = []

        indices: list[int] = []

        for idx in batch.indices.tolist():
            try:
                waveforms.append(self._read_waveform(idx))
            except AudioError as ex:
                if self._on_bad_audio == "raise":
                    raise

                log.warning("Skipped an utterance: {}", ex)

                continue

            indices.append(idx)

        if not waveforms:
            return None

        temporal_masks, channel_masks = self._draw_masks(indices, waveforms, epoch)

        return collate_ctc(
            waveforms,
            [self._texts.tokens[i].astype(np.int64) for i in indices],
            [self._texts.texts[i] for i in indices],
            [self._ids[i] for i in indices],
            temporal_masks=temporal_masks,
            channel_masks=channel_masks,
            num_skipped=batch.indices.size - len(indices),
        )

    def _draw_masks(
        self, indices: Sequence[int], waveforms: Sequence[NDArray[np.float32]], epoch: int
    ) -> tuple[list[Mask] | None, list[Mask] | None]:
        if (mask := self._mask) is None:
            return None, None

        def rng(idx: int, stream: int) -> np.random.Generator:
            return utterance_rng(self._seed, epoch, self._ids[idx], stream)

        temporal, channel = None, None

        if mask.time.prob > 0.0:
            temporal = [
                sample_mask(frames.num_frames(w.size), mask.time, rng(i, MASK_STREAM))
                for i, w in zip(indices, waveforms, strict=True)
            ]

        if mask.channel.prob > 0.0:
            channel = [sample_mask(self._model_dim, mask.channel, rng(i, CHANNEL_STREAM)) for i in indices]

        return temporal, channel
