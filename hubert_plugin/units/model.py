"""Reading unit models.

A unit model is one safetensors file: a tensor ``centroids.<label set>`` (K, D) in float32 for each label set, of a
hierarchy also ``map.<label set>``, and in the file's metadata the kind, the label sets and the provenance (features,
data, seed, versions) as one JSON object. Nothing in it is code. scikit-learn's joblib files are pickles, which can run
code: read only on the explicit word.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import LabelSetSpec, UnitModel
from hubert_plugin.units.cards import find_card_units
from hubert_plugin.units.codebooks import FORMAT as FORMAT
from hubert_plugin.units.codebooks import FORMAT_VERSION, CodebookUnitModel
from hubert_plugin.units.kinds import KINDS
from hubert_plugin.units.kinds import EnsembleUnitModel as EnsembleUnitModel
from hubert_plugin.units.kinds import HierarchyUnitModel as HierarchyUnitModel
from hubert_plugin.units.kinds import KMeansUnitModel as KMeansUnitModel
from hubert_plugin.units.kinds import ProductUnitModel as ProductUnitModel

UNIT_MODEL_FILE: Final = "units.safetensors"
"""How the unit model is named in an output folder."""

_sys_modules_lock: Final = threading.Lock()


def load_units(
    path: Path | str, *, trust_pickle: bool = False, spec: LabelSetSpec | None = None, rate: int | None = None
) -> UnitModel:
    """Read a unit model.

    :param path: A file, the output folder of ``cluster``, or the name of an asset card of a unit model.
    :param trust_pickle: Also read scikit-learn joblib files (fairseq's k-means models). **Such a file can run any code
        when it is read**: allow it only for files you trust.
    :param spec: For joblib files, which do not say it: the name and the rate of the label set. ``None`` names it
        ``km``.
    :param rate: For joblib files without ``spec``: labels per second. ``None`` takes 100 for 39 features (fairseq's
        MFCC) and 50 for others.
    :raises UnitModelError: The file is missing, cut off, or not a unit model.
    """
    path = Path(path)

    if not path.exists() and (units := find_card_units(str(path), trust_pickle=trust_pickle)) is not None:
        path = units.path

        if spec is None:
            spec = LabelSetSpec(units.label_set, 0, units.rate)

    if path.is_dir():
        path = _find_in_folder(path)

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
            return _load_joblib(path, spec, rate)

        raise UnitModelError(
            f"'{path}' is a pickle (a scikit-learn joblib file), which can run code when it is read. If you trust its "
            "origin, set `trust_pickle: true` (`load_units(path, trust_pickle=True)`), then save it as a unit "
            "model."
        )

    raise UnitModelError(
        f"'{path}' ({len(data):,} bytes) is not a unit model: a safetensors file was expected, as "
        "`fairseq2 recipe hubert cluster` writes it. It may have been cut off."
    )


def _find_in_folder(folder: Path) -> Path:
    if (path := folder / UNIT_MODEL_FILE).is_file():
        return path

    raise UnitModelError(
        f"The unit model '{folder}' is a folder without '{UNIT_MODEL_FILE}', which `fairseq2 recipe hubert cluster` "
        "writes into its output folder. Name a file or that folder."
    )


def _load_safetensors(path: Path, data: bytes) -> CodebookUnitModel:
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

        if not isinstance(record["provenance"], dict):
            raise TypeError("the provenance must be an object")
    except (KeyError, TypeError, ValueError) as ex:
        raise UnitModelError(f"The metadata of the unit model '{path}' cannot be understood: {ex!r}.") from ex

    if version != FORMAT_VERSION or kind not in KINDS:
        raise UnitModelError(
            f"The unit model '{path}' is of kind '{kind}', format version {version}; this release reads the kinds "
            f"{', '.join(KINDS)}, format version {FORMAT_VERSION}. Update fairseq2-hubert."
        )

    kls = KINDS[kind]

    expected = set(kls.tensor_names(specs))

    if expected != set(tensors):
        raise UnitModelError(
            f"The unit model '{path}' must hold the tensors {_shorten(sorted(expected))}, but holds "
            f"{_shorten(sorted(tensors))}."
        )

    try:
        return kls.from_file(specs, tensors, record)
    except UnitModelError as ex:
        raise UnitModelError(f"The unit model '{path}' cannot be used. {ex}") from None
    except (KeyError, TypeError, ValueError) as ex:
        raise UnitModelError(f"The metadata of the unit model '{path}' cannot be understood: {ex!r}.") from ex


def _load_joblib(path: Path, spec: LabelSetSpec | None, rate: int | None) -> KMeansUnitModel:
    import joblib

    try:
        with warnings.catch_warnings(), _former_sklearn_modules():
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
        spec = LabelSetSpec("km", len(centroids), rate or (100 if centroids.shape[1] == 39 else 50))
    elif spec.size == 0:  # a card does not say it
        spec = replace(spec, size=len(centroids))

    return KMeansUnitModel({spec: centroids}, {"joblib": path.name, "estimator": type(estimator).__name__})


@contextmanager
def _former_sklearn_modules() -> Iterator[None]:
    """Let pickles find k-means where scikit-learn kept it before 0.22. (The released km500 was made by a later one.)"""
    from sklearn.cluster import _kmeans

    name = "sklearn.cluster.k_means_"

    with _sys_modules_lock:
        is_new = name not in sys.modules

        sys.modules.setdefault(name, _kmeans)

        try:
            yield
        finally:
            if is_new:
                del sys.modules[name]


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
