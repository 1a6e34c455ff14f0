"""Unit models in memory: codebooks over one kind of features, and the label sets they yield.

Letters: *M* frames, *D* features of a frame, *K* units.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self, override

from hubert_plugin.device import parse_device
from hubert_plugin.errors import ConfigError, UnitModelError
from hubert_plugin.files import atomic_path
from hubert_plugin.registry import Features, LabelSetSpec, UnitModel, Units
from hubert_plugin.units.fit import is_finite
from hubert_plugin.units.nearest import PRECISIONS, NearestCentroid, Precision
from hubert_plugin.units.threads import Workers

FORMAT: Final = "hubert_plugin.units"

FORMAT_VERSION: Final = 1

CENTROIDS_PREFIX: Final = "centroids."

_MANY_FRAMES: Final = 1 << 14
"""From as many frames on, threads share the work of one call."""


class CodebookUnitModel(UnitModel):
    """A unit model made of codebooks: one for each label set, the units of a frame being its nearest centroids."""

    kind: ClassVar[str]
    """What the file says the model is."""

    def __init__(
        self, codebooks: Mapping[LabelSetSpec, NDArray[Any]], provenance: Mapping[str, object] | None = None
    ) -> None:
        """
        :param codebooks: The centroids of each label set. *Shape of an item:* (K, D).
        :param provenance: Where the codebooks come from, as plain data.
        :raises UnitModelError: The centroids are not finite, or their shapes do not fit.
        """
        if not codebooks:
            raise UnitModelError("A unit model needs at least one codebook, but has none.")

        self._label_sets = tuple(codebooks)
        self._centroids = tuple(np.ascontiguousarray(c, np.float32) for c in codebooks.values())
        self._provenance = dict(provenance or {})

        self._device: torch.device | str = "cpu"
        self._precision: Precision = "auto"

        if len({s.name for s in self._label_sets}) < len(self._label_sets):
            raise UnitModelError(
                "Each label set of a unit model needs its own name, but they are "
                f"{', '.join(s.name for s in codebooks)}."
            )

        for spec, centroids in zip(self._label_sets, self._centroids, strict=True):
            if centroids.ndim != 2 or len(centroids) != spec.size or centroids.size == 0:
                raise UnitModelError(
                    f"The centroids of label set '{spec.name}' must have the shape ({spec.size}, features), but have "
                    f"the shape {centroids.shape}."
                )

            if not np.isfinite(centroids).all():
                raise UnitModelError(f"The centroids of label set '{spec.name}' hold NaN or infinite values.")

        self._check_dims([c.shape[1] for c in self._centroids])

    def _check_dims(self, dims: Sequence[int]) -> None:
        if len(set(dims)) > 1:
            raise UnitModelError(
                f"All codebooks of a unit model must have one dimension, but have {sorted(set(dims))}."
            )

    @property
    @override
    def label_sets(self) -> Sequence[LabelSetSpec]:
        return self._label_sets

    @property
    def centroids(self) -> Sequence[Features]:
        """The centroids of each label set. *Shape of an item:* (K, D)."""
        return self._centroids

    @property
    def dim(self) -> int:
        """The number of features of a frame, D."""
        return int(self._centroids[0].shape[1])

    @property
    def size(self) -> int:
        """The number of units of the first label set."""
        return self._label_sets[0].size

    @property
    @override
    def provenance(self) -> Mapping[str, object]:
        return MappingProxyType(self._provenance)

    @property
    @override
    def fingerprint(self) -> str:
        return fingerprint_of(self.tensors())

    def compute_on(self, device: torch.device | str = "cpu", precision: Precision = "auto") -> Self:
        """Say where and how exactly units are assigned from now on, and return the model.

        :param precision: ``fp32``; ``bf16`` or ``int8`` with near ties in float32; ``auto``; ``fast`` (``nearest.py``).
        :raises ConfigError: This machine has no such device, or there is no such precision.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"`precision` must be one of {', '.join(PRECISIONS)}, but is {precision!r} instead.")

        self._device, self._precision = parse_device(device), precision

        self.__dict__.pop("_nearest", None)

        return self

    @cached_property
    def _nearest(self) -> tuple[NearestCentroid, ...]:
        return tuple(NearestCentroid(c, self._device, self._precision) for c in self._centroids)

    @override
    def assign(self, features: Features | torch.Tensor) -> list[Units]:
        """
        Equals scikit-learn's ``predict`` (and fairseq's ``dump_km_label.py``).

        :param features: *Shape:* (M, D). Tensors are taken as well, of any precision and from any device.
        :raises UnitModelError: The features have another dimension than the centroids, are not finite, or are no array.
        """
        return self._assign(self._checked(features))

    def _assign(self, x: torch.Tensor) -> list[Units]:
        return [self._units(nearest, x) for nearest in self._nearest]

    def _checked(self, features: Features | torch.Tensor) -> torch.Tensor:
        if isinstance(features, torch.Tensor):
            # NumPy knows no bfloat16, which models may compute in.
            features = features.detach().float().cpu().numpy()

        if not hasattr(features, "ndim"):
            raise UnitModelError(
                f"The unit model takes features of shape (frames, {self.dim}) as one array or tensor, but was given "
                f"{type(features).__name__}. Units of several utterances are assigned one by one."
            )

        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UnitModelError(
                f"The unit model takes features of shape (frames, {self.dim}) from {self._describe_features()}, but "
                f"was given the shape {features.shape}."
            )

        if not is_finite(features):
            frame = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])

            raise UnitModelError(
                f"The features hold NaN or infinite values (first in frame {frame} of {len(features)}), so their units "
                "are not defined. Remove the utterance or mend its features."
            )

        x = np.ascontiguousarray(features, np.float32)

        return torch.from_numpy(x if x.flags.writeable else x.copy()).to(self._device)

    def _units(self, nearest: NearestCentroid, x: torch.Tensor) -> Units:
        # Only one thread at a time may change how many threads PyTorch uses.
        if len(x) < _MANY_FRAMES or threading.current_thread() is not threading.main_thread():
            units = nearest(x)
        else:
            with Workers() as workers:
                units = nearest(x, workers)

        return units.to(device="cpu", dtype=torch.int32).numpy()

    @override
    def save(self, path: Path) -> None:
        """:raises StorageError: The file cannot be written; what stood there before is untouched."""
        from safetensors.numpy import save

        record = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "label_sets": [asdict(s) for s in self._label_sets],
            "provenance": self._provenance,
            **self._settings(),
        }

        # One key only: safetensors writes several in any order, and equal models are to be equal files.
        metadata = {FORMAT: json.dumps(record, sort_keys=True)}

        # Serialised in memory and written by us: a full disk then surfaces as an `OSError`.
        data = save(self.tensors(), metadata)

        with atomic_path(Path(path)) as tmp:
            tmp.write_bytes(data)

    def export_joblib(self, path: Path, label_set: str | None = None) -> None:
        """Write one codebook as a scikit-learn ``MiniBatchKMeans`` that fairseq's ``dump_km_label.py`` can read.

        :param label_set: The label set to write; ``None`` is the first one.
        :raises UnitModelError: There is no such label set.
        """
        import joblib
        from sklearn.cluster import MiniBatchKMeans

        names = [s.name for s in self._label_sets]

        if label_set is not None and label_set not in names:
            raise UnitModelError(f"The unit model has no label set '{label_set}'; it has {', '.join(names)}.")

        centroids = self._centroids[0 if label_set is None else names.index(label_set)]

        estimator = MiniBatchKMeans(len(centroids), init=centroids, n_init=1, reassignment_ratio=0.0)

        # One step on the centroids themselves leaves them where they are and sets what `predict` needs.
        estimator.partial_fit(centroids)

        estimator.cluster_centers_ = centroids.copy()

        with atomic_path(Path(path)) as tmp:
            joblib.dump(estimator, tmp)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what the file holds, by name."""
        return {CENTROIDS_PREFIX + s.name: c for s, c in zip(self._label_sets, self._centroids, strict=True)}

    def _settings(self) -> dict[str, object]:
        """Return what the file's record holds beside the label sets and the provenance."""
        return {}

    @classmethod
    def tensor_names(cls, specs: Sequence[LabelSetSpec]) -> Iterable[str]:
        """Return the names of the tensors that a file with these label sets holds."""
        return [CENTROIDS_PREFIX + s.name for s in specs]

    @classmethod
    def from_file(
        cls, specs: Sequence[LabelSetSpec], tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
    ) -> Self:
        """Create the model from what :meth:`save` wrote."""
        return cls(read_codebooks(specs, tensors), record["provenance"])

    def _describe_features(self) -> str:
        return str(self._provenance.get("features", "an unknown source"))


def read_codebooks(
    specs: Sequence[LabelSetSpec], tensors: Mapping[str, NDArray[Any]]
) -> dict[LabelSetSpec, NDArray[Any]]:
    """Return the centroids of each label set from the tensors of a file."""
    return {s: tensors[CENTROIDS_PREFIX + s.name] for s in specs}


def fingerprint_of(tensors: Mapping[str, NDArray[Any]]) -> str:
    """Return a digest of names, shapes and values."""
    digest = hashlib.sha256()

    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())

    return digest.hexdigest()[:16]
