"""The fitter ``hierarchy``: k-means, then k-means on its centroids, and so on (MS-HuBERT's 1000 → 500 → … → 25).

Each level clusters the centroids of the level before, unweighted. A frame's unit of a coarse level is where its finest
unit went (``compose``): levels are nested. The alternative is the coarse centroid nearest to the frame (``nearest``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, final

import numpy as np
import torch
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.registry import Features, LabelSetSpec, Units
from hubert_plugin.units.clustering import Clustering, CodebookSpec, measure
from hubert_plugin.units.codebook_fitter import CodebookFitter
from hubert_plugin.units.estimator import ClusteringConfig
from hubert_plugin.units.fit import FitReport, FitResult, UnitModelFitter
from hubert_plugin.units.kmeans import check_label_set
from hubert_plugin.units.model import HierarchyUnitModel
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.threads import Workers

HIERARCHY_FITTER: Final = "hierarchy"
"""The name under which the fitter is registered."""


@dataclass(kw_only=True)
class HierarchyConfig(ClusteringConfig):
    """Configures the unit model ``hierarchy``."""

    label_set: str = "km"
    """What the names of the label sets begin with; the number of units follows (``km1000``, …)."""

    num_clusters: list[int] = field(default_factory=lambda: [1000, 500, 250, 125, 50, 25])
    """The number of units of each level, from the finest on; each fewer than the one before."""

    assignment: str = "compose"
    """The coarse units of a frame: ``compose`` follows its finest unit, so that levels are nested; ``nearest`` takes
    the coarse centroid nearest to the frame."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        check_label_set(result, self.label_set)

        sizes = self.num_clusters

        if not sizes or min(sizes) < 1 or any(a <= b for a, b in pairwise(sizes)):
            result.add_error(
                "`num_clusters` must be numbers of units, 1 or greater, each smaller than the one before (a level "
                f"cannot have more clusters than the one before has centroids), but is {sizes} instead."
            )

        if self.assignment not in ("compose", "nearest"):
            result.add_error(f"`assignment` must be 'compose' or 'nearest', but is '{self.assignment}' instead.")

        return result


@final
class HierarchyFitter(CodebookFitter[HierarchyConfig]):
    """Fits the finest codebook to frames, and every other one to the centroids of the one before."""

    name = HIERARCHY_FITTER

    def __init__(self, config: HierarchyConfig | None = None) -> None:
        super().__init__(config or HierarchyConfig())

    @override
    def codebooks(self, dim: int) -> list[CodebookSpec]:
        finest = self._config.num_clusters[0]

        return [CodebookSpec(f"{self._config.label_set}{finest}", finest)]

    @override
    def build(self, fitted: Clustering, rate: int, seed: int, record: Mapping[str, object]) -> FitResult:
        config = self._config

        levels, maps = coarsen(fitted.centroids[0], config.num_clusters[1:], config.n_init, seed)

        codebooks = {
            LabelSetSpec(f"{config.label_set}{k}", k, rate): c for k, c in zip(config.num_clusters, levels, strict=True)
        }

        model = HierarchyUnitModel(codebooks, maps, record, assignment=config.assignment)

        return FitResult(model, _reports(model, fitted, nested=config.assignment == "compose"))


def coarsen(centroids: Features, sizes: Sequence[int], n_init: int, seed: int) -> tuple[list[Features], list[Units]]:
    """Cluster centroids level by level, by scikit-learn's exact k-means: there are few of them.

    :param centroids: The finest level. *Shape:* (K, D).
    :returns: The centroids of all levels, the finest first, and for each but the first where the units of the level
        before went.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    levels, maps = [centroids], []

    for level, size in enumerate(sizes):
        estimator = KMeans(size, n_init=n_init, random_state=seed + 1 + level)

        # One thread: sums in one order, here and on every rank.
        with threadpool_limits(1):
            units = estimator.fit_predict(levels[-1])

        levels.append(np.asarray(estimator.cluster_centers_, np.float32))
        maps.append(units.astype(np.int32))

    return levels, maps


def _reports(model: HierarchyUnitModel, fitted: Clustering, *, nested: bool) -> tuple[FitReport, ...]:
    """Measure the coarse levels on the frames that the finest was measured on, assigned as the model assigns."""
    (finest,) = fitted.reports

    reports = [finest]

    frames = torch.from_numpy(fitted.sample)

    with Workers() as workers:
        fine = NearestCentroid(model.centroids[0])(frames, workers).numpy()

        for spec, centroids, to_coarse in zip(
            model.label_sets[1:], model.centroids[1:], model.composed_maps[1:], strict=True
        ):
            if nested:
                units = to_coarse[fine].astype(np.int64)
            else:
                units = NearestCentroid(centroids)(frames, workers).numpy()

            sizes, inertia = measure(fitted.sample, units, centroids, fitted.ranks)

            reports.append(
                replace(
                    finest,
                    label_set=spec.name,
                    num_units=spec.size,
                    inertia_per_frame=inertia,
                    cluster_sizes=tuple(sizes.tolist()),
                )
            )

    return tuple(reports)


def create_hierarchy_fitter(resolver: DependencyResolver, config: HierarchyConfig) -> UnitModelFitter:
    """Create the fitter ``hierarchy`` (the factory that is registered)."""
    return HierarchyFitter(config)
