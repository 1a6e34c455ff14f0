"""Canonical correlation on constructed views with known answers, and against other ways of computing it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA

from hubert_plugin import frames
from hubert_plugin.analysis.alignments import Alignment
from hubert_plugin.analysis.cca import CcaProblem, cca_with_labels, pwcca
from hubert_plugin.analysis.segments import SegmentCollector
from hubert_plugin.errors import LabelError


def qr_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Björck and Golub: the cosines of the angles between the views' column spaces."""
    bases = []

    for view in (x, y):
        u, s, _ = np.linalg.svd(view - view.mean(axis=0), full_matrices=False)

        bases.append(u[:, s > 1e-6 * s.max()])

    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


def oracle_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Morcos et al.: correlations weighted by what their directions hold of the smaller view, from bases alone."""
    centered = [view - view.mean(axis=0) for view in (x, y)]

    bases = [np.linalg.svd(c, full_matrices=False) for c in centered]

    ranks = [int((s > 1e-6 * s.max()).sum()) for _, s, _ in bases]

    u_x, u_y = (u[:, :r] for (u, _, _), r in zip(bases, ranks, strict=True))

    left, rho, right = np.linalg.svd(u_x.T @ u_y, full_matrices=False)

    if ranks[0] <= ranks[1]:
        h, view = u_x @ left, centered[0]
    else:
        h, view = u_y @ right.T, centered[1]

    weights = [sum(abs(float(h[:, i] @ view[:, j])) for j in range(view.shape[1])) for i in range(len(rho))]

    return float(np.dot(weights, rho) / np.sum(weights))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_other_ways_of_computing_it(seed: int) -> None:
    rng = np.random.default_rng(seed)

    d, c = (int(n) for n in rng.integers(2, 7, 2))

    shared = rng.standard_normal((60, 2))

    x = shared @ rng.standard_normal((2, d)) + rng.standard_normal((60, d))
    y = shared @ rng.standard_normal((2, c)) + rng.standard_normal((60, c))

    if seed % 2:
        y = np.eye(c)[rng.permutation(np.arange(60) % c)]  # one-hot: one dimension less than columns

    rho = qr_correlations(x, y)

    directions = CcaProblem(x, y).solve()

    assert directions.correlations(x, y)[: len(rho)] == pytest.approx(rho, abs=1e-7)
    assert pwcca(x, y) == pytest.approx(oracle_pwcca(x, y), abs=1e-6)


def test_equals_scikit_learn_on_segments_that_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(0)

    shared = rng.standard_normal((400, 2))

    x = shared @ rng.standard_normal((2, 4)) + 0.5 * rng.standard_normal((400, 4))
    y = shared @ rng.standard_normal((2, 3)) + 0.5 * rng.standard_normal((400, 3))

    cca = CCA(n_components=2, scale=False, max_iter=10_000, tol=1e-12).fit(x[:300], y[:300])

    u, v = cca.transform(x[300:], y[300:])

    expected = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(2)]

    directions = CcaProblem(x[:300], y[:300]).solve()

    assert directions.correlations(x[300:], y[300:])[:2] == pytest.approx(expected, abs=1e-5)


def test_identical_and_linearly_transformed_views_correlate_fully() -> None:
    rng = np.random.default_rng(0)

    x = rng.standard_normal((200, 6))

    rotation, _ = np.linalg.qr(rng.standard_normal((6, 6)))

    for y in (x, x @ rotation, 3 * x @ rng.standard_normal((6, 6)) + 7, np.hstack([x, rng.standard_normal((200, 3))])):
        assert pwcca(x, y) == pytest.approx(1.0, abs=1e-9)
        assert pwcca(y, x) == pytest.approx(1.0, abs=1e-9)


def test_independent_views_hardly_correlate() -> None:
    rng = np.random.default_rng(0)

    x, y = rng.standard_normal((20_000, 5)), rng.standard_normal((20_000, 4))

    assert pwcca(x, y) < 0.03

    directions = CcaProblem(x[:10_000], y[:10_000]).solve()

    assert abs(directions.score(x[10_000:], y[10_000:])) < 0.03


def test_known_correlations_are_found_with_their_weights() -> None:
    rng = np.random.default_rng(0)

    rho, scale = np.array([0.9, 0.5, 0.1]), np.array([1.0, 4.0, 2.0])

    z = rng.standard_normal((200_000, 3))

    y = rho * z + np.sqrt(1 - rho**2) * rng.standard_normal((200_000, 3))

    # The columns of x are the directions, so their weights are the columns' scales.
    assert CcaProblem(scale * z, y).solve().correlations(scale * z, y) == pytest.approx(rho, abs=0.01)
    assert pwcca(scale * z, y) == pytest.approx(float(rho @ scale / scale.sum()), abs=0.01)


def test_labels_that_the_features_tell_correlate_fully_and_shuffled_ones_not() -> None:
    rng = np.random.default_rng(0)

    labels = [str(n) for n in rng.integers(0, 5, 600)]

    centers = rng.standard_normal((5, 12))

    features = np.stack([centers[int(n)] for n in labels]) + 0.01 * rng.standard_normal((600, 12))

    score = cca_with_labels(features, labels, num_trials=5)

    assert score.score > 0.99
    assert (score.num_segments, score.num_labels) == (600, 5)

    assert abs(cca_with_labels(features, rng.permutation(labels).tolist(), num_trials=5).score) < 0.15

    assert cca_with_labels(features, labels, seed=3) == cca_with_labels(features, labels, seed=3)


def test_too_little_is_told() -> None:
    with pytest.raises(LabelError, match="at least 10 segments of two labels, but there are 20 segments of 1"):
        cca_with_labels(np.zeros((20, 3)), ["a"] * 20)

    with pytest.raises(LabelError, match="views that vary"):
        cca_with_labels(np.zeros((20, 3)), ["a", "b"] * 10)

    with pytest.raises(LabelError, match="two or more segments in both views, but has 3 and 4"):
        CcaProblem(np.zeros((3, 2)), np.zeros((4, 2)))


def test_segments_have_the_mean_of_the_frames_whose_centres_are_inside() -> None:
    rng = np.random.default_rng(0)

    segments: dict[str, list[tuple[float, float, str]]] = {}

    features = {}

    for idx in range(6):
        bounds = np.sort(rng.choice(np.arange(1, 4000), 9, replace=False)) / 2000

        names = ["SIL", *rng.permutation(["a", "b"] * 3).tolist(), "SIL", "rare"]

        segments[f"u{idx}"] = [
            (float(s), float(e), n) for s, e, n in zip([0.0, *bounds[:-1]], bounds, names, strict=True)
        ]

        features[f"u{idx}"] = rng.standard_normal((98, 4)).astype(np.float32)

    collector = SegmentCollector(Alignment(Path("x"), segments), list(segments), exclude=["SIL"])

    expected, labels = [], []

    for id_, f in features.items():
        collector.add(id_, {"L1": f, "L2": 2 * f})

        for start, end, name in segments[id_]:
            inside = [t for t in range(98) if start <= frames.frame_center_seconds(t) < end]

            if inside and name in "ab":
                expected.append(f[inside].mean(axis=0))

                labels.append(name)

    assert collector.spaces == ["L1", "L2"]

    assert collector.score("L1") == cca_with_labels(np.stack(expected), labels)

    with pytest.raises(LabelError, match=r"two names that occur 10 times, but there are 0 of 4 "):
        SegmentCollector(Alignment(Path("x"), segments), ["u0"])
