from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.scan import AUDIO_EXTENSIONS, OnError


@dataclass(kw_only=True)
class ManifestRecipeConfig(Validatable):
    """The configuration of ``fairseq2 recipe hubert manifest``."""

    source: Path | None = None
    """The folder of audio (zip and tar archives in it are looked into), one uncompressed zip or tar archive, or a kaldi
    data folder (one that holds ``wav.scp``)."""

    valid_source: Path | None = None
    """Where validation comes from, if it is not to be a part of ``source``: of the same kinds."""

    allow_pipes: bool = False
    """Whether commands in a kaldi data folder's ``wav.scp`` **are run** (once; the audio is kept in ``OUT/audio``):
    only for files you trust."""

    extensions: list[str] = field(default_factory=lambda: list(AUDIO_EXTENSIONS))
    """The file name extensions, with the dot and in lower case, that are looked for (in any case)."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """With ``audio.sample_rate=refuse``, a file that is not at 16 kHz counts as one that cannot be used."""

    min_seconds: float = 0.0
    """Utterances below are left out and counted. Those shorter than one frame (25 ms) always are."""

    max_seconds: float | None = None
    """Utterances above are left out and counted. Training crops long ones, so there is no need for a limit."""

    valid_fraction: float = 0.02
    """The share of the utterances, or of the speakers, that goes into validation; with 0 there is no ``valid.tsv``."""

    speaker_pattern: str | None = None
    """A regular expression searched in each path (relative to the source; inside archives ``archive.zip/path``) whose
    first group is the speaker. If given, whole speakers go into validation; if not, utterances. Of a kaldi data folder
    ``utt2spk`` tells the speakers."""

    seed: int = 1
    """Decides, together with its name, on which side an utterance or speaker is."""

    on_error: OnError = "raise"
    """What to do with files that cannot be used: name all and stop (``raise``), or list them in ``skipped.tsv``."""

    num_workers: int = 8
    """The number of threads that read headers."""

    overwrite: bool = False
    """If ``True``, manifests that were made in the output folder in another way are replaced."""

    # Rank 0 works while the others wait, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.extensions or not all(e.startswith(".") and e == e.lower() for e in self.extensions):
            result.add_error(
                f"`extensions` must be like `.wav`, with a dot and in lower case, but is {self.extensions}."
            )

        if self.min_seconds < 0:
            result.add_error(f"`min_seconds` must be 0 or more, but is {self.min_seconds}.")

        if self.max_seconds is not None and self.max_seconds <= self.min_seconds:
            result.add_error(
                f"`max_seconds` must be above `min_seconds` ({self.min_seconds}), but is {self.max_seconds}."
            )

        if not 0 <= self.valid_fraction < 1:
            result.add_error(f"`valid_fraction` must be at least 0 and below 1, but is {self.valid_fraction}.")

        if self.num_workers < 1:
            result.add_error(f"`num_workers` must be at least 1, but is {self.num_workers}.")

        return result
