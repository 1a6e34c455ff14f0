"""The section ``dataset`` of recognition: audio by manifest, and its transcripts."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.data.dataset import SpeechDatasetSection
from hubert_plugin.data.transcripts import TranscriptConfig


@dataclass(kw_only=True)
class HubertCtcDatasetSection(SpeechDatasetSection):
    """Which audio and which transcripts a recipe uses."""

    transcripts: TranscriptConfig = field(default_factory=TranscriptConfig)
    """Where the transcripts are."""

    train_minutes: float | None = None
    """If set, training uses so many minutes of the training split, drawn with ``subset_seed`` and spread evenly over
    the folders of the audio: in most corpora, those of the speakers."""

    subset_seed: int = 0
    """The seed of the draw."""

    on_bad_text: str = "raise"
    """What to do with transcripts that are empty, or have characters that the vocabulary lacks: ``raise``, or ``skip``
    the utterance. All are named."""

    on_long_text: str = "raise"
    """What to do with transcripts of more symbols than their audio has frames, which CTC cannot emit: ``raise``, or
    ``skip`` the utterance. All are named."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        self.check_policies(result, "on_bad_text", "on_long_text")

        if self.train_minutes is not None and self.train_minutes <= 0.0:
            result.add_error(f"`train_minutes` must be greater than 0, but is {self.train_minutes} instead.")

        return result
