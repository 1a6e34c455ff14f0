"""Nearest centroids and k-means in PyTorch: exactness, quality, threads, ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import recipe_env
from sklearn.cluster import KMeans, MiniBatchKMeans

from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import UnitModelError
from hubert_plugin.units.collective import Ranks
from hubert_plugin.units.kmeans import EnsembleConfig, EnsembleFitter, KMeansConfig, KMeansFitter
from hubert_plugin.units.lloyd import Lloyd, LloydOptions
from hubert_plugin.units.mfcc import MfccSource
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.seeding import choose_centroids
from hubert_plugin.units.stream import ArrayFeatureStream, AudioFeatureStream
from hubert_plugin.units.threads import Workers, blocks_of, split_range


def speech_like(num_frames: int, dim: int, seed: int = 0, num_sounds: int = 60) -> np.ndarray:
    """Sounds held for a few frames, of unequal frequency and spread, with a large common offset as layers have."""
    rng = np.random.default_rng(seed)

    scale = np.linspace(3.0, 0.3, dim)

    sounds = 2.0 * rng.standard_normal((num_sounds, dim)) * scale + 5.0 * rng.standard_normal(dim)

    frequency = rng.gamma(1.0, 1.0, num_sounds)

    which = np.repeat(rng.choice(num_sounds, num_frames // 5 + 1, p=frequency / frequency.sum()), 5)[:num_frames]

    return (sounds[which] + rng.standard_normal((num_frames, dim)) * scale).astype(np.float32)


def stream_of(items: list[np.ndarray]) -> ArrayFeatureStream:
    return ArrayFeatureStream(items, rate=100, description={"name": "test"})


def brute_force(x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroids in float64, and by how much they are nearer than the second."""
    d = np.square(x[:, None].astype(np.float64) - c[None]).sum(axis=2)

    gap = np.full(len(x), np.inf) if len(c) == 1 else np.diff(np.sort(d, axis=1)[:, :2], axis=1)[:, 0]

    return d.argmin(axis=1), gap


def inertia(x: np.ndarray, c: np.ndarray) -> float:
    units = NearestCentroid(c, precision="fp32")(torch.from_numpy(x)).numpy()

    return float(np.square(x - c[units], dtype=np.float64).sum() / len(x))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["fp32", "bf16", "int8", "auto"]),
    st.integers(1, 40),
    st.integers(1, 160),
    st.integers(0, 300),
    st.integers(0, 10_000),
)
def test_every_precision_finds_the_nearest_centroid(precision: str, k: int, dim: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    offset = 10.0 * rng.standard_normal(dim)

    c = (rng.standard_normal((k, dim)) + offset).astype(np.float32)
    x = (rng.standard_normal((n, dim)) + offset).astype(np.float32)

    units = NearestCentroid(c, precision=precision)(torch.from_numpy(x)).numpy()  # type: ignore[arg-type]

    expected, gap = brute_force(x, c)

    clear = gap > 1e-4 * (1.0 + np.square(offset).sum())

    np.testing.assert_array_equal(units[clear], expected[clear])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_screened_labels_are_those_of_float32(precision: str) -> None:
    """On data whose clusters overlap, where rounding alone would err in a good part of the frames."""
    x = torch.from_numpy(speech_like(6_000, 192))

    c = x[torch.from_numpy(np.random.default_rng(1).choice(6_000, 120, replace=False))]

    exact = NearestCentroid(c, precision="fp32")(x)

    rounded = (x - c.mean(0)).to(torch.bfloat16) @ (c - c.mean(0)).T.to(torch.bfloat16)

    naive = ((c - c.mean(0)).square().sum(1) / 2 - rounded.float()).argmin(1)

    assert (naive != exact).sum() > 5, "the test needs frames that rounding would decide"

    assert torch.equal(NearestCentroid(c, precision=precision)(x), exact)  # type: ignore[arg-type]


def test_equally_near_centroids_give_the_first_and_identical_ones_do_no_harm() -> None:
    c = np.ones((5, 130), np.float32)

    for precision in ("fp32", "bf16", "int8"):
        units = NearestCentroid(c, precision=precision)(torch.ones(7, 130))  # type: ignore[arg-type]

        assert units.tolist() == [0] * 7


def test_threads_share_the_frames_without_changing_labels() -> None:
    x = torch.from_numpy(speech_like(5_000, 39))

    nearest = NearestCentroid(x[:50])

    with Workers(3) as workers:
        assert torch.equal(nearest(x, workers), nearest(x))


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="'fp64'"):
        NearestCentroid(np.ones((2, 2), np.float32), precision="fp64")  # type: ignore[arg-type]


