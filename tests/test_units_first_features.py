"""Nearest centroids in C, by some of the features first: what is excluded could not have been the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_problems import assign, exact_scores, load, losses

from hubert_plugin.units import byte_kernel
from hubert_plugin.units.byte_kernel import ByteKernel
from hubert_plugin.units.kernel import NearestLibrary

MIN_DIM = byte_kernel._MIN_FIRST_DIM


@pytest.fixture(autouse=True, scope="module")
def _with_fewer_features() -> Iterator[None]:
    """It is right for fewer than pay, which take less time to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_kernel, "_MIN_FIRST_DIM", 128)

        yield


def load_with_first() -> NearestLibrary:
    library = load("haswell")

    assert library.has_first

    return library


def clusters(
    k: int, dim: int, n: int, seed: int, spread: float, offset: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids, and frames around these."""
    rng = np.random.default_rng(seed)

    scale = np.exp(spread * rng.standard_normal(dim))
    mean = offset * rng.standard_normal(dim)

    c = rng.standard_normal((k, dim)) * scale
    x = c[rng.integers(0, k, n)] + noise * rng.standard_normal((n, dim)) * scale

    return (c + mean).astype(np.float32), (x + mean).astype(np.float32)


def by_all(library: NearestLibrary, c: np.ndarray, part: float = 1.0) -> ByteKernel:
    kernel = ByteKernel(library, c, part)

    kernel._struct.num_levels = 0

    return kernel


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 150),
    st.integers(128, 800),
    st.integers(0, 700),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 30.0]),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.booleans(),
)
def test_it_finds_what_all_features_at_once_find(
    k: int, dim: int, n: int, seed: int, spread: float, offset: float, noise: float, is_fast: bool
) -> None:
    library = load_with_first()

    c, x = clusters(k, dim, n, seed, spread, offset, noise)

    part = dim**-0.5 if is_fast else 1.0

    units, expected = np.full(n, -1, np.int64), np.full(n, -1, np.int64)

    # The same units, and as many candidates on the way.
    assert ByteKernel(library, c, part)(x, units) == by_all(library, c, part)(x, expected)

    np.testing.assert_array_equal(units, expected)

    if not is_fast:
        lost, size = losses(x, c, units)

        assert (lost <= 1e-13 * size).all()


def test_features_that_come_later_can_decide() -> None:
    """Centroids hardly differ in them, but these frames are far away just there."""
    library = load_with_first()

    rng = np.random.default_rng(0)

    scale = np.where(np.arange(256) % 64 < 48, 1.0, 0.3)

    c = (rng.standard_normal((100, 256)) * scale).astype(np.float32)

    one, other = c[rng.integers(0, 100, 500)], c[rng.integers(0, 100, 500)]

    x = np.where(scale == 1.0, 0.6 * one + 0.4 * other, 10.0 * other).astype(np.float32)

    expected = exact_scores(x, c).argmin(axis=1)

    np.testing.assert_array_equal(assign(ByteKernel(library, c), x), expected)

    # So near are no two that rounding would decide.
    kernel = ByteKernel(library, c, part=256**-0.5)

    np.testing.assert_array_equal(assign(kernel, x), expected)

    # It is the bound on these features that keeps the nearest.
    for first in kernel._firsts:
        first._rest_norms[:] = 0.0

    assert (assign(kernel, x) != expected).sum() > 50


def test_frames_that_exclude_nothing_and_others_follow_each_other() -> None:
    """What costs least is tried anew after some time, and where too many centroids are left, all are scored."""
    library = load_with_first()

    c, near = clusters(200, 300, 5_000, 0, 1.0, 0.0, 0.3)

    far = np.random.default_rng(1).standard_normal((5_000, 300)).astype(np.float32) * 100.0

    for x in (np.concatenate([near, far, near[::-1]]), np.concatenate([far, near]), np.stack([near, far], 1)):
        x = np.ascontiguousarray(x.reshape(-1, 300))

        lost, size = losses(x, c, assign(ByteKernel(library, c), x))

        assert (lost <= 1e-13 * size).all()


def test_sums_in_16_bits_do_not_overflow_in_the_order_of_the_features_that_differ_most() -> None:
    library = load_with_first()

    rng = np.random.default_rng(0)

    # All the large ones together, once they are put in order; apart, as they come.
    large = np.arange(512) % 32 < 4

    c = np.where(large, rng.choice([-1.0, 1.0], (60, 1)), 1e-3 * rng.standard_normal((60, 512)))
    c *= rng.uniform(0.98, 1.0, c.shape)

    x = np.concatenate([c + rng.normal(0.0, 0.01, c.shape) for _ in range(5)]).astype(np.float32)
    c = c.astype(np.float32)

    np.testing.assert_array_equal(assign(ByteKernel(library, c), x), exact_scores(x, c).argmin(axis=1))


def test_of_equal_centroids_the_first_is_taken() -> None:
    library = load_with_first()

    few, x = clusters(7, 200, 300, 0, 1.0, 1.0, 0.5)

    order = np.random.default_rng(0).permutation(np.arange(210) % 7)

    first = {int(i): int(np.flatnonzero(order == i)[0]) for i in range(7)}

    expected = [first[int(i)] for i in exact_scores(x, few).argmin(axis=1)]

    assert assign(ByteKernel(library, few[order]), x).tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e25, 1e-42, 0.0])
def test_features_that_no_one_should_have_give_some_unit_and_leave_others_alone(value: float) -> None:
    library = load_with_first()

    c, x = clusters(20, 160, 100, 0, 0.0, 1.0, 0.5)

    before = assign(ByteKernel(library, c), x)

    x[7] = value
    x[23, 5] = value

    after = assign(ByteKernel(library, c), x)

    assert after.min() >= 0 and after.max() < 20

    others = np.delete(np.arange(100), [7, 23])

    np.testing.assert_array_equal(after[others], before[others])


def test_few_features_are_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_with_first()

    monkeypatch.setattr(byte_kernel, "_MIN_FIRST_DIM", MIN_DIM)

    for dim, has_levels in ((39, False), (256, False), (768, True), (1_280, True)):
        kernel = ByteKernel(library, clusters(50, dim, 0, 0, 0.0, 0.0, 0.0)[0])

        assert (cast(int, kernel._struct.num_levels) > 0) is has_levels
