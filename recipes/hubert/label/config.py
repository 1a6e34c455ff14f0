"""The configuration of ``label``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.registry import FeatureSourceSection
from hubert_plugin.units.mfcc import MFCC_SOURCE


@dataclass(kw_only=True)
class HubertLabelConfig(Validatable):
    """Configures ``fairseq2 recipe hubert label``."""

    manifest_dir: Path | None = None
    """The folder that holds the manifests."""

    splits: list[str] | None = None
    """The splits to label; ``null`` labels every manifest (``*.tsv``) in the folder."""

    unit_model: Path | None = None
    """The unit model, as ``cluster`` writes it (``units.safetensors``)."""

    trust_pickle: bool = False
    """Also read scikit-learn joblib files, which **can run any code** when they are read: only for files you trust."""

    features: FeatureSourceSection = field(default_factory=lambda: FeatureSourceSection(name=MFCC_SOURCE))
    """The features; they must be those that the unit model was fitted on."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates, and whether waveforms are normalised (as in ``cluster``)."""

    num_workers: int | None = None
    """Threads that read audio and compute MFCC; ``null`` is one for each core. The labels do not depend on it."""

    # One rank works while the others wait, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes; in this first form rank 0 does the work."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.manifest_dir is None:
            result.add_error("`manifest_dir` must be the folder that holds the manifests.")

        if self.unit_model is None:
            result.add_error("`unit_model` must be a unit model; `fairseq2 recipe hubert cluster` makes one.")

        if self.num_workers is not None and self.num_workers < 1:
            result.add_error(f"`num_workers` must be 1 or greater, but is {self.num_workers} instead.")

        return result
