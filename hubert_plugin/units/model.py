"""Unit models on disk and in memory.

Letters: *M* frames, *D* features of a frame, *K* units.

A unit model is one safetensors file: a tensor ``centroids.<label set>`` (K, D) in float32 for each label set, and in
the file's metadata the label sets and the provenance (features, data, seed, versions) as one JSON object.
Nothing in it is code. scikit-learn's joblib files are pickles, which can run code: read only on the explicit word.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.errors import UnitModelError
from hubert_plugin.files import atomic_path
from hubert_plugin.registry import Features, LabelSetSpec, UnitModel, Units

FORMAT: Final = "hubert_plugin.units"

FORMAT_VERSION: Final = 1

_KIND: Final = "kmeans"

_PREFIX: Final = "centroids."


@final
class KMeansUnitModel(UnitModel):
    """Nearest-centroid units: one codebook for each label set, all over the same features."""

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

        for spec, centroids in zip(self._label_sets, self._centroids, strict=True):
            if centroids.ndim != 2 or len(centroids) != spec.size or centroids.size == 0:
                raise UnitModelError(
                    f"The centroids of label set '{spec.name}' must have the shape ({spec.size}, features), but have "
                    f"the shape {centroids.shape}."
                )

            if not np.isfinite(centroids).all():
                raise UnitModelError(f"The centroids of label set '{spec.name}' hold NaN or infinite values.")

        if len(dims := {c.shape[1] for c in self._centroids}) > 1:
            raise UnitModelError(f"All codebooks of a unit model must have one dimension, but have {sorted(dims)}.")

        # argmin of ||x||² - 2 x·c + ||c||²: the first term is the same for every unit of a frame and is left out, as
        # scikit-learn does, which also keeps float32 rounding out of near ties.
        self._scaled = tuple(np.ascontiguousarray(-2.0 * c.T) for c in self._centroids)  # (D, K)
        self._norms = tuple(np.einsum("kd,kd->k", c, c) for c in self._centroids)  # (K,)

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
        return _fingerprint(self._tensors())

    @override
    def assign(self, features: Features) -> list[Units]:
        """
        Equals scikit-learn's ``predict`` (and fairseq's ``dump_km_label.py``).

        :raises UnitModelError: The features have another dimension than the centroids.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UnitModelError(
                f"The unit model takes features of shape (frames, {self.dim}) from {self._describe_features()}, but "
                f"was given the shape {features.shape}."
            )

        x = np.asarray(features, np.float32)

        return [
            np.argmin(x @ scaled + norms, axis=1).astype(np.int32)
            for scaled, norms in zip(self._scaled, self._norms, strict=True)
        ]

    @override
    def save(self, path: Path) -> None:
        """:raises StorageError: The file cannot be written; what stood there before is untouched."""
        from safetensors.numpy import save

        record = {
            "format_version": FORMAT_VERSION,
            "kind": _KIND,
            "label_sets": [asdict(s) for s in self._label_sets],
            "provenance": self._provenance,
        }

        # One key only: safetensors writes several in any order, and equal models are to be equal files.
        metadata = {FORMAT: json.dumps(record, sort_keys=True)}

        # Serialised in memory and written by us: a full disk then surfaces as an `OSError`.
        data = save(self._tensors(), metadata)

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

    def _tensors(self) -> dict[str, NDArray[Any]]:
        return {_PREFIX + s.name: c for s, c in zip(self._label_sets, self._centroids, strict=True)}

    def _describe_features(self) -> str:
        return str(self._provenance.get("features", "an unknown source"))


