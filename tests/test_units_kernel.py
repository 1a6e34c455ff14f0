"""Nearest centroids in C: exactness whatever the features."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_problems import KERNELS, Kernel, assign, exact_scores, load, load_for, losses, problem

from hubert_plugin.units.byte_kernel import ByteKernel
from hubert_plugin.units.kernel import FloatKernel
from hubert_plugin.units.nearest import NearestCentroid
from hubert_plugin.units.word_kernel import WordKernel

PROBLEMS = (
    st.integers(1, 150),
    st.integers(1, 100),
    st.integers(0, 120),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 1.0, 30.0]),
)


@pytest.mark.parametrize("target", ["native", "haswell"])
@settings(max_examples=100, deadline=None)
@given(*PROBLEMS)
def test_bytes_find_what_exact_arithmetic_finds(
    target: str, k: int, dim: int, n: int, seed: int, spread: float, offset: float
) -> None:
    library = load(target)

    c, x = problem(k, dim, n, seed, spread, offset)

    lost, size = losses(x, c, assign(ByteKernel(library, c), x))

    # Not "nearly": only where float64 itself cannot tell two apart may they be mistaken for each other.
    assert (lost <= 1e-13 * size).all()


@pytest.mark.parametrize("target", ["native", "haswell"])
@settings(max_examples=60, deadline=None)
@given(*PROBLEMS)
def test_float32_finds_the_nearest_but_for_its_rounding(
    target: str, k: int, dim: int, n: int, seed: int, spread: float, offset: float
) -> None:
    library = load(target)

    c, x = problem(k, dim, n, seed, spread, offset)

    lost, size = losses(x, c, assign(FloatKernel(library, c), x))

    # Two sums of D products, each off by half a digit of the largest.
    assert (lost <= 2.0**-23 * (dim + 2) * size).all()


def test_older_processors_have_fewer_lanes_and_sum_bytes_in_16_bits() -> None:
    library = load("haswell")

    assert library.lanes == 8
    assert library.together > 1


@pytest.mark.parametrize(("cls", "target"), [(ByteKernel, "native"), (ByteKernel, "haswell"), (WordKernel, "haswell")])
@pytest.mark.parametrize("num_alike", [16, 32, 256, 1_024])
def test_candidates_are_found_wherever_they_stand_among_many(
    cls: type[ByteKernel | WordKernel], target: str, num_alike: int
) -> None:
    """Those of a frame are kept in words of 32 or 16 bits, and the words that hold some in a word of as many, too."""
    rng = np.random.default_rng(0)

    # Bytes cannot tell apart what is a multiple of `num_alike` away.
    c = rng.standard_normal((num_alike, 16)).astype(np.float32)[np.arange(2_100) % num_alike]
    c += 1e-3 * rng.standard_normal(c.shape).astype(np.float32)

    # The first of two that are the same, whose words are met in the other order.
    c[1_030] = c[40]

    expected = np.arange(len(c))
    expected[1_030] = 40

    k = cls(load(target), c)

    out = np.empty(len(c), np.int64)

    assert k(c, out) >= len(c) * (len(c) // num_alike)

    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("target", ["native", "haswell"])
@pytest.mark.parametrize("dim", [4_097, 9_000, 65_536])
def test_sums_over_many_features_are_exact(target: str, dim: int) -> None:
    """Integer sums grow to 2^30 (2^31 with VNNI), and float32's lose digits that the bound has to make up for."""
    c, x = problem(40, dim, 70, dim, 0.0, 3.0)

    # Between two centroids, a little nearer to one.
    share = np.linspace(0.4999, 0.5001, len(x), dtype=np.float32)[:, None]

    x = c[np.arange(len(x)) % 40] * share + c[np.arange(1, len(x) + 1) % 40] * (1 - share)

    lost, size = losses(x, c, assign(ByteKernel(load(target), c), x))

    assert (lost <= 1e-13 * size).all()

    # Nothing but the largest bytes, and in the first pair all of one sign: sums as large as they can be.
    half = np.concatenate([np.ones((1, dim)), np.random.default_rng(dim).choice([-1.0, 1.0], (9, dim))])

    c = np.concatenate([half, -half]).astype(np.float32)

    np.testing.assert_array_equal(assign(ByteKernel(load(target), c), 50.0 * c), np.arange(len(c)))


