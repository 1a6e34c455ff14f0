"""Nearest centroids by sums of 16 bits, and with a part of the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_problems import assign, exact_scores, load, losses, problem

from hubert_plugin.units import nearest
from hubert_plugin.units.byte_kernel import ByteKernel
from hubert_plugin.units.kernel import create_byte_kernel
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.word_kernel import WordKernel


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 400),
    st.integers(1, 64),
    st.integers(0, 200),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([0.01, 1.0, 1.5, 2.0, 100.0, 1e10]),
)
def test_words_find_what_exact_arithmetic_finds(
    k: int, dim: int, n: int, seed: int, spread: float, offset: float, stretch: float
) -> None:
    library = load("haswell")

    c, x = problem(k, dim, n, seed, spread, offset)

    assume(WordKernel.fits(library, c))

    # Within reach, beyond it, and both.
    x = c.mean(axis=0) + (x - c.mean(axis=0)) * np.where(np.arange(n) % 3, stretch, 1.0).astype(np.float32)[:, None]

    lost, size = losses(x, c, assign(WordKernel(library, c), x))

    assert (lost <= 1e-13 * size).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(1, 64), st.integers(0, 10_000))
def test_scores_do_not_overflow_at_the_ends_of_their_range(k: int, dim: int, seed: int) -> None:
    """Frames along the longest centroids and against them, up to the reach of scores and beyond, in small steps."""
    rng = np.random.default_rng(seed)

    c = rng.choice([-1.0, 1.0], (k, dim)) * rng.uniform(0.9, 1.0, (k, dim))
    c[0] = 1.0

    x = np.concatenate([f * c[[i % k]] for i in range(4) for f in np.linspace(-2.5, 2.5, 101)])

    # One feature is more than a byte holds, while the frame as a whole is not too long.
    large = np.zeros((101, dim))
    large[np.arange(101), rng.integers(0, dim, 101)] = np.linspace(-6.0, 6.0, 101)

    c, x = c.astype(np.float32), np.concatenate([x, large]).astype(np.float32)

    assume(WordKernel.fits(load("haswell"), c))

    lost, size = losses(x, c, assign(WordKernel(load("haswell"), c), x))

    assert (lost <= 1e-13 * size).all()


def test_frames_that_no_byte_holds_are_scored_exactly_and_others_are_not() -> None:
    c, x = problem(100, 39, 640, 0, 0.0, 0.0)

    kernel, out = WordKernel(load("haswell"), c), np.empty(640, np.int64)

    within = kernel(x, out)

    assert within < 6 * 640

    x[5] *= 1e6
    x[6] = 0.0
    x[6, 7] = 8.0  # 127 steps are 1.5 times as much as the largest feature of a centroid, which is about 4

    assert 100 + 100 <= kernel(x, out) <= within + 100 + 100

    np.testing.assert_array_equal(out, exact_scores(x, c).argmin(axis=1))


def test_features_that_repeat_each_other_do_no_harm() -> None:
    rng = np.random.default_rng(0)

    c, x = (np.tile(rng.standard_normal((m, 4)), 16).astype(np.float32) for m in (300, 4_000))

    np.testing.assert_array_equal(assign(WordKernel(load("haswell"), c), x), exact_scores(x, c).argmin(axis=1))


def test_the_bound_holds_for_what_rounding_takes_from_frames() -> None:
    """Frames of which rounding takes what it can, all of it to the good of one centroid: its opposite seems nearer."""
    half = np.random.default_rng(0).choice([-1.0, 1.0], (1, 17)).astype(np.float32)

    c = np.concatenate([half, -half])  # with a mean of 0

    kernel = WordKernel(load("haswell"), c)

    # To -1 and to 0, of 17 features.
    x = (c * np.where(np.arange(17) < 8, -0.51, 0.49) / kernel._struct.inverse).astype(np.float32)

    np.testing.assert_array_equal(exact_scores(x, c).argmin(axis=1), [0, 1])
    np.testing.assert_array_equal(assign(kernel, x), [0, 1])


def test_what_is_far_from_zero_or_has_many_features_is_not_for_words() -> None:
    library = load("haswell")

    c = problem(100, 39, 0, 0, 0.0, 0.0)[0]

    assert WordKernel.fits(library, c)
    assert isinstance(create_byte_kernel(library, c, part=0.2), WordKernel)

    # The whole bound is for finer scores.
    assert isinstance(create_byte_kernel(library, c), ByteKernel)

    far, same = c + np.float32(1e4), np.ones((5, 39), np.float32)

    for other in (far, same, problem(100, 65, 0, 0, 0.0, 0.0)[0]):
        assert not WordKernel.fits(library, other)
        assert isinstance(create_byte_kernel(library, other, part=0.2), ByteKernel)

    # Centroids are counted in 16 bits.
    assert WordKernel.fits(library, np.tile(c[:, :2], (655, 1)))
    assert not WordKernel.fits(library, np.tile(c[:, :2], (656, 1)))

    with pytest.raises(ValueError, match="not be far from zero"):
        WordKernel(library, far)


def test_what_fits_is_taken_to_the_last_digit_of_its_offset() -> None:
    library = load("haswell")

    for seed in range(40):
        c = problem(100, 39, 0, seed, 0.0, 0.0)[0]

        lowest, highest = np.float32(1.0), np.float32(1e6)

        while lowest < (middle := np.float32((lowest + highest) / 2)) < highest:
            lowest, highest = (middle, highest) if WordKernel.fits(library, c + middle) else (lowest, middle)

        for nr in range(-8, 8):
            if WordKernel.fits(library, shifted := c + lowest * np.float32(1.0 + nr * 2.0**-23)):
                WordKernel(library, shifted)


@pytest.mark.parametrize("target", ["native", "haswell"])
@pytest.mark.parametrize(("k", "dim"), [(100, 39), (500, 39), (100, 768)])
def test_a_part_of_the_bound_leaves_less_to_be_computed_again_and_few_other_labels(
    target: str, k: int, dim: int
) -> None:
    c, x = problem(k, dim, 5_000, 0, 0.0, 1.0)

    # Nearer to one centroid than to the others, some to two of them: as frames of units are.
    x = (c[np.arange(5_000) % k] * 0.52 + c[np.arange(5_000) * 7 % k] * 0.48 + 0.1 * x).astype(np.float32)

    library = load(target)

    out = np.empty(5_000, np.int64)

    all_again = create_byte_kernel(library, c)(x, out)

    np.testing.assert_array_equal(out, exact_scores(x, c).argmin(axis=1))

    kernel = create_byte_kernel(library, c, part=1.0 / dim**0.5)

    assert isinstance(kernel, WordKernel) == (dim <= library.word_dim)
    assert kernel(x, out) < 0.5 * all_again
    assert (out == exact_scores(x, c).argmin(axis=1)).mean() > 0.995


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fast_is_a_precision(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")

    c, x = problem(500, 39, 3_000, 0, 0.0, 1.0)

    fast = NearestCentroid(c, device, "fast")

    units = fast(torch.from_numpy(x).to(device)).cpu().numpy()

    assert (units == exact_scores(x, c).argmin(axis=1)).mean() > 0.995

    # As everywhere, few products are left to float32.
    assert device == "cuda" or NearestCentroid(c[:20], device, "fast").precision == "fp32"


def test_fast_is_as_auto_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "load_nearest_library", lambda: None)

    c, x = problem(500, 39, 3_000, 0, 0.0, 1.0)

    fast, auto = (NearestCentroid(c, precision=p) for p in ("fast", "auto"))  # type: ignore[arg-type]

    assert fast.precision == auto.precision

    np.testing.assert_array_equal(fast(torch.from_numpy(x)).numpy(), auto(torch.from_numpy(x)).numpy())