def test_ranges_are_split_without_loss() -> None:
    for n in (0, 1, 2, 7, 100):
        for parts in (1, 2, 3, 8):
            assert [i for s in split_range(n, parts) for i in range(s.start, s.stop)] == list(range(n))

        assert [i for s in blocks_of(n, 3) for i in range(s.start, s.stop)] == list(range(n))


@pytest.mark.parametrize("k, dim, num_frames", [(80, 39, 15_000), (30, 140, 5_000)])
def test_inertia_is_that_of_scikit_learn(k: int, dim: int, num_frames: int) -> None:
    x = speech_like(num_frames, dim)

    config = KMeansConfig(num_clusters=k, backend="torch", n_init=6)

    result = KMeansFitter(config).fit(stream_of([x]), seed=0)

    peer = MiniBatchKMeans(
        k, batch_size=10_000, n_init=6, tol=0.0, max_no_improvement=100, reassignment_ratio=0.0, random_state=0
    ).fit(x)

    ours = inertia(x, result.model.centroids[0])  # type: ignore[attr-defined]

    assert ours <= 1.005 * inertia(x, peer.cluster_centers_)

    report = result.report

    assert report.inertia_per_frame == pytest.approx(ours, rel=1e-5)
    assert sum(report.cluster_sizes) == report.num_frames == num_frames
    assert report.to_dict()["unit_perplexity"] == pytest.approx(2**report.unit_entropy_bits)


def test_mini_batches_come_near() -> None:
    x = speech_like(20_000, 20)

    results = [
        KMeansFitter(KMeansConfig(num_clusters=30, backend="torch", batch_size=2_000, n_init=3, algorithm=a)).fit(
            stream_of([x]), seed=0
        )
        for a in ("lloyd", "mini_batch")
    ]

    assert results[1].report.inertia_per_frame <= 1.02 * results[0].report.inertia_per_frame
    assert results[1].report.num_steps > 10


def test_an_iteration_is_lloyds() -> None:
    """Against scikit-learn's full k-means from the same centroids, to convergence."""
    x = speech_like(3_000, 6)

    with Workers(2) as workers:
        lloyd = Lloyd(
            x.copy(),
            12,
            LloydOptions(min_improvement=0.0, max_iter=500),
            seed=0,
            ranks=Ranks(),
            device=torch.device("cpu"),
            workers=workers,
        )

        start = lloyd._initial_centroids().numpy()

        lloyd.fit()

    peer = KMeans(12, init=start, n_init=1, tol=0.0, max_iter=500).fit(x)

    np.testing.assert_allclose(lloyd.centroids.numpy(), peer.cluster_centers_, atol=1e-3)


def test_initial_centroids_are_frames_spread_as_scikit_learn_spreads_them() -> None:
    from sklearn.cluster import kmeans_plusplus

    x = speech_like(2_000, 10)

    with Workers(1) as workers:
        ours = [
            choose_centroids(torch.from_numpy(x), 40, 1, seed, workers).numpy() for seed in range(10)
        ]  # one restart each, as the peer

        best = choose_centroids(torch.from_numpy(x), 40, 10, 0, workers).numpy()

    for c in ours:
        assert (np.abs(x[:, None] - c[None]).max(axis=2) == 0).any(axis=0).all()

    mean = np.mean([inertia(x, c) for c in ours])
    peers = np.mean([inertia(x, kmeans_plusplus(x, 40, random_state=s)[0]) for s in range(10)])

    assert abs(mean / peers - 1.0) < 0.05
    assert inertia(x, best) <= mean


