"""The kinds of unit models: one codebook, ensembles, product quantizers, hierarchies.

Letters: *M* frames, *D* features of a frame, *K* units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self, override

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import LabelSetSpec, Units
from hubert_plugin.units.codebooks import CodebookUnitModel, fingerprint_of, read_codebooks

MAP_PREFIX: Final = "map."


@final
class KMeansUnitModel(CodebookUnitModel):
    """One codebook (files of the first release of the format may hold several)."""

    kind = "kmeans"


@final
class EnsembleUnitModel(CodebookUnitModel):
    """Several codebooks over the same features."""

    kind = "kmeans_ensemble"


@final
class ProductUnitModel(CodebookUnitModel):
    """A product quantizer: each codebook over its own columns of the features."""

    kind = "product"

    def __init__(
        self,
        codebooks: Mapping[LabelSetSpec, NDArray[Any]],
        columns: Sequence[slice],
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        """
        :param columns: The features that each codebook sees.
        :raises UnitModelError: The centroids are not finite, or their shapes do not fit.
        """
        self._columns = tuple(columns)

        super().__init__(codebooks, provenance)

    @override
    def _check_dims(self, dims: Sequence[int]) -> None:
        widths = [c.stop - c.start for c in self._columns]

        if list(dims) != widths:
            raise UnitModelError(
                f"The sub-spaces of a product quantizer are {widths} features wide, but its centroids have "
                f"{list(dims)} dimensions."
            )

    @property
    def columns(self) -> Sequence[slice]:
        """The features that each codebook sees."""
        return self._columns

    @property
    @override
    def dim(self) -> int:
        return int(max(c.stop for c in self._columns))

    @override
    def _assign(self, x: torch.Tensor) -> list[Units]:
        return [
            self._units(nearest, x[:, columns].contiguous())
            for nearest, columns in zip(self._nearest, self._columns, strict=True)
        ]

    @property
    @override
    def fingerprint(self) -> str:
        columns = {"columns": np.array([[c.start, c.stop] for c in self._columns], np.int64)}

        return fingerprint_of({**self.tensors(), **columns})

    @override
    def _settings(self) -> dict[str, object]:
        return {"columns": [[c.start, c.stop] for c in self._columns]}

    @override
    @classmethod
    def from_file(
        cls, specs: Sequence[LabelSetSpec], tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
    ) -> Self:
        columns = [slice(int(start), int(stop)) for start, stop in record["columns"]]

        return cls(read_codebooks(specs, tensors), columns, record["provenance"])


@final
class HierarchyUnitModel(CodebookUnitModel):
    """A codebook, and coarser ones made by clustering the centroids of the one before."""

    kind = "hierarchy"

    def __init__(
        self,
        codebooks: Mapping[LabelSetSpec, NDArray[Any]],
        maps: Sequence[Units],
        provenance: Mapping[str, object] | None = None,
        *,
        assignment: str = "compose",
    ) -> None:
        """
        :param codebooks: The centroids of each level, the finest first.
        :param maps: For each level but the finest, where each unit of the level before went.
        :param assignment: ``compose`` follows the maps, ``nearest`` takes the nearest centroid of each level.
        :raises UnitModelError: Centroids or maps do not fit.
        """
        super().__init__(codebooks, provenance)

        if assignment not in ("compose", "nearest"):
            raise UnitModelError(f"`assignment` must be 'compose' or 'nearest', but is '{assignment}' instead.")

        self._maps, self._assignment = tuple(np.ascontiguousarray(m, np.int32) for m in maps), assignment

        if len(self._maps) != len(self._label_sets) - 1:
            raise UnitModelError(
                f"A hierarchy of {len(self._label_sets)} levels needs {len(self._label_sets) - 1} maps, but has "
                f"{len(self._maps)}."
            )

        composed = [np.arange(self.size, dtype=np.int32)]

        for before, spec, units in zip(self._label_sets, self._label_sets[1:], self._maps, strict=False):
            if units.shape != (before.size,) or (units.size and not 0 <= units.min() <= units.max() < spec.size):
                raise UnitModelError(
                    f"The map to label set '{spec.name}' must hold {before.size} units from 0 to {spec.size - 1}, but "
                    f"has the shape {units.shape}{f' and values up to {units.max()}' if units.size else ''}."
                )

            composed.append(units[composed[-1]])

        self._composed = tuple(composed)

    @property
    def maps(self) -> Sequence[Units]:
        """For each level but the finest, where each unit of the level before went."""
        return self._maps

    @property
    def composed_maps(self) -> Sequence[Units]:
        """For each level, where each unit of the finest went; first the identity. *Shape of an item:* (K,)."""
        return self._composed

    @override
    def _assign(self, x: torch.Tensor) -> list[Units]:
        if self._assignment == "nearest":
            return super()._assign(x)

        finest = self._units(self._nearest[0], x)

        return [m[finest] for m in self._composed]

    @property
    @override
    def fingerprint(self) -> str:
        # The two ways to assign give other labels from the same tensors.
        return fingerprint_of({**self.tensors(), f"assignment.{self._assignment}": np.empty(0, np.int32)})

    @override
    def tensors(self) -> dict[str, NDArray[Any]]:
        maps = {MAP_PREFIX + s.name: m for s, m in zip(self._label_sets[1:], self._maps, strict=True)}

        return {**super().tensors(), **maps}

    @override
    def _settings(self) -> dict[str, object]:
        return {"assignment": self._assignment}

    @override
    @classmethod
    def tensor_names(cls, specs: Sequence[LabelSetSpec]) -> Iterable[str]:
        return [*super().tensor_names(specs), *(MAP_PREFIX + s.name for s in specs[1:])]

    @override
    @classmethod
    def from_file(
        cls, specs: Sequence[LabelSetSpec], tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
    ) -> Self:
        maps = [tensors[MAP_PREFIX + s.name] for s in specs[1:]]

        return cls(read_codebooks(specs, tensors), maps, record["provenance"], assignment=record["assignment"])


KINDS: Final[Mapping[str, type[CodebookUnitModel]]] = {
    kls.kind: kls for kls in (KMeansUnitModel, EnsembleUnitModel, ProductUnitModel, HierarchyUnitModel)
}
"""The class of each kind of unit model that a file can hold."""
