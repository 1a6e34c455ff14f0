"""Fitting k-means on streams of features."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from fairseq2.runtime.dependency import DependencyContainer
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans

from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import FeatureSource, UnitModel, known_names
from hubert_plugin.units import clustering, register_units
from hubert_plugin.units.fit import entropy_bits, sample_frames, shuffled_frames
from hubert_plugin.units.kmeans import KMeansConfig, KMeansFitter
from hubert_plugin.units.stream import (
    ArrayFeatureStream,
    FeatureStream,
    _cut_chunks,
    _map_ordered,
)


def blobs(num_utterances: int, frames: int = 200, dim: int = 5, k: int = 8, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    centers = 4.0 * rng.standard_normal((k, dim))

    return [
        (centers[rng.integers(k, size=frames)] + rng.standard_normal((frames, dim))).astype(np.float32)
        for _ in range(num_utterances)
    ]


def stream_of(items: list[np.ndarray]) -> ArrayFeatureStream:
    return ArrayFeatureStream(items, rate=100, description={"name": "test"})


class LazyStream(FeatureStream):
    """Makes utterances up as they are read, so that only what is kept takes memory."""

    def __init__(self, num_utterances: int) -> None:
        self._n = num_utterances
        self.num_reads = 0

    dim, rate = 8, 100

    def num_frames(self) -> np.ndarray:
        return np.full(self._n, 500)

    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for i in range(self._n) if order is None else order:
            self.num_reads += 1

            yield i, np.random.default_rng(i).standard_normal((500, 8), dtype=np.float32)

    def describe(self) -> dict[str, object]:
        return {}

    def describe_data(self) -> dict[str, object]:
        return {}


def inertia(items: list[np.ndarray], centroids: np.ndarray) -> float:
    x = np.concatenate(items).astype(np.float64)

    return float(np.square(x[:, None] - centroids[None]).sum(axis=2).min(axis=1).mean())


def test_fit_is_as_good_as_scikit_learns_and_reports_truly() -> None:
    items = blobs(40)

    result = KMeansFitter(KMeansConfig(num_clusters=8)).fit(stream_of(items), seed=3)

    reference = MiniBatchKMeans(
        8, batch_size=8000, n_init=20, tol=0.0, max_no_improvement=100, reassignment_ratio=0.0, random_state=0
    ).fit(np.concatenate(items))

    expected = inertia(items, reference.cluster_centers_)

    report = result.report

    assert inertia(items, result.model.centroids[0]) <= 1.005 * expected  # type: ignore[attr-defined]
    assert report.inertia_per_frame == pytest.approx(inertia(items, result.model.centroids[0]), rel=1e-5)  # type: ignore[attr-defined]

    units = result.model.assign(np.concatenate(items))[0]
    sizes = np.bincount(units, minlength=8)

    assert (report.num_frames, report.num_corpus_frames, report.num_utterances) == (8000, 8000, 40)
    assert (report.min_cluster_size, report.max_cluster_size) == (sizes.min(), sizes.max())
    assert report.median_cluster_size == np.median(sizes) and report.num_dead_units == 0
    assert report.unit_entropy_bits == pytest.approx(-sum(s / 8000 * np.log2(s / 8000) for s in sizes))
    assert result.model.provenance["seed"] == 3


def test_equal_seeds_give_equal_models_and_other_seeds_others() -> None:
    items = blobs(10)

    prints = [
        KMeansFitter(KMeansConfig(num_clusters=5)).fit(stream_of(items), seed=s).model.fingerprint for s in (0, 0, 1)
    ]

    assert prints[0] == prints[1] != prints[2]


def test_the_whole_corpus_in_a_second_pass_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "SAMPLE_FRAMES", 1_500)

    items = blobs(40)

    config = KMeansConfig(num_clusters=8, max_frames=None, batch_size=500)

    result = KMeansFitter(config).fit(stream_of(items), seed=0)

    full = KMeansFitter(KMeansConfig(num_clusters=8)).fit(stream_of(items), seed=0)

    assert result.report.num_frames == 8000
    assert inertia(items, result.model.centroids[0]) <= 1.01 * inertia(items, full.model.centroids[0])  # type: ignore[attr-defined]


def test_more_clusters_than_frames_is_a_sentence() -> None:
    with pytest.raises(UnitModelError, match=r"500 clusters needs at least as many frames, but there are 400"):
        KMeansFitter(KMeansConfig(num_clusters=500)).fit(stream_of(blobs(2)), seed=0)

    with pytest.raises(UnitModelError, match=r"50 clusters .* there are 20.*`max_frames`"):
        KMeansFitter(KMeansConfig(num_clusters=50, max_frames=20)).fit(stream_of(blobs(2)), seed=0)


@pytest.mark.filterwarnings("ignore")
def test_identical_frames_leave_dead_units_that_are_counted() -> None:
    report = KMeansFitter(KMeansConfig(num_clusters=4)).fit(stream_of([np.ones((50, 3), np.float32)]), seed=0).report

    assert report.num_dead_units == 3 and report.unit_entropy_bits == 0.0


def test_a_sample_takes_the_same_share_of_every_utterance_without_repeats() -> None:
    items = [np.full((100, 1), i, np.float32) + np.arange(100, dtype=np.float32)[:, None] / 1000 for i in range(20)]

    sample = sample_frames(stream_of(items), 500, seed=0)

    assert sample.frames.shape == (500, 1) and sample.num_utterances == 20
    assert len(np.unique(sample.frames)) == 500

    assert np.bincount(sample.frames[:, 0].astype(int)).tolist() == [25] * 20


def test_a_small_sample_of_a_large_corpus_reads_only_what_it_needs() -> None:
    stream = LazyStream(1_000)

    sample = sample_frames(stream, 1_000, seed=0)

    assert len(sample.frames) == 1_000
    assert stream.num_reads == 20  # a tenth of the frames of 20 utterances


def test_all_frames_are_taken_once_if_there_is_room() -> None:
    items = blobs(7, frames=33)

    for max_frames in (None, 231, 10_000):
        sample = sample_frames(stream_of(items), max_frames, seed=0).frames

        np.testing.assert_array_equal(np.sort(sample, axis=0), np.sort(np.concatenate(items), axis=0))


@pytest.mark.parametrize("buffer_size", [1, 10, 50, 1_000])
def test_shuffled_blocks_hold_every_frame_once(buffer_size: int) -> None:
    items = blobs(7, frames=33, dim=1)

    blocks = [b.copy() for b in shuffled_frames(stream_of(items), buffer_size, seed=0)]

    assert all(len(b) == buffer_size for b in blocks[:-1])

    np.testing.assert_array_equal(np.sort(np.concatenate(blocks), axis=0), np.sort(np.concatenate(items), axis=0))


@pytest.mark.parametrize("max_frames", [20_000, None])
def test_memory_does_not_grow_with_the_corpus(max_frames: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "SAMPLE_FRAMES", 20_000)

    config = KMeansConfig(num_clusters=4, max_frames=max_frames, n_init=1, max_iter=1)

    KMeansFitter(config).fit(LazyStream(10), seed=0)  # imports

    peaks = []

    for num_utterances in (50, 500):
        tracemalloc.start()

        KMeansFitter(config).fit(LazyStream(num_utterances), seed=0)

        peaks.append(tracemalloc.get_traced_memory()[1])

        tracemalloc.stop()

    assert peaks[1] < 1.2 * peaks[0]


def test_entropy() -> None:
    assert entropy_bits(np.array([5, 5, 0, 5, 5])) == pytest.approx(2.0)
    assert entropy_bits(np.array([7])) == 0.0
    assert entropy_bits(np.zeros(3, np.int64)) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2_000) | st.integers(1, 100), max_size=60), st.randoms())
def test_chunks_hold_as_much_audio_as_they_may(sizes: list[int], random: Random) -> None:
    order = random.sample(range(len(sizes)), len(sizes))

    chunks = [list(c) for c in _cut_chunks(order, np.array(sizes, np.int64), 1_000)]

    assert [i for c in chunks for i in c] == order

    for chunk in chunks:
        assert len(chunk) == 1 or 0 < sum(sizes[i] for i in chunk) <= 1_000

    # None of them could have taken in the next utterance.
    for a, b in pairwise(chunks):
        assert sum(sizes[i] for i in [*a, b[0]]) > 1_000


def test_the_worker_pool_keeps_order_and_passes_errors_on() -> None:
    import torch

    before = torch.get_num_threads()

    assert list(_map_ordered(lambda i: i * i, range(100), 3)) == [i * i for i in range(100)]

    def fail(i: int) -> int:
        if i == 7:
            raise UnitModelError("seven")

        return i

    with pytest.raises(UnitModelError, match="seven"):
        list(_map_ordered(fail, range(100), 2))

    assert torch.get_num_threads() == before


def test_bad_configurations_are_named() -> None:
    config = KMeansConfig(num_clusters=0, label_set="a/b", tol=-1.0, backend="faiss", algorithm="elkan", n_init=0)

    assert len(config.validate().errors) == 6

    assert not KMeansConfig().validate().errors


def test_settings_are_fairseqs() -> None:
    settings = asdict(KMeansConfig())

    assert {k: settings[k] for k in ("max_iter", "batch_size", "tol", "max_no_improvement", "n_init")} == {
        "max_iter": 100,
        "batch_size": 10_000,
        "tol": 0.0,
        "max_no_improvement": 100,
        "n_init": 20,
    }
    assert settings["reassignment_ratio"] == 0.0


def test_components_are_registered_by_name() -> None:
    container = DependencyContainer()

    register_units(container)

    assert {"hubert_layer", "mfcc"} <= set(known_names(container, FeatureSource))
    assert known_names(container, UnitModel) == ["hierarchy", "kmeans", "kmeans_ensemble", "product"]
