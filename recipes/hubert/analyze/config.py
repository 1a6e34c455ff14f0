"""The configuration of ``analyze``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.analysis.alignments import AlignmentConfig
from hubert_plugin.analysis.run import AbxConfig, CcaConfig
from hubert_plugin.audio import AudioPolicy
from hubert_plugin.demo import DemoCorpusConfig
from hubert_plugin.registry import FeatureSourceSection
from hubert_plugin.units.mfcc import MFCC_SOURCE


@dataclass(kw_only=True)
class HubertAnalyzeConfig(Validatable):
    """Configures ``fairseq2 recipe hubert analyze``."""

    manifest_dir: Path | None = None
    """The folder that holds the manifests. ``null``: the demo corpus, whose phone times are known."""

    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """Size, level and seed of the demo corpus: those that the model was trained with."""

    split: str = "valid"
    """The split whose units are measured."""

    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    """The phone times of ``split``. Without them only statistics of units are measured."""

    words: AlignmentConfig = field(default_factory=lambda: AlignmentConfig(tier="words"))
    """The word times of ``split``, for the correlation with words."""

    labels: list[str] = field(default_factory=list)
    """Label sets to measure (``<split>.<name>``)."""

    label_dir: Path | None = None
    """The folder of the labels. ``null``: beside the manifest."""

    unit_model: Path | None = None
    """A unit model to measure, on ``features``."""

    trust_pickle: bool = False
    """Also read scikit-learn joblib files, which **can run any code** when they are read: only for files you trust."""

    features: FeatureSourceSection = field(default_factory=lambda: FeatureSourceSection(name=MFCC_SOURCE))
    """The features of ``unit_model``; they must be those that it was fitted on."""

    # fairseq2 0.8 asks of a field of this name whether its type is a class: `str | None` is none.
    model: str = ""
    """A HuBERT whose layers are clustered and measured: a model card, a checkpoint file or the folder of a run. Empty:
    no model."""

    layers: list[int] | None = None
    """The layers, 1-based; 0 is the input of block 1. ``null``: 1 to the last."""

    mfcc: bool | None = None
    """Whether MFCC are clustered and measured like a layer. ``null``: if ``model`` is given, to compare with."""

    num_clusters: list[int] = field(default_factory=lambda: [100])
    """The numbers of units K for layers and MFCC. Empty: no units, only ABX and correlation."""

    fit_split: str = "train"
    """The split that layers' units are fitted on."""

    fit_minutes: float = 10.0
    """How much of ``fit_split``, in minutes, drawn at random. Ten minutes take 92 MB of memory for each layer of 768
    dimensions."""

    trials: int = 1
    """How often k-means is fitted, with other seeds, to see how much the measures owe to chance."""

    criterion: bool | None = None
    """Whether view consistency is measured: a criterion that needs no phone times, to choose a layer by. It computes
    the features of ``split`` a second time, and takes K² numbers of memory for each fit. ``null``: where there are no
    phone times."""

    n_init: int = 3
    """How many initialisations k-means tries. Few, as the measures move by a few thousandths only."""

    max_iter: int = 100
    """The maximum number of passes of k-means."""

    seed: int = 0
    """The seed of the choice of utterances and of k-means."""

    half_precision: bool = False
    """If ``True``, the model runs in bfloat16."""

    abx: AbxConfig = field(default_factory=AbxConfig)
    """ABX discriminability of layers and MFCC."""

    cca: CcaConfig = field(default_factory=CcaConfig)
    """Correlation of layers and MFCC with words and phones."""

    plots: bool = True
    """If ``True``, pictures are drawn (with matplotlib, if it is installed)."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates, and whether ``features`` are of normalised waveforms. A model gets waveforms
    as it was trained, whatever this says."""

    num_workers: int | None = None
    """Threads that read audio and compute MFCC for ``unit_model``; ``null`` is one for each core."""

    # One rank works while the others wait, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes; rank 0 does the work."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @property
    def with_mfcc(self) -> bool:
        """Whether MFCC are a space."""
        return bool(self.model) if self.mfcc is None else self.mfcc

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if any(k < 2 for k in self.num_clusters):
            result.add_error(f"`num_clusters` must hold numbers of 2 or greater, but is {self.num_clusters} instead.")

        for name in ("trials", "n_init", "max_iter", "num_workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                result.add_error(f"`{name}` must be 1 or greater, but is {value} instead.")

        if not self.fit_minutes > 0.0:
            result.add_error(f"`fit_minutes` must be greater than 0, but is {self.fit_minutes} instead.")

        return result
