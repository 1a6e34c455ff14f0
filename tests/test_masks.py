"""Mask sampling against statistics of real fairseq masks, and its properties."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from golden import FAIRSEQ
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data.masks import MaskConfig, sample_mask, trim_to_same_count, utterance_rng

STATISTICS = json.loads((FAIRSEQ / "mask_statistics.json").read_text())

SETTINGS = {"p80_l10": MaskConfig(), "p65_l10": MaskConfig(prob=0.65), "p50_l5": MaskConfig(prob=0.5, span_len=5)}


def _run_lengths(mask: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))

    return (edges[1::2] - edges[::2]).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("padding", ["nopad", "pad"])
@pytest.mark.parametrize("same", [False, True])
def test_statistics_equal_those_of_fairseq(name: str, padding: str, same: bool) -> None:
    expected = STATISTICS[f"{name}.static.overlap.main.same{int(same)}.{padding}"]

    num_rows, width = expected["shape"]

    lengths = expected["lengths"] or [width] * num_rows

    kwargs = expected["kwargs"]

    config = SETTINGS[name]

    config.min_spans = kwargs["min_masks"]

    assert (config.prob, config.span_len) == (kwargs["mask_prob"], kwargs["mask_length"])

    rng = np.random.default_rng(0)

    shares, run_counts, runs = [], [], []

    num_batches = math.ceil(6_400 / len(lengths))

    for _ in range(num_batches):
        masks = [sample_mask(n, config, rng) for n in lengths]

        if same:
            masks = trim_to_same_count(masks, rng)

            assert len({int(m.sum()) for m in masks}) == 1

        for mask in masks:
            shares.append(mask.mean())
            lengths_of_runs = _run_lengths(mask)
            run_counts.append(len(lengths_of_runs))
            runs += lengths_of_runs

    # Rows of a batch are correlated where they are trimmed to one count.
    num_independent = num_batches if same else len(shares)

    golden_independent = expected["rows"] / (len(lengths) if same else 1)

    for values, key in ((shares, "masked_fraction"), (run_counts, "number_of_runs")):
        golden = expected[key]

        spread = golden["std"] * math.sqrt(1 / num_independent + 1 / golden_independent)

        assert abs(np.mean(values) - golden["mean"]) < 4.5 * spread, key

    ours = np.bincount(runs, minlength=60)[1:40] / len(runs)

    golden_runs = np.array([*expected["run_length_fraction"], *[0.0] * 60])[1:40]

    assert np.abs(ours - golden_runs).max() < 0.012


PROFILES = [
    key
    for key, value in STATISTICS.items()
    if ".static.overlap.main.same0" in key and value["mask_probability_by_position"]
]


@pytest.mark.parametrize("key", PROFILES)
def test_position_profile_equals_that_of_fairseq(key: str) -> None:
    expected = STATISTICS[key]

    rng = np.random.default_rng(1)

    width = expected["shape"][1]

    ours = np.mean([sample_mask(width, SETTINGS[key.split(".")[0]], rng) for _ in range(10_000)], axis=0)

    # Both are means of Bernoulli draws: 5 standard deviations of their difference.
    tolerance = 5 * math.sqrt(0.25 / 10_000 + 0.25 / expected["rows"])

    assert np.abs(ours - np.asarray(expected["mask_probability_by_position"])).max() < tolerance

    assert ours[-1] == 0.0  # the last frame is never masked (trap T14)


def test_there_are_golden_profiles() -> None:
    assert PROFILES


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 400),
    st.floats(0.0, 1.0),
    st.integers(1, 30),
    st.integers(0, 5),
    st.integers(0, 2**32),
)
def test_masks_of_any_length_keep_a_frame(num_frames: int, prob: float, span: int, spans: int, seed: int) -> None:
    config = MaskConfig(prob=prob, span_len=span, min_spans=spans)

    mask = sample_mask(num_frames, config, np.random.default_rng(seed))

    assert mask.shape == (num_frames,)
    assert not mask.all()

    if num_frames > 1 and spans > 0:
        assert mask.any()


@pytest.mark.parametrize("num_frames", range(1, 14))
def test_short_utterances_are_masked_without_error(num_frames: int) -> None:
    """fairseq raises for a third or more of these (golden `_very_short_inputs_p80_l10_min2`)."""
    rng = np.random.default_rng(0)

    for _ in range(200):
        assert not sample_mask(num_frames, MaskConfig(), rng).all()


def test_trimming_only_unmasks() -> None:
    rng = np.random.default_rng(0)

    masks = [sample_mask(n, MaskConfig(), rng) for n in (100, 300, 50)]

    for before, after in zip(masks, trim_to_same_count(masks, rng), strict=True):
        assert not (after & ~before).any()


def test_generators_depend_on_every_argument_and_nothing_else() -> None:
    def draw(seed: int = 1, epoch: int = 2, utterance: str = "a/b.wav", stream: int = 0) -> float:
        return float(utterance_rng(seed, epoch, utterance, stream).random())

    assert draw() == draw()

    assert len({draw(), draw(seed=2), draw(epoch=3), draw(utterance="a/c.wav"), draw(stream=1)}) == 5
