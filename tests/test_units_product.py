"""Product quantizers: one codebook for each sub-space of the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import ProductUnitModel, load_units
from hubert_plugin.units.product import ProductConfig, ProductFitter, resolve_subspaces
from hubert_plugin.units.stream import ArrayFeatureStream


def frames(num: int = 600, dim: int = 9, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)

    return (3.0 * rng.standard_normal((20, dim))[rng.integers(20, size=num)] + rng.standard_normal((num, dim))).astype(
        np.float32
    )


def stream_of(x: np.ndarray) -> ArrayFeatureStream:
    return ArrayFeatureStream([x[:200], x[200:]], rate=100, description={"name": "test"})


@pytest.mark.parametrize("backend", ["sklearn", "torch"])
def test_each_sub_space_has_its_own_codebook_and_label_set(backend: str, tmp_path: Path) -> None:
    x = frames()

    config = ProductConfig(num_clusters=6, subspaces={"low": [0, 4], "high": [4, 9]}, backend=backend, n_init=10)

    result = ProductFitter(config).fit(stream_of(x), seed=0)

    model = result.model

    assert isinstance(model, ProductUnitModel)
    assert list(model.label_sets) == [LabelSetSpec("pq_low", 6, 100), LabelSetSpec("pq_high", 6, 100)]
    assert model.dim == 9 and model.provenance["product"]["subspaces"] == {"low": [0, 4], "high": [4, 9]}  # type: ignore[index]

    units = model.assign(x)

    for u, columns, centroids, report in zip(
        units, (slice(0, 4), slice(4, 9)), model.centroids, result.reports, strict=True
    ):
        distances = np.square(x[:, None, columns].astype(np.float64) - centroids[None]).sum(axis=2)

        np.testing.assert_array_equal(u, distances.argmin(axis=1))

        assert report.inertia_per_frame == pytest.approx(distances.min(axis=1).mean(), rel=1e-5)
        assert report.cluster_sizes == tuple(np.bincount(u, minlength=6))

        peer = MiniBatchKMeans(6, n_init=20, batch_size=600, random_state=1, reassignment_ratio=0.0).fit(x[:, columns])

        # Twenty sounds in six clusters: where a start leads to differs by some percent.
        assert report.inertia_per_frame <= 1.05 * peer.inertia_ / len(x)

    model.save(tmp_path / "u")

    loaded = load_units(tmp_path / "u")

    assert isinstance(loaded, ProductUnitModel)
    assert loaded.fingerprint == model.fingerprint
    assert loaded.columns == model.columns
    assert dict(loaded.provenance) == dict(model.provenance)

    for a, b in zip(loaded.assign(x), units, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_columns_are_another_model() -> None:
    codebooks = {
        LabelSetSpec("a", 2): np.eye(2, 3, dtype=np.float32),
        LabelSetSpec("b", 2): np.eye(2, 3, dtype=np.float32),
    }

    one = ProductUnitModel(codebooks, [slice(0, 3), slice(3, 6)])
    two = ProductUnitModel(codebooks, [slice(3, 6), slice(0, 3)])

    assert one.fingerprint != two.fingerprint

    with pytest.raises(UnitModelError, match=r"\[3, 4\] features wide.*\[3, 3\] dimensions"):
        ProductUnitModel(codebooks, [slice(0, 3), slice(3, 7)])


def test_spliced_mfcc_splits_into_static_delta_and_second_differences() -> None:
    waveform = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)

    x = MfccSource(MfccConfig(splice=3)).extract([waveform])[0]

    stream = ArrayFeatureStream([x], rate=100, description={"name": "mfcc"})

    model = ProductFitter(ProductConfig(num_clusters=5, n_init=2)).fit(stream, seed=0).model

    assert isinstance(model, ProductUnitModel)
    assert [s.name for s in model.label_sets] == ["pq_static", "pq_delta", "pq_delta2"]
    assert list(model.columns) == [slice(0, 39), slice(39, 78), slice(78, 117)]

    # The middle frame of each kind is the plain feature.
    np.testing.assert_array_equal(x[:, 13:26], MfccSource().extract([waveform])[0][:, :13])


def test_splits_that_do_not_fit_are_named_all_at_once() -> None:
    assert resolve_subspaces(None, 39) == {"static": slice(0, 13), "delta": slice(13, 26), "delta2": slice(26, 39)}

    with pytest.raises(UnitModelError, match=r"have 32 dimensions, which cannot be split into three equal.*subspaces="):
        resolve_subspaces(None, 32)

    with pytest.raises(UnitModelError) as ex:
        resolve_subspaces({"a": [0, 3], "b": [2, 4], "c": [5, 9]}, 8)

    message = str(ex.value)

    assert "each of the 8 features (0 to 7) exactly once" in message
    assert "'c' is [5, 9], beyond the last feature" in message
    assert "feature 2 is in a and b" in message and "feature 4 is in none" in message

    with pytest.raises(UnitModelError, match="beyond the last feature"):
        ProductFitter(ProductConfig(num_clusters=2, subspaces={"a": [0, 4], "b": [4, 12]})).fit(
            stream_of(frames()), seed=0
        )


def test_features_of_another_dimension_or_not_finite_are_refused() -> None:
    codebooks = {
        LabelSetSpec("a", 2): np.eye(2, 3, dtype=np.float32),
        LabelSetSpec("b", 2): np.eye(2, 3, dtype=np.float32),
    }

    model = ProductUnitModel(codebooks, [slice(0, 3), slice(3, 6)], {"features": {"name": "mfcc"}})

    with pytest.raises(UnitModelError, match=r"\(frames, 6\) from .*mfcc.*\(4, 39\)"):
        model.assign(np.zeros((4, 39), np.float32))

    bad = np.zeros((4, 6), np.float32)
    bad[2, 5] = np.inf

    with pytest.raises(UnitModelError, match=r"NaN or infinite values \(first in frame 2 of 4\)"):
        model.assign(bad)


def test_bad_configurations_are_named() -> None:
    errors = ProductConfig(num_clusters=0, subspaces={"a/b": [0, 1], "c": [3, 3], "d": [1]}).validate().errors

    assert len(errors) == 4

    assert ProductConfig(subspaces={}).validate().errors
    assert not ProductConfig().validate().errors
