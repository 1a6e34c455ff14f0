"""Registers the feature sources and unit models of this package under their names."""

from __future__ import annotations

from fairseq2.runtime.dependency import DependencyContainer

from hubert_plugin.registry import register_feature_source, register_unit_model
from hubert_plugin.units.hierarchy import HIERARCHY_FITTER, HierarchyConfig, create_hierarchy_fitter
from hubert_plugin.units.hubert_layer import HUBERT_LAYER_SOURCE, HubertLayerConfig, create_hubert_layer_source
from hubert_plugin.units.kmeans import (
    ENSEMBLE_FITTER,
    KMEANS_FITTER,
    EnsembleConfig,
    KMeansConfig,
    create_ensemble_fitter,
    create_kmeans_fitter,
)
from hubert_plugin.units.mfcc import MFCC_SOURCE, MfccConfig, create_mfcc_source
from hubert_plugin.units.product import PRODUCT_FITTER, ProductConfig, create_product_fitter
from hubert_plugin.units.stored import (
    FAIRSEQ_SOURCE,
    KALDI_SOURCE,
    StoredFeatureConfig,
    create_fairseq_source,
    create_kaldi_source,
)


def register_units(container: DependencyContainer) -> None:
    """Register the feature sources ``mfcc``, ``hubert_layer``, ``kaldi`` and ``fairseq``, and the unit models
    ``kmeans``, ``kmeans_ensemble``, ``product`` and ``hierarchy``."""
    register_feature_source(container, MFCC_SOURCE, MfccConfig, create_mfcc_source)
    register_feature_source(container, HUBERT_LAYER_SOURCE, HubertLayerConfig, create_hubert_layer_source)
    register_feature_source(container, KALDI_SOURCE, StoredFeatureConfig, create_kaldi_source)
    register_feature_source(container, FAIRSEQ_SOURCE, StoredFeatureConfig, create_fairseq_source)

    register_unit_model(container, KMEANS_FITTER, KMeansConfig, create_kmeans_fitter)
    register_unit_model(container, ENSEMBLE_FITTER, EnsembleConfig, create_ensemble_fitter)
    register_unit_model(container, PRODUCT_FITTER, ProductConfig, create_product_fitter)
    register_unit_model(container, HIERARCHY_FITTER, HierarchyConfig, create_hierarchy_fitter)
