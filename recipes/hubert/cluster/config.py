"""The configuration of ``cluster``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.registry import FeatureSourceSection, UnitModelSection
from hubert_plugin.units.kmeans import KMEANS_FITTER
from hubert_plugin.units.mfcc import MFCC_SOURCE


@dataclass(kw_only=True)
class HubertClusterConfig(Validatable):
    """Configures ``fairseq2 recipe hubert cluster``."""

    manifest_dir: Path | None = None
    """The folder that holds the manifest."""

    split: str = "train"
    """The split that is clustered (``<split>.tsv``). All splits are labelled with the one unit model."""

    features: FeatureSourceSection = field(default_factory=lambda: FeatureSourceSection(name=MFCC_SOURCE))
    """The features that are clustered: ``mfcc``, ``hubert_layer``, or another registered source."""

    units: UnitModelSection = field(default_factory=lambda: UnitModelSection(name=KMEANS_FITTER))
    """How: ``kmeans``, ``kmeans_ensemble``, ``product``, ``hierarchy``, or another registered unit model."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates, and whether waveforms are normalised (as the model was trained)."""

    seed: int = 0
    """The seed of the choice of frames and of k-means."""

    num_workers: int | None = None
    """Threads that read audio and compute MFCC; ``null`` is one for each core. The result does not depend on it."""

    overwrite: bool = False
    """Whether a unit model of another making in the output folder is replaced: of other features, data or settings.
    Otherwise it is refused."""

    export_joblib: bool = False
    """Also write each codebook as a scikit-learn file (``<label set>.joblib``) that fairseq's scripts read."""

    # One rank may work while the others wait, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes. With ``backend: torch`` all ranks work; scikit-learn works in rank 0, and the others wait."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.num_workers is not None and self.num_workers < 1:
            result.add_error(f"`num_workers` must be 1 or greater, but is {self.num_workers} instead.")

        return result
