"""What the fitters of codebooks have in common: which codebooks to fit, and what unit model they make, is all that
differs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar, Generic, TypeVar

from fairseq2.gang import Gang
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter
from typing_extensions import override

from hubert_plugin.units.clustering import Clustering, CodebookSpec, fit_codebooks, provenance
from hubert_plugin.units.estimator import ClusteringConfig
from hubert_plugin.units.fit import FitResult, UnitModelFitter
from hubert_plugin.units.stream import FeatureStream

ConfigT = TypeVar("ConfigT", bound=ClusteringConfig)


class CodebookFitter(UnitModelFitter, Generic[ConfigT]):
    """Fits one or several codebooks to one sample of the features, which is read once."""

    name: ClassVar[str]
    """The name under which the fitter is registered; the unit model keeps the configuration under it."""

    def __init__(self, config: ConfigT) -> None:
        self._config = config

    @property
    @override
    def distributed(self) -> bool:
        return self._config.backend == "torch"

    @abstractmethod
    def codebooks(self, dim: int) -> Sequence[CodebookSpec]:
        """Return the codebooks to fit to features of dimension ``dim``.

        :raises UnitModelError: Such features cannot be clustered as configured.
        """

    @abstractmethod
    def build(self, fitted: Clustering, rate: int, seed: int, record: Mapping[str, object]) -> FitResult:
        """Make the unit model.

        :param rate: Units per second.
        :param record: Where the codebooks come from.
        """

    @override
    def describe(self) -> Mapping[str, object]:
        return {self.name: asdict(self._config)}

    @override
    def fit(
        self,
        stream: FeatureStream,
        *,
        seed: int,
        progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
        gang: Gang | None = None,
    ) -> FitResult:
        """
        :raises UnitModelError: There are fewer frames than clusters, or the features cannot be used.
        """
        specs = self.codebooks(stream.dim)

        fitted = fit_codebooks(stream, specs, self._config, seed=seed, progress=progress, gang=gang)

        record = provenance(stream, self, seed, fitted)

        return self.build(fitted, stream.rate, seed, record)