def test_empty_clusters_move_to_far_frames() -> None:
    """Frames of three places, one of them far and rare, with centroids that all begin in the same place."""
    rng = np.random.default_rng(0)

    places = np.array([[0.0, 0.0], [10.0, 0.0], [1000.0, 1000.0]])

    x = (places[np.repeat([0, 1, 2], [500, 480, 20])] + 0.1 * rng.standard_normal((1_000, 2))).astype(np.float32)

    with Workers(1) as workers:
        lloyd = Lloyd(x, 3, LloydOptions(), seed=0, ranks=Ranks(), device=torch.device("cpu"), workers=workers)

        lloyd._initial_centroids = lambda: torch.tensor([[0.0, 0.0], [5e4, 0.0], [0.0, 5e4]])  # type: ignore[method-assign]

        lloyd.fit()

    found = lloyd.centroids.numpy()

    np.testing.assert_allclose(found[np.argsort(found[:, 0])], places, atol=0.1)


def test_identical_frames_leave_dead_units_that_are_counted() -> None:
    config = KMeansConfig(num_clusters=4, backend="torch", n_init=2)

    report = KMeansFitter(config).fit(stream_of([np.ones((50, 3), np.float32)]), seed=0).report

    assert report.num_dead_units == 3 and report.inertia_per_frame == 0.0


def test_the_whole_corpus_in_a_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from hubert_plugin.units import clustering

    monkeypatch.setattr(clustering, "SAMPLE_FRAMES", 1_500)

    items = [speech_like(400, 8, seed=0)[i::4] for i in range(4)] + [speech_like(8_000, 8)]

    config = KMeansConfig(num_clusters=10, backend="torch", max_frames=None, n_init=3)

    result = KMeansFitter(config).fit(stream_of(items), seed=0)

    x = np.concatenate(items)

    assert result.report.num_frames == len(x) and result.report.num_corpus_frames == len(x)

    sample_only = KMeansFitter(KMeansConfig(num_clusters=10, backend="torch", max_frames=1_500, n_init=3)).fit(
        stream_of(items), seed=0
    )

    def quality(r: object) -> float:
        return inertia(x, r.model.centroids[0])  # type: ignore[attr-defined]

    assert quality(result) < quality(sample_only)


def test_bad_features_are_sentences() -> None:
    good = speech_like(300, 5)

    bad = good.copy()
    bad[17, 2] = np.nan

    for backend in ("sklearn", "torch"):
        fitter = KMeansFitter(KMeansConfig(num_clusters=4, backend=backend, n_init=1))

        with pytest.raises(UnitModelError, match=r"utterance 1 .* NaN or infinite"):
            fitter.fit(stream_of([good, bad]), seed=0)

        with pytest.raises(UnitModelError, match=r"utterance 1 .* shape \(frames, 5\).*\(300, 4\)"):
            fitter.fit(stream_of([good, good[:, :4]]), seed=0)

        with pytest.raises(UnitModelError, match=r"4 clusters needs at least as many frames, but there are 3"):
            fitter.fit(stream_of([good[:3]]), seed=0)

    with pytest.raises(UnitModelError, match=r"500 clusters needs at least"):
        EnsembleFitter(EnsembleConfig(num_clusters=[4, 500])).fit(stream_of([good]), seed=0)


def fit_units(corpus: Path, num_threads: int) -> dict[str, str]:
    """The fingerprints of units fitted to ``corpus``, from files on, with so many threads everywhere."""
    torch.set_num_threads(num_threads)

    stream = AudioFeatureStream(read_manifest(corpus, "train"), MfccSource(), num_workers=num_threads)

    return {
        backend: KMeansFitter(KMeansConfig(num_clusters=50, backend=backend, n_init=3, batch_size=2_000))
        .fit(stream, seed=0)
        .model.fingerprint
        for backend in ("sklearn", "torch")
    }


@pytest.mark.slow
def test_processes_with_other_numbers_of_threads_fit_the_same_units(tmp_path: Path) -> None:
    """A minute of audio, from files to units: equal inputs and seeds give equal bits."""
    make_corpus(tmp_path, num_train=15, num_valid=1, seconds=(3.0, 5.0), label_sets={})

    code = (
        "import json, sys; from pathlib import Path; from test_units_torch_kmeans import fit_units; "
        "print(json.dumps(fit_units(Path(sys.argv[1]), 2)))"
    )

    env = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}

    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        env={**recipe_env(), **env},
    )

    before = torch.get_num_threads()

    try:
        here = fit_units(tmp_path, 1)
    finally:
        torch.set_num_threads(before)

    output, _ = other.communicate(timeout=600)

    assert json.loads(output.splitlines()[-1]) == here
