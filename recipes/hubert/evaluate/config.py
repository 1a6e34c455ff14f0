"""The configuration of ``evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.text.normalization import TextConfig


@dataclass(kw_only=True)
class HubertEvaluateConfig(Validatable):
    """Configures ``fairseq2 recipe hubert evaluate``."""

    hypotheses: Path | None = None
    """What was recognised: the output folder of ``transcribe``, or a file (``.jsonl``, ``.tsv``, kaldi's ``text``,
    ``.ltr``, or words in each line)."""

    references: Path | None = None
    """What was said: a file of the same kinds. ``null``: the transcripts beside the manifest that was transcribed."""

    column: str = "text"
    """In a ``.tsv``: the column of the words."""

    id_column: str = "path"
    """In a ``.tsv``: the column that names the utterance."""

    on_missing: str = "raise"
    """What to do with references that have no hypothesis: ``raise``, or ``empty``, which counts all their words as
    deletions. A hypothesis without reference is refused in any case."""

    text: TextConfig = field(default_factory=lambda: TextConfig(case="none"))
    """How both are normalised before they are compared."""

    confidence: float = 0.95
    """The level of confidence intervals."""

    draws: int = 1000
    """How often utterances are drawn for the intervals."""

    seed: int = 0
    """The seed of these draws."""

    num_confusions: int = 20
    """How many of the most frequent errors are shown."""

    gang: GangSection = field(default_factory=GangSection)
    """The processes; rank 0 does the work."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.on_missing not in ("raise", "empty"):
            result.add_error(f"`on_missing` must be 'raise' or 'empty', but is '{self.on_missing}' instead.")

        if not 0.0 < self.confidence < 1.0:
            result.add_error(f"`confidence` must be between 0 and 1, but is {self.confidence} instead.")

        if self.draws < 1:
            result.add_error(f"`draws` must be 1 or greater, but is {self.draws} instead.")

        if self.num_confusions < 0:
            result.add_error(f"`num_confusions` must be 0 or greater, but is {self.num_confusions} instead.")

        return result
