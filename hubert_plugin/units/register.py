"""Registers the feature sources and unit models of this package under their names."""

from __future__ import annotations

from fairseq2.runtime.dependency import DependencyContainer

from hubert_plugin.registry import register_feature_source, register_unit_model
from hubert_plugin.units.hubert_layer import HUBERT_LAYER_SOURCE, HubertLayerConfig, create_hubert_layer_source
from hubert_plugin.units.kmeans import KMEANS_FITTER, KMeansConfig, create_kmeans_fitter
from hubert_plugin.units.mfcc import MFCC_SOURCE, MfccConfig, create_mfcc_source


def register_units(container: DependencyContainer) -> None:
    """Register the feature sources ``mfcc`` and ``hubert_layer`` and the unit model ``kmeans``."""
    register_feature_source(container, MFCC_SOURCE, MfccConfig, create_mfcc_source)
    register_feature_source(container, HUBERT_LAYER_SOURCE, HubertLayerConfig, create_hubert_layer_source)

    register_unit_model(container, KMEANS_FITTER, KMeansConfig, create_kmeans_fitter)