def test_features_that_repeat_each_other_do_no_harm() -> None:
    """Their rounding errors do not cancel each other, so that the bound has to hold for the worst."""
    library = load()

    rng = np.random.default_rng(0)

    c, x = (np.tile(rng.standard_normal((m, 4)), 192).astype(np.float32) for m in (300, 4_000))

    # What rounding would decide: more than a few.
    step = np.abs(c).max() / 127

    rounded = np.round(x / step) @ np.round(c / step).T * step**2

    assert ((0.5 * np.square(c).sum(axis=1) - rounded).argmin(axis=1) != exact_scores(x, c).argmin(axis=1)).sum() > 20

    np.testing.assert_array_equal(assign(ByteKernel(library, c), x), exact_scores(x, c).argmin(axis=1))


def test_the_bound_holds_for_what_rounding_takes_from_frames() -> None:
    """Centroids that bytes hold exactly, and frames that lie half a step beside what they hold."""
    library = load()

    rng = np.random.default_rng(0)

    for _ in range(20):
        half = rng.choice([-127.0, 127.0], (50, 17)).astype(np.float32)

        c = np.concatenate([half, -half])  # with a mean of 0

        x = (
            rng.integers(-60, 60, (500, 17)) + rng.choice([-1, 1], (500, 17)) * rng.uniform(0.4, 0.5, (500, 17))
        ).astype(np.float32)

        x[:, 0] = 127.0

        scores = exact_scores(x, c)

        lost = np.take_along_axis(scores, assign(ByteKernel(library, c), x)[:, None], axis=1)[:, 0] - scores.min(axis=1)

        assert (lost <= 1e-9).all()


@pytest.mark.parametrize("offset", [2.0**27, 2.0**30])
def test_offsets_that_frames_and_centroids_share_take_no_digits(offset: float) -> None:
    library = load()

    rng = np.random.default_rng(0)

    c, x = (rng.integers(-50, 51, (m, 40)).astype(np.float32) for m in (100, 400))

    expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2)

    for values in (c, x):
        values[:, 0] = offset

    expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2)

    units = assign(ByteKernel(library, c), x)

    np.testing.assert_array_equal(units, expected.argmin(axis=1))


@pytest.mark.parametrize("target", ["native", "haswell"])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("dim", [8, 39, 100])
def test_sums_in_16_bits_do_not_overflow(target: str, share: float, dim: int) -> None:
    """Where most features are as large as they can be, and of one sign, in frames as in centroids."""
    library = load(target)

    rng = np.random.default_rng(0)

    signs = rng.choice([-1.0, 1.0], (60, 1))

    c = np.where(rng.random((60, dim)) < share, signs, -signs) * rng.uniform(0.98, 1.0, (60, dim))

    x = np.concatenate([c + rng.normal(0.0, 0.01, c.shape) for _ in range(5)])

    c, x = c.astype(np.float32), x.astype(np.float32)

    np.testing.assert_array_equal(assign(ByteKernel(library, c), x), exact_scores(x, c).argmin(axis=1))


