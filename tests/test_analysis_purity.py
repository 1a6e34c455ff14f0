"""Purity and PNMI against brute force and scikit-learn."""

from __future__ import annotations

from math import isnan, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from hubert_plugin.analysis.purity import unit_quality
from hubert_plugin.errors import LabelError

frames = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 6)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.lists(frames, min_size=1, max_size=4))
def test_equals_brute_force_and_scikit_learn(utterances: list[list[tuple[str, int]]]) -> None:
    quality = unit_quality(([y for y, _ in u], [z for _, z in u]) for u in utterances)

    pairs = [pair for u in utterances for pair in u]

    total = len(pairs)

    ys, zs = sorted({y for y, _ in pairs}), sorted({z for _, z in pairs})

    p = {(y, z): pairs.count((y, z)) / total for y in ys for z in zs}

    py = {y: sum(p[y, z] for z in zs) for y in ys}

    entropy = -sum(q * log2(q) for q in py.values())

    assert quality.num_frames == total
    assert quality.phone_purity == pytest.approx(sum(max(p[y, z] for y in ys) for z in zs))
    assert quality.cluster_purity == pytest.approx(sum(max(p[y, z] for z in zs) for y in ys))

    if len(ys) == 1:
        assert isnan(quality.pnmi)
    else:
        information = mutual_info_score([y for y, _ in pairs], [z for _, z in pairs]) / np.log(2)

        assert quality.pnmi == pytest.approx(information / entropy, abs=1e-9)


def test_hand_computed_table() -> None:
    # Counts: (a, 0) 2, (a, 1) 1, (b, 1) 1.
    quality = unit_quality([(["a", "a", "a", "b"], [0, 0, 1, 1])])

    information = 2 / 4 * log2(4 * 2 / (3 * 2)) + 1 / 4 * log2(4 / (3 * 2)) + 1 / 4 * log2(4 / (1 * 2))
    entropy = -(3 / 4 * log2(3 / 4) + 1 / 4 * log2(1 / 4))

    assert quality.phone_purity == 3 / 4
    assert quality.cluster_purity == 3 / 4
    assert quality.pnmi == pytest.approx(information / entropy)
    assert quality.unit_entropy_bits == pytest.approx(1.0)
    assert (quality.num_phones, quality.num_units) == (2, 2)


def test_perfect_and_useless_units() -> None:
    assert unit_quality([("abcabc", [3, 1, 2, 3, 1, 2])]).pnmi == pytest.approx(1.0)
    assert unit_quality([("abab", [0, 0, 1, 1])]).pnmi == 0.0


def test_frames_without_phone_and_one_frame_of_difference_are_left_out_and_counted() -> None:
    quality = unit_quality([(["a", None, "b"], [0, 1, 1, 1])])

    assert (quality.num_frames, quality.num_frames_without_phone, quality.num_frames_cut) == (2, 1, 1)


def test_bad_pairs_are_named() -> None:
    with pytest.raises(LabelError, match="utterance 1 has 3 phones and 6 units"):
        unit_quality([("a", [0]), ("abc", [0] * 6)])

    with pytest.raises(LabelError, match="no frame"):
        unit_quality([([None], [0])])

    with pytest.raises(LabelError, match="must not be negative"):
        unit_quality([("a", [-1])])