def load_units(path: Path | str, *, trust_pickle: bool = False, spec: LabelSetSpec | None = None) -> UnitModel:
    """Read a unit model.

    :param trust_pickle: Also read scikit-learn joblib files (fairseq's k-means models). **Such a file can run any code
        when it is read**: allow it only for files you trust.
    :param spec: For joblib files, which do not say it: the name and the rate of the label set. ``None`` names it ``km``
        and takes 100 Hz for 39 features (fairseq's MFCC) and 50 Hz for others.
    :raises UnitModelError: The file is missing, cut off, or not a unit model.
    """
    path = Path(path)

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UnitModelError(
            f"There is no unit model at '{path}'. Make one with `fairseq2 recipe hubert cluster`."
        ) from None
    except OSError as ex:
        raise UnitModelError(f"The unit model '{path}' cannot be read: {ex.strerror or ex}.") from ex

    if _is_safetensors(data):
        return _load_safetensors(path, data)

    if _is_pickle(data):
        if trust_pickle:
            return _load_joblib(path, spec)

        raise UnitModelError(
            f"'{path}' is a pickle (a scikit-learn joblib file), which can run code when it is read. If you trust its "
            "origin, set `trust_pickle: true` (`load_units(path, trust_pickle=True)`), then save it as a unit "
            "model."
        )

    raise UnitModelError(
        f"'{path}' ({len(data):,} bytes) is not a unit model: a safetensors file was expected, as "
        "`fairseq2 recipe hubert cluster` writes it. It may have been cut off."
    )


def _load_safetensors(path: Path, data: bytes) -> KMeansUnitModel:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)

        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError) as ex:
        raise UnitModelError(
            f"The unit model '{path}' ({len(data):,} bytes) is damaged, probably cut off: {ex}. Make it again or copy "
            "it again."
        ) from ex

    if FORMAT not in metadata:
        raise UnitModelError(
            f"'{path}' is a safetensors file, but not a unit model: its metadata must hold '{FORMAT}', but holds "
            f"{_shorten(sorted(metadata)) or 'nothing'}; its tensors are {_shorten(sorted(tensors))}."
        )

    try:
        record = json.loads(metadata[FORMAT])

        version, kind = record["format_version"], record["kind"]

        specs = [LabelSetSpec(**s) for s in record["label_sets"]]

        provenance = record["provenance"]
    except (KeyError, TypeError, ValueError) as ex:
        raise UnitModelError(f"The metadata of the unit model '{path}' cannot be understood: {ex!r}.") from ex

    if version != FORMAT_VERSION or kind != _KIND:
        raise UnitModelError(
            f"The unit model '{path}' is of kind '{kind}', format version {version}; this release reads kind "
            f"'{_KIND}', format version {FORMAT_VERSION}. Update fairseq2-hubert."
        )

    expected = {_PREFIX + s.name for s in specs}

    if expected != set(tensors):
        raise UnitModelError(
            f"The unit model '{path}' must hold the tensors {_shorten(sorted(expected))}, but holds "
            f"{_shorten(sorted(tensors))}."
        )

    try:
        return KMeansUnitModel({s: tensors[_PREFIX + s.name] for s in specs}, provenance)
    except UnitModelError as ex:
        raise UnitModelError(f"The unit model '{path}' cannot be used. {ex}") from None


def _load_joblib(path: Path, spec: LabelSetSpec | None) -> KMeansUnitModel:
    import joblib

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the centroids mean the same in every scikit-learn version

            estimator = joblib.load(path)
    except Exception as ex:  # a pickle can fail in any way
        raise UnitModelError(f"The joblib file '{path}' cannot be read: {ex!r}.") from ex

    centroids = getattr(estimator, "cluster_centers_", None)

    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2:
        raise UnitModelError(
            f"'{path}' must hold a fitted scikit-learn k-means, but holds a {type(estimator).__name__} without "
            "`cluster_centers_`."
        )

    if spec is None:
        spec = LabelSetSpec("km", len(centroids), 100 if centroids.shape[1] == 39 else 50)

    return KMeansUnitModel({spec: centroids}, {"joblib": path.name, "estimator": type(estimator).__name__})


def _fingerprint(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()

    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())

    return digest.hexdigest()[:16]


def _is_safetensors(data: bytes) -> bool:
    # 8 bytes of header length, then the header, which is a JSON object.
    return len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 100 << 20


def _is_pickle(data: bytes) -> bool:
    # Protocol 2 and later begin so; so do the compressions that joblib offers (zlib, gzip, bz2, xz, lzma).
    return data[:1] == b"\x80" or data[:2] in (
        b"x\x01",
        b"x\x5e",
        b"x\x9c",
        b"x\xda",
        b"\x1f\x8b",
        b"BZ",
        b"\xfd7",
        b"]\x00",
    )


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(f"'{n}'" for n in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