@pytest.mark.parametrize("scale", [1e-25, 1e-21, 1e-15, 1e-9, 1e9, 1e14])
def test_scales_do_not_matter(scale: float) -> None:
    c, x = problem(100, 39, 500, 0, 0.0, 0.0)

    c, x = c * np.float32(scale), x * np.float32(scale)

    # In float32, as far as its squares reach.
    if scale > 1e-20:
        units = NearestCentroid(c, precision="int8" if scale > 1e-12 else "auto")(torch.from_numpy(x)).numpy()

        np.testing.assert_array_equal(units, exact_scores(x, c).argmin(axis=1))
    else:
        load()

        assert NearestCentroid(c, precision="int8").precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_frames_of_other_types_are_read_as_what_they_are_and_of_other_shapes_refused(precision: str) -> None:
    load()

    c, x = problem(100, 64, 300, 0, 0.0, 0.0)

    nearest_centroid = NearestCentroid(c, precision=precision)  # type: ignore[arg-type]

    expected = exact_scores(x, c).argmin(axis=1)

    for frames in (torch.from_numpy(x).double(), torch.from_numpy(x).requires_grad_(), torch.from_numpy(x).T.clone().T):
        np.testing.assert_array_equal(nearest_centroid(frames).numpy(), expected)

    np.testing.assert_array_equal(copy.deepcopy(nearest_centroid)(torch.from_numpy(x)).numpy(), expected)

    for shape in ((5, 32), (5, 65), (5, 640), (64,)):
        with pytest.raises(ValueError, match=r"must have the shape \(frames, 64\), but has"):
            nearest_centroid(torch.zeros(shape))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_centroids_may_be_changed_later(precision: str) -> None:
    c, x = problem(100, 64, 300, 0, 0.0, 0.0)

    expected = exact_scores(x, c).argmin(axis=1)

    nearest_centroid = NearestCentroid(c, precision=precision)  # type: ignore[arg-type]

    c[:] = 0.0

    for these in (nearest_centroid, copy.deepcopy(nearest_centroid)):
        np.testing.assert_array_equal(these(torch.from_numpy(x)).numpy(), expected)


@pytest.mark.parametrize("cls", KERNELS)
def test_of_equal_centroids_the_first_is_taken(cls: Kernel) -> None:
    library = load_for(cls)

    rng = np.random.default_rng(0)

    few = rng.standard_normal((7, 40), np.float32)

    # Each again and again, in all lanes and panels.
    c = few[rng.permutation(np.arange(210) % 7)]

    x = rng.standard_normal((100, 40), np.float32)

    units = assign(cls(library, c), x)

    first = {row.tobytes(): int(np.flatnonzero((c == row).all(axis=1))[0]) for row in few}

    assert [first[c[u].tobytes()] for u in units] == units.tolist()
    assert len(set(units.tolist())) > 3


@pytest.mark.parametrize("cls", KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e25, 1e-42, 0.0])
def test_features_that_no_one_should_have_give_some_unit_and_leave_others_alone(cls: Kernel, value: float) -> None:
    library = load_for(cls)

    c, x = problem(20, 40, 50, 0, 0.0, 1.0)

    before = assign(cls(library, c), x)

    x[7] = value
    x[23, 5] = value

    after = assign(cls(library, c), x)

    assert after.min() >= 0 and after.max() < 20

    # Even where no score is below another, only those of centroids that there are count: 20, of 21 or 24 with room.
    if cls is not FloatKernel:
        assert 0 <= cls(library, c)(np.full((50, 40), value, np.float32), np.empty(50, np.int64)) <= 20 * 50

    others = np.delete(np.arange(50), [7, 23])

    np.testing.assert_array_equal(after[others], before[others])


@pytest.mark.parametrize("cls", KERNELS)
def test_a_frame_has_its_unit_wherever_it_stands(cls: Kernel) -> None:
    k = cls(load_for(cls), problem(130, 39, 0, 0, 1.0, 1.0)[0])

    x = problem(0, 39, 1_000, 0, 1.0, 1.0)[1]

    whole = assign(k, x)

    for size in (1, 5, 6, 7, 15, 16, 17, 47, 48, 49, 63, 64, 65, 129, 333):
        np.testing.assert_array_equal(
            np.concatenate([assign(k, x[i : i + size]) for i in range(0, len(x), size)]), whole
        )

    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(lambda _: assign(k, x), range(8)):
            np.testing.assert_array_equal(part, whole)


def test_few_products_are_left_to_float32() -> None:
    library = load()

    assert library.bytes_pay(500, 39) and library.bytes_pay(100, 768)
    assert not library.bytes_pay(25, 39) and not library.bytes_pay(10, 768)

    c = torch.randn(500, 39)

    assert NearestCentroid(c).precision == "int8"
    assert NearestCentroid(c, precision="fp32").precision == "fp32"
    assert NearestCentroid(c[:25]).precision == "fp32"
