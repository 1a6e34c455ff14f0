"""The fitter ``product``: a product quantizer, one k-means codebook for each sub-space of the features.

The paper (arXiv:2106.07447) clusters 3-frame spliced MFCC in three sub-spaces of 39: static coefficients, Δ and ΔΔ. The
label sets train one head each, as those of an ensemble do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.errors import UnitModelError, format_problems
from hubert_plugin.units.clustering import Clustering, CodebookSpec
from hubert_plugin.units.codebook_fitter import CodebookFitter
from hubert_plugin.units.estimator import ClusteringConfig
from hubert_plugin.units.fit import FitResult, UnitModelFitter
from hubert_plugin.units.kmeans import check_label_set
from hubert_plugin.units.model import ProductUnitModel

PRODUCT_FITTER: Final = "product"
"""The name under which the fitter is registered."""

DEFAULT_SUBSPACES: Final = ("static", "delta", "delta2")
"""The three equal parts of MFCC features, spliced or not."""


@dataclass(kw_only=True)
class ProductConfig(ClusteringConfig):
    """Configures the unit model ``product``."""

    label_set: str = "pq"
    """What the names of the label sets begin with; the sub-space follows (``pq_static``, …)."""

    num_clusters: int = 100
    """The number of units of each sub-space."""

    subspaces: dict[str, list[int]] | None = None
    """The sub-spaces by name: the first feature (counted from 0) and the one after the last, as in ``{low: [0, 20],
    high: [20, 39]}``. Together they are all features, none twice. ``null`` is three equal parts: static, delta,
    delta2."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        check_label_set(result, self.label_set)

        if self.num_clusters < 1:
            result.add_error(f"`num_clusters` must be 1 or greater, but is {self.num_clusters} instead.")

        for name, bounds in (self.subspaces or {}).items():
            check_label_set(result, name)

            if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
                result.add_error(
                    f"The sub-space '{name}' must be two numbers, the first feature and the one after the last, but is "
                    f"{bounds} instead."
                )

        if self.subspaces is not None and not self.subspaces:
            result.add_error("`subspaces` must name at least one sub-space.")

        return result


@final
class ProductFitter(CodebookFitter[ProductConfig]):
    """Fits one codebook for each sub-space."""

    name = PRODUCT_FITTER

    def __init__(self, config: ProductConfig | None = None) -> None:
        super().__init__(config or ProductConfig())

    @override
    def codebooks(self, dim: int) -> list[CodebookSpec]:
        config = self._config

        subspaces = resolve_subspaces(config.subspaces, dim)

        return [CodebookSpec(f"{config.label_set}_{n}", config.num_clusters, c) for n, c in subspaces.items()]

    @override
    def build(self, fitted: Clustering, rate: int, seed: int, record: Mapping[str, object]) -> FitResult:
        columns = [s.columns for s in fitted.specs if s.columns is not None]

        return FitResult(ProductUnitModel(fitted.codebooks(rate), columns, record), fitted.reports)


def resolve_subspaces(subspaces: Mapping[str, list[int]] | None, dim: int) -> dict[str, slice]:
    """Return the columns of each sub-space of ``dim`` features, checked.

    :raises UnitModelError: Features are in no sub-space, in two, or beyond the last one.
    """
    if subspaces is None:
        width, rest = divmod(dim, len(DEFAULT_SUBSPACES))

        if rest or not width:
            raise UnitModelError(
                f"The features have {dim} dimensions, which cannot be split into three equal sub-spaces (static, "
                "delta, delta2). Say the split: `units.config.subspaces={low: [0, 16], high: [16, 32]}`, for example."
            )

        return {n: slice(i * width, (i + 1) * width) for i, n in enumerate(DEFAULT_SUBSPACES)}

    ranges = {name: slice(int(bounds[0]), int(bounds[1])) for name, bounds in subspaces.items()}

    problems = [
        f"'{name}' is [{c.start}, {c.stop}], beyond the last feature" for name, c in ranges.items() if c.stop > dim
    ]

    owners = [[n for n, c in ranges.items() if c.start <= i < c.stop] for i in range(dim)]

    problems += [f"feature {i} is in {' and '.join(o)}" for i, o in enumerate(owners) if len(o) > 1]
    problems += [f"feature {i} is in none" for i, o in enumerate(owners) if not o]

    if problems:
        raise UnitModelError(
            format_problems(
                f"The sub-spaces must hold each of the {dim} features (0 to {dim - 1}) exactly once:", problems
            )
        )

    return ranges


def create_product_fitter(resolver: DependencyResolver, config: ProductConfig) -> UnitModelFitter:
    """Create the fitter ``product`` (the factory that is registered)."""
    return ProductFitter(config)
