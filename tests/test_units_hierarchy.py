"""Ensembles and hierarchies of codebooks: several label sets of one unit model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.hierarchy import HierarchyConfig, HierarchyFitter, coarsen
from hubert_plugin.units.kmeans import EnsembleConfig, EnsembleFitter, KMeansConfig, KMeansFitter
from hubert_plugin.units.model import EnsembleUnitModel, HierarchyUnitModel, load_units
from hubert_plugin.units.stream import ArrayFeatureStream, FeatureStream


def frames(num: int = 2_000, dim: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)

    return (4.0 * rng.standard_normal((30, dim))[rng.integers(30, size=num)] + rng.standard_normal((num, dim))).astype(
        np.float32
    )


def stream_of(x: np.ndarray) -> ArrayFeatureStream:
    return ArrayFeatureStream([x[:700], x[700:]], rate=50, description={"name": "test"})


class CountingStream(FeatureStream):
    def __init__(self, inner: FeatureStream) -> None:
        self._inner, self.num_read = inner, 0

    dim, rate = property(lambda self: self._inner.dim), property(lambda self: self._inner.rate)  # type: ignore[assignment]

    def num_frames(self) -> np.ndarray:
        return self._inner.num_frames()

    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for item in self._inner.read(order):
            self.num_read += 1

            yield item

    def describe(self) -> dict[str, object]:
        return self._inner.describe()

    def describe_data(self) -> dict[str, object]:
        return self._inner.describe_data()


@pytest.mark.parametrize("backend", ["sklearn", "torch"])
def test_an_ensemble_is_fitted_in_one_pass_and_each_member_equals_a_single_fit(backend: str, tmp_path: Path) -> None:
    x = frames()

    stream = CountingStream(stream_of(x))

    result = EnsembleFitter(EnsembleConfig(num_clusters=[3, 8], backend=backend, n_init=3)).fit(stream, seed=1)

    assert stream.num_read == 2

    model = result.model

    assert isinstance(model, EnsembleUnitModel)
    assert list(model.label_sets) == [LabelSetSpec("km3", 3, 50), LabelSetSpec("km8", 8, 50)]
    assert [r.label_set for r in result.reports] == ["km3", "km8"]

    for k, centroids, units in zip((3, 8), model.centroids, model.assign(x), strict=True):
        single = KMeansFitter(KMeansConfig(num_clusters=k, backend=backend, n_init=3)).fit(stream_of(x), seed=1).model

        np.testing.assert_array_equal(centroids, single.centroids[0])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(units, single.assign(x)[0])

    model.save(tmp_path / "u")

    loaded = load_units(tmp_path / "u")

    assert isinstance(loaded, EnsembleUnitModel)
    assert loaded.fingerprint == model.fingerprint and dict(loaded.provenance) == dict(model.provenance)


def test_levels_that_are_not_nested_are_as_good_as_they_say() -> None:
    x = frames()

    config = HierarchyConfig(num_clusters=[30, 12, 4], assignment="nearest", n_init=4)

    result = HierarchyFitter(config).fit(stream_of(x), seed=0)

    for centroids, report in zip(result.model.centroids, result.reports, strict=True):  # type: ignore[attr-defined]
        distances = np.square(x[:, None].astype(np.float64) - centroids).sum(axis=2)

        assert report.cluster_sizes == tuple(np.bincount(distances.argmin(axis=1), minlength=len(centroids)))
        assert report.inertia_per_frame == pytest.approx(distances.min(axis=1).mean(), rel=1e-6)


@pytest.mark.parametrize("backend", ["sklearn", "torch"])
def test_levels_are_nested_and_as_good_as_they_say(backend: str, tmp_path: Path) -> None:
    x = frames()

    config = HierarchyConfig(num_clusters=[30, 12, 4], backend=backend, n_init=4)

    result = HierarchyFitter(config).fit(stream_of(x), seed=0)

    model = result.model

    assert isinstance(model, HierarchyUnitModel)
    assert [s.name for s in model.label_sets] == ["km30", "km12", "km4"]

    fine, middle, coarse = model.assign(x)

    np.testing.assert_array_equal(middle, model.maps[0][fine])
    np.testing.assert_array_equal(coarse, model.maps[1][model.maps[0][fine]])

    for level, units, report in zip(model.centroids, (fine, middle, coarse), result.reports, strict=True):
        assert report.cluster_sizes == tuple(np.bincount(units, minlength=len(level)))

        measured = np.square(x - level[units], dtype=np.float64).sum() / len(x)

        assert report.inertia_per_frame == pytest.approx(measured, rel=1e-6)

    # Each coarse centroid is the mean of the finer ones that went there, all with one weight.
    for finer, coarser, units in zip(model.centroids, model.centroids[1:], model.maps, strict=False):
        for k in range(len(coarser)):
            np.testing.assert_allclose(coarser[k], finer[units == k].mean(axis=0), atol=1e-4)

    model.save(tmp_path / "u")

    loaded = load_units(tmp_path / "u")

    assert isinstance(loaded, HierarchyUnitModel)
    assert loaded.fingerprint == model.fingerprint

    for a, b in zip(loaded.assign(x), (fine, middle, coarse), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_nearest_coarse_centroid_can_be_asked_for_and_is_another_model(tmp_path: Path) -> None:
    x = frames()

    models = [
        HierarchyFitter(HierarchyConfig(num_clusters=[20, 5], n_init=2, assignment=a)).fit(stream_of(x), seed=0).model
        for a in ("compose", "nearest")
    ]

    assert models[0].fingerprint != models[1].fingerprint

    models[1].save(tmp_path / "u")

    loaded = load_units(tmp_path / "u")

    assert isinstance(loaded, HierarchyUnitModel) and loaded.fingerprint == models[1].fingerprint

    distances = np.square(x[:, None].astype(np.float64) - loaded.centroids[1][None]).sum(axis=2)

    np.testing.assert_array_equal(loaded.assign(x)[1], distances.argmin(axis=1))


def test_the_chain_of_ms_hubert() -> None:
    rng = np.random.default_rng(0)

    sizes = [500, 250, 125, 50, 25]

    levels, maps = coarsen(rng.standard_normal((1_000, 8)).astype(np.float32), sizes, n_init=1, seed=0)

    assert [len(c) for c in levels] == [1_000, *sizes]
    assert [len(m) for m in maps] == [1_000, *sizes[:-1]]

    for m, size in zip(maps, sizes, strict=True):
        assert set(m.tolist()) == set(range(size))


def test_maps_that_do_not_fit_are_named(tmp_path: Path) -> None:
    codebooks = {LabelSetSpec("a", 3): np.eye(3, dtype=np.float32), LabelSetSpec("b", 2): np.ones((2, 3), np.float32)}

    with pytest.raises(UnitModelError, match=r"2 levels needs 1 maps, but has 0"):
        HierarchyUnitModel(codebooks, [])

    with pytest.raises(UnitModelError, match=r"map to label set 'b' must hold 3 units from 0 to 1"):
        HierarchyUnitModel(codebooks, [np.array([0, 1, 2])])

    with pytest.raises(UnitModelError, match=r"must hold 3 units"):
        HierarchyUnitModel(codebooks, [np.array([0, 1])])

    with pytest.raises(UnitModelError, match="'compose' or 'nearest', but is 'x'"):
        HierarchyUnitModel(codebooks, [np.array([0, 1, 1])], assignment="x")

    model = HierarchyUnitModel(codebooks, [np.array([0, 1, 1])])

    model.save(tmp_path / "u")

    data = (tmp_path / "u").read_bytes()

    with pytest.raises(UnitModelError, match="cut off"):
        (tmp_path / "cut").write_bytes(data[:-3])

        load_units(tmp_path / "cut")


def test_bad_configurations_are_named() -> None:
    for sizes in ([], [10, 10], [5, 10], [10, 0]):
        assert HierarchyConfig(num_clusters=sizes).validate().errors

    assert len(HierarchyConfig(label_set="", assignment="x").validate().errors) == 2

    assert EnsembleConfig(num_clusters=[50, 50]).validate().errors
    assert EnsembleConfig(num_clusters=[]).validate().errors

    assert not HierarchyConfig().validate().errors and not EnsembleConfig().validate().errors


def test_more_clusters_than_frames_is_a_sentence() -> None:
    with pytest.raises(UnitModelError, match=r"1000 clusters needs at least as many frames, but there are 90"):
        HierarchyFitter().fit(ArrayFeatureStream([frames(90)], rate=50, description={}), seed=0)
