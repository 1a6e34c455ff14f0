"""Speech units: feature sources, k-means, unit models, labelling. The names below are loaded when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "AudioFeatureStream": "hubert_plugin.units.stream",
    "EnsembleConfig": "hubert_plugin.units.kmeans",
    "EnsembleFitter": "hubert_plugin.units.kmeans",
    "EnsembleUnitModel": "hubert_plugin.units.model",
    "FeatureStream": "hubert_plugin.units.stream",
    "FitReport": "hubert_plugin.units.fit",
    "FitResult": "hubert_plugin.units.fit",
    "HierarchyConfig": "hubert_plugin.units.hierarchy",
    "HierarchyFitter": "hubert_plugin.units.hierarchy",
    "HierarchyUnitModel": "hubert_plugin.units.model",
    "KMeansConfig": "hubert_plugin.units.kmeans",
    "KMeansFitter": "hubert_plugin.units.kmeans",
    "KMeansUnitModel": "hubert_plugin.units.model",
    "MfccConfig": "hubert_plugin.units.mfcc",
    "MfccSource": "hubert_plugin.units.mfcc",
    "NearestCentroid": "hubert_plugin.units.nearest",
    "ProductConfig": "hubert_plugin.units.product",
    "ProductFitter": "hubert_plugin.units.product",
    "ProductUnitModel": "hubert_plugin.units.model",
    "UnitModelFitter": "hubert_plugin.units.fit",
    "ensure_labels": "hubert_plugin.units.prepare",
    "label_manifest": "hubert_plugin.units.label",
    "load_units": "hubert_plugin.units.model",
    "register_units": "hubert_plugin.units.register",
}

__all__ = list(_PUBLIC)

if TYPE_CHECKING:
    from hubert_plugin.units.fit import FitReport as FitReport
    from hubert_plugin.units.fit import FitResult as FitResult
    from hubert_plugin.units.fit import UnitModelFitter as UnitModelFitter
    from hubert_plugin.units.hierarchy import HierarchyConfig as HierarchyConfig
    from hubert_plugin.units.hierarchy import HierarchyFitter as HierarchyFitter
    from hubert_plugin.units.kmeans import EnsembleConfig as EnsembleConfig
    from hubert_plugin.units.kmeans import EnsembleFitter as EnsembleFitter
    from hubert_plugin.units.kmeans import KMeansConfig as KMeansConfig
    from hubert_plugin.units.kmeans import KMeansFitter as KMeansFitter
    from hubert_plugin.units.label import label_manifest as label_manifest
    from hubert_plugin.units.mfcc import MfccConfig as MfccConfig
    from hubert_plugin.units.mfcc import MfccSource as MfccSource
    from hubert_plugin.units.model import EnsembleUnitModel as EnsembleUnitModel
    from hubert_plugin.units.model import HierarchyUnitModel as HierarchyUnitModel
    from hubert_plugin.units.model import KMeansUnitModel as KMeansUnitModel
    from hubert_plugin.units.model import ProductUnitModel as ProductUnitModel
    from hubert_plugin.units.model import load_units as load_units
    from hubert_plugin.units.nearest import NearestCentroid as NearestCentroid
    from hubert_plugin.units.prepare import ensure_labels as ensure_labels
    from hubert_plugin.units.product import ProductConfig as ProductConfig
    from hubert_plugin.units.product import ProductFitter as ProductFitter
    from hubert_plugin.units.register import register_units as register_units
    from hubert_plugin.units.stream import AudioFeatureStream as AudioFeatureStream
    from hubert_plugin.units.stream import FeatureStream as FeatureStream


def __getattr__(name: str) -> Any:
    if (module := _PUBLIC.get(name)) is None:
        raise AttributeError(f"module 'hubert_plugin.units' has no attribute '{name}'")

    from importlib import import_module

    return getattr(import_module(module), name)
