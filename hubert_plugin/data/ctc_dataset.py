"""The section ``dataset`` of recognition: audio by manifest, and its transcripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import DatasetSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.dataset import DEMO_DATASET, HUBERT_DATASET
from hubert_plugin.data.transcripts import TranscriptConfig
from hubert_plugin.demo import DemoCorpusConfig


@dataclass(kw_only=True)
class HubertCtcDatasetSection(DatasetSection):
    """Which audio and which transcripts a recipe uses."""

    name: str | None = DEMO_DATASET
    """The name of a dataset card."""

    family: str | None = HUBERT_DATASET
    """The dataset family, where no card is named."""

    manifest_dir: Path | None = None
    """The folder with ``SPLIT.tsv`` manifests. Takes the place of ``name``."""

    train_split: str = "train"
    """The split that is trained on."""

    valid_split: str | None = "valid"
    """The split whose word error rate is measured; ``None``: no validation."""

    transcripts: TranscriptConfig = field(default_factory=TranscriptConfig)
    """Where the transcripts are."""

    train_minutes: float | None = None
    """If set, training uses so many minutes of the training split, drawn with ``subset_seed`` and spread evenly over
    the folders of the audio: in most corpora, those of the speakers."""

    subset_seed: int = 0
    """The seed of the draw."""

    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """Size, level and seed of the embedded corpus."""

    sample_rate_policy: str = "resample"
    """What to do with audio of another rate than 16 kHz: ``resample`` or ``refuse``."""

    on_bad_audio: str = "raise"
    """What to do with unreadable audio during training: ``raise``, or ``skip`` and count it in the metrics."""

    on_bad_text: str = "raise"
    """What to do with transcripts that are empty, or have characters that the vocabulary lacks: ``raise``, or ``skip``
    the utterance. All are named."""

    on_long_text: str = "raise"
    """What to do with transcripts of more symbols than their audio has frames, which CTC cannot emit: ``raise``, or
    ``skip`` the utterance. All are named."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.name is None and self.family is None and self.manifest_dir is None:
            result.add_error("`name` or `manifest_dir` must be specified.")

        if self.sample_rate_policy not in ("resample", "refuse"):
            result.add_error(f"`sample_rate_policy` must be 'resample' or 'refuse', not '{self.sample_rate_policy}'.")

        for name in ("on_bad_audio", "on_bad_text", "on_long_text"):
            if getattr(self, name) not in ("raise", "skip"):
                result.add_error(f"`{name}` must be 'raise' or 'skip', but is '{getattr(self, name)}' instead.")

        if self.train_minutes is not None and self.train_minutes <= 0.0:
            result.add_error(f"`train_minutes` must be greater than 0, but is {self.train_minutes} instead.")

        return result

    def audio_policy(self, *, normalize: bool) -> AudioPolicy:
        """Return how audio is read; ``normalize`` is the model's wish."""
        return AudioPolicy(sample_rate=self.sample_rate_policy, normalize=normalize)  # type: ignore[arg-type]
