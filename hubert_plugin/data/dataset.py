"""The dataset family ``hubert``: audio by manifest, labels by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from fairseq2.assets import AssetCard, AssetCardError
from fairseq2.datasets import DatasetFamily, StandardDatasetFamily
from fairseq2.recipe.config import DatasetSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver, wire_object
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.demo import DemoCorpusConfig
from hubert_plugin.errors import ManifestError
from hubert_plugin.frames import SUPPORTED_LABEL_RATES
from hubert_plugin.registry import FeatureSourceSection

HUBERT_DATASET: Final = "hubert"
"""The name of the dataset family in asset cards and recipe configurations."""

DEMO_DATASET: Final = "hubert_demo"
"""The name of the embedded corpus's card."""


@dataclass(kw_only=True)
class HubertDatasetConfig:
    """What a dataset card says (``dataset_config``)."""

    manifest_dir: Path | None = None
    """The folder with ``SPLIT.tsv`` manifests (fairseq's format)."""

    label_dir: Path | None = None
    """The folder with ``SPLIT.NAME`` labels and ``dict.NAME.txt``. ``None``: beside the manifest."""

    labels: list[str] = field(default_factory=list)
    """The names of the label sets, such as ``km``."""

    feature_files: Path | None = None
    """Features in files: kaldi's (a folder, ``feats.scp``) or fairseq's dumps. The feature sources ``kaldi`` and
    ``fairseq`` find them by the card's name."""

    demo: bool = False
    """If true, the manifest is that of the embedded corpus, which is made when it is first used."""


@final
class HubertDataset:
    """An opened dataset: where its manifest and labels are."""

    def __init__(self, config: HubertDatasetConfig) -> None:
        self.config = config

    @property
    def demo(self) -> bool:
        """Whether this is the embedded corpus."""
        return self.config.demo

    def manifest_dir(self) -> Path:
        """Return the folder of the manifests.

        :raises ManifestError: The card names none.
        """
        if self.config.manifest_dir is None:
            raise ManifestError(
                "The dataset names no manifest. Set `dataset.manifest_dir=FOLDER`, where FOLDER holds train.tsv and "
                "valid.tsv (`fairseq2 recipe hubert manifest FOLDER --config source=AUDIO` makes them)."
            )

        return self.config.manifest_dir.expanduser()


@dataclass(kw_only=True)
class LabelMakingConfig:
    """How labels are made where none are named."""

    features: FeatureSourceSection = field(
        default_factory=lambda: FeatureSourceSection(name="mfcc", config={"utterance_norm": "mean_variance"})
    )
    """The features that are clustered: MFCC, of zero mean and unit variance in each utterance. The paper's presets
    take them as they are, as ``cluster`` does unless it is told."""

    num_clusters: int = 50
    """The number of units K."""

    max_frames: int = 1_000_000
    """The largest number of frames that k-means is fitted on, sampled from the training split."""

    seed: int = 0
    """The seed of sampling and k-means."""


@dataclass(kw_only=True)
class SpeechDatasetSection(DatasetSection):
    """Which audio a recipe trains on."""

    name: str | None = DEMO_DATASET
    """The name of a dataset card."""

    family: str | None = HUBERT_DATASET
    """The dataset family, where no card is named."""

    manifest_dir: Path | None = None
    """The folder with ``SPLIT.tsv`` manifests. Takes the place of ``name``."""

    train_split: str = "train"
    """The split that is trained on."""

    valid_split: str | None = "valid"
    """The split that is validated on; ``None``: no validation."""

    demo: DemoCorpusConfig = field(default_factory=DemoCorpusConfig)
    """Size, level and seed of the embedded corpus."""

    sample_rate_policy: str = "resample"
    """What to do with audio of another rate than 16 kHz: ``resample`` or ``refuse``."""

    on_bad_audio: str = "raise"
    """What to do with unreadable audio during training: ``raise``, or ``skip`` and count it in the metrics."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.name is None and self.family is None and self.manifest_dir is None:
            result.add_error("`name` or `manifest_dir` must be specified.")

        if self.sample_rate_policy not in ("resample", "refuse"):
            result.add_error(f"`sample_rate_policy` must be 'resample' or 'refuse', not '{self.sample_rate_policy}'.")

        self.check_policies(result, "on_bad_audio")

        return result

    def check_policies(self, result: ValidationResult, *names: str) -> None:
        """Add an error for each option of ``names`` that is neither ``raise`` nor ``skip``."""
        for name in names:
            if getattr(self, name) not in ("raise", "skip"):
                result.add_error(f"`{name}` must be 'raise' or 'skip', but is '{getattr(self, name)}' instead.")

    def audio_policy(self, *, normalize: bool) -> AudioPolicy:
        """Return how audio is read; ``normalize`` is the model's wish."""
        return AudioPolicy(sample_rate=self.sample_rate_policy, normalize=normalize)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class HubertDatasetSection(SpeechDatasetSection):
    """Which audio and which labels a recipe uses."""

    label_dir: Path | None = None
    """The folder with ``SPLIT.NAME`` labels and ``dict.NAME.txt``. ``None``: beside the manifest."""

    labels: list[str] = field(default_factory=list)
    """The names of the label sets. Empty: the card's; if it has none, labels are made as ``label_making`` says."""

    label_rates: dict[str, int] = field(default_factory=dict)
    """Labels per second (50 or 100) by label set, where neither a provenance record nor the lengths tell."""

    label_making: LabelMakingConfig = field(default_factory=LabelMakingConfig)
    """How labels are made where none are named."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        for name, rate in self.label_rates.items():
            if rate not in SUPPORTED_LABEL_RATES:
                rates = " or ".join(map(str, SUPPORTED_LABEL_RATES))

                result.add_error(f"`label_rates.{name}` must be {rates} labels per second, but is {rate} instead.")

        if self.label_making.num_clusters < 2:
            result.add_error("`label_making.num_clusters` must be greater than or equal to 2.")

        return result


class HubertDatasetFamily(StandardDatasetFamily):  # type: ignore[misc] # final, but one step of many is to be another
    """fairseq2's, but a text where a list belongs is refused: it would be taken for a list of its letters."""

    @override
    def get_dataset_config(self, card: AssetCard) -> object:
        for key in self._CONFIG_KEYS:
            section = card.maybe_get_field(key)

            labels = section.value.get("labels") if section is not None and isinstance(section.value, Mapping) else None

            if isinstance(labels, str):
                raise AssetCardError(
                    card.name, f"`{key}.labels` must be a list, such as [{labels}], but is the text '{labels}'."
                )

        return super().get_dataset_config(card)


def register_hubert_dataset_family(container: DependencyContainer) -> None:
    """Register the dataset family with fairseq2."""

    def create_family(resolver: DependencyResolver) -> DatasetFamily:
        return wire_object(
            resolver,
            HubertDatasetFamily,
            name=HUBERT_DATASET,
            kls=HubertDataset,
            config_kls=HubertDatasetConfig,
            opener=HubertDataset,
        )

    container.register(DatasetFamily, create_family, key=HUBERT_DATASET)
