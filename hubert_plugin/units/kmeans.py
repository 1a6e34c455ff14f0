"""The fitters ``kmeans`` (one codebook) and ``kmeans_ensemble`` (several over the same features)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, final

from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.data.labels import NO_LABEL_SETS
from hubert_plugin.units.clustering import Clustering, CodebookSpec
from hubert_plugin.units.codebook_fitter import CodebookFitter
from hubert_plugin.units.estimator import SAMPLE_FRAMES as SAMPLE_FRAMES
from hubert_plugin.units.estimator import ClusteringConfig
from hubert_plugin.units.fit import FitResult, UnitModelFitter
from hubert_plugin.units.model import EnsembleUnitModel, KMeansUnitModel

KMEANS_FITTER: Final = "kmeans"
"""The name under which the fitter of one codebook is registered."""

ENSEMBLE_FITTER: Final = "kmeans_ensemble"
"""The name under which the fitter of several codebooks is registered."""


@dataclass(kw_only=True)
class KMeansConfig(ClusteringConfig):
    """Configures the unit model ``kmeans``. The defaults are those of fairseq's ``learn_kmeans.py``."""

    label_set: str = "km"
    """The name of the label set; also the extension of its label files (``train.km``)."""

    num_clusters: int = 100
    """The number of units, K. The paper uses 100 on MFCC and 500 on layers."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        check_label_set(result, self.label_set)

        if self.num_clusters < 1:
            result.add_error(f"`num_clusters` must be 1 or greater, but is {self.num_clusters} instead.")

        return result


@dataclass(kw_only=True)
class EnsembleConfig(ClusteringConfig):
    """Configures the unit model ``kmeans_ensemble`` (arXiv:2106.07447, equation 2)."""

    label_set: str = "km"
    """What the names of the label sets begin with; the number of units follows (``km50``, ``km100``, …)."""

    num_clusters: list[int] = field(default_factory=lambda: [50, 100, 500])
    """The number of units of each codebook."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        check_label_set(result, self.label_set)

        check_sizes(result, "num_clusters", self.num_clusters)

        return result


def check_label_set(result: ValidationResult, name: str) -> None:
    """Add an error to ``result`` if ``name`` cannot name a label set, and thereby a file."""
    if not name or not name.replace("_", "").replace("-", "").isalnum():
        result.add_error(f"`label_set` must consist of letters, digits, '-' and '_', but is '{name}'.")
    elif name in NO_LABEL_SETS:
        result.add_error(
            f"`label_set` must not be '{name}': labels are files of that ending, and such files hold something else "
            "(manifests, transcripts, features, …)."
        )


def check_sizes(result: ValidationResult, name: str, sizes: list[int]) -> None:
    """Add an error to ``result`` unless ``sizes`` are different numbers of units, at least one."""
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        result.add_error(f"`{name}` must be different numbers of units, each 1 or greater, but is {sizes} instead.")


@final
class KMeansFitter(CodebookFitter[KMeansConfig]):
    """Fits one k-means codebook."""

    name = KMEANS_FITTER

    def __init__(self, config: KMeansConfig | None = None) -> None:
        super().__init__(config or KMeansConfig())

    @override
    def codebooks(self, dim: int) -> list[CodebookSpec]:
        return [CodebookSpec(self._config.label_set, self._config.num_clusters)]

    @override
    def build(self, fitted: Clustering, rate: int, seed: int, record: Mapping[str, object]) -> FitResult:
        return FitResult(KMeansUnitModel(fitted.codebooks(rate), record), fitted.reports)


@final
class EnsembleFitter(CodebookFitter[EnsembleConfig]):
    """Fits several k-means codebooks."""

    name = ENSEMBLE_FITTER

    def __init__(self, config: EnsembleConfig | None = None) -> None:
        super().__init__(config or EnsembleConfig())

    @override
    def codebooks(self, dim: int) -> list[CodebookSpec]:
        return [CodebookSpec(f"{self._config.label_set}{k}", k) for k in self._config.num_clusters]

    @override
    def build(self, fitted: Clustering, rate: int, seed: int, record: Mapping[str, object]) -> FitResult:
        return FitResult(EnsembleUnitModel(fitted.codebooks(rate), record), fitted.reports)


def create_kmeans_fitter(resolver: DependencyResolver, config: KMeansConfig) -> UnitModelFitter:
    """Create the fitter ``kmeans`` (the factory that is registered)."""
    return KMeansFitter(config)


def create_ensemble_fitter(resolver: DependencyResolver, config: EnsembleConfig) -> UnitModelFitter:
    """Create the fitter ``kmeans_ensemble`` (the factory that is registered)."""
    return EnsembleFitter(config)
