"""The configuration of the task ``hubert_ctc``, and the batching of validation that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.data.ctc_loader import CtcMaskConfig
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.tasks.batching import BatchingTaskConfig
from hubert_plugin.text.normalization import TextConfig


def _default_batching() -> BatchConfig:
    # FACTS 1.5: 3.2M samples on a GPU; nothing is cut.
    return BatchConfig(batch_seconds=200.0, max_seconds=40.0, min_seconds=0.025, length="pad_bucket")


@dataclass(kw_only=True)
class HubertCtcTaskConfig(BatchingTaskConfig):
    """How audio is put into batches and masked, and how transcripts are normalised."""

    batching: BatchConfig = field(default_factory=_default_batching)
    """Batches of the training split. Nothing is cut: utterances longer than ``max_seconds`` are left out."""

    mask: CtcMaskConfig = field(default_factory=CtcMaskConfig)
    """What is masked in training."""

    text: TextConfig = field(default_factory=TextConfig)
    """How transcripts are normalised before they are spelled."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        if self.batching.length not in ("pad", "pad_bucket"):
            result.add_error(
                f"`batching.length` must be 'pad' or 'pad_bucket', not '{self.batching.length}': audio that is cut no "
                "longer fits its transcript."
            )

        return result


def batching_of_all(manifest: Manifest, config: HubertCtcTaskConfig) -> BatchConfig:
    """Return the batching of validation, which no utterance is too short or too long for."""
    # A sample more, lest rounding cuts the longest.
    longest = frames.seconds(int(manifest.sizes.max()) + 1)

    seconds = config.valid_batch_seconds or config.batching.batch_seconds

    return replace(
        config.batching,
        min_seconds=frames.seconds(frames.RECEPTIVE_FIELD),
        max_seconds=longest,
        batch_seconds=max(seconds, longest),
    )
