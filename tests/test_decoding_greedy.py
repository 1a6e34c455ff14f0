"""Greedy decoding, and the words that it makes with their times and confidences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden import FAIRSEQ, Golden
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.decoding.decoder import GreedyDecoder
from hubert_plugin.decoding.greedy import best_paths, greedy, symbol_spans
from hubert_plugin.errors import DecodingError
from hubert_plugin.text.vocabulary import CtcVocabulary

VOCABULARY = CtcVocabulary(("<s>", "<pad>", "</s>", "<unk>", "|", "A", "B"))

PIECES = CtcVocabulary(("<blank>", "\u2581A", "B", "\u2581"))


def scores_of(path: list[int], size: int, certain: float = 0.9) -> torch.Tensor:
    """Logits whose best symbols are ``path``, each with the probability ``certain``."""
    probabilities = torch.full((len(path), size), (1 - certain) / (size - 1))

    for t, symbol in enumerate(path):
        probabilities[t, symbol] = certain

    # A shift for every frame: decoders have to normalise.
    return probabilities.log() + torch.arange(len(path)).unsqueeze(1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_symbols_are_those_of_consecutive_runs(num_frames: int, num_rows: int, seed: int, blank: int) -> None:
    logits = torch.randn(num_rows, num_frames, 5, generator=torch.Generator().manual_seed(seed))

    expected = [torch.unique_consecutive(row.argmax(-1)).tolist() for row in logits] if num_frames else [[]] * num_rows

    assert greedy(logits, None, blank) == [[s for s in row if s != blank] for row in expected]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=12))
def test_spans_rebuild_the_path(path: list[int]) -> None:
    rebuilt = [0] * len(path)

    for start, stop in symbol_spans(path):
        assert stop > start

        rebuilt[start:stop] = [path[start]] * (stop - start)

    assert rebuilt == path


def test_padded_frames_are_never_text() -> None:
    logits = torch.stack([scores_of([5, 0, 6, 6], 7), scores_of([5, 6, 6, 6], 7)])

    assert greedy(logits, [4, 1]) == [[5, 6], [5]]
    assert greedy(logits, [0, 4]) == [[], [5, 6]]


@pytest.mark.parametrize("lengths", [[4], [5, 1], [-1, 2]])
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="`lengths`"):
        best_paths(torch.zeros(2, 4, 7), lengths)


def test_golden_logits_give_the_words_of_their_best_symbols() -> None:
    info = Golden.__new__(Golden)
    info.arrays = np.load(FAIRSEQ / "tiny_ctc.npz")

    names = [n for n in info.arrays.files if "logits" in n and info.arrays[n].ndim == 3]

    assert names

    for name in names:
        logits = torch.from_numpy(info.arrays[name])

        found = greedy(logits)

        for row, symbols in zip(logits, found, strict=True):
            assert symbols == [s for s in torch.unique_consecutive(row.argmax(-1)).tolist() if s != 0]


def test_words_have_times_and_confidences() -> None:
    #                      A  A  B     |  blank B  |
    logits = scores_of([0, 5, 5, 6, 0, 4, 0, 0, 6, 4], 7)

    (hypothesis,) = GreedyDecoder(VOCABULARY).decode(logits)

    assert hypothesis.text == "AB B"

    first, second = hypothesis.words

    assert (first.start, first.end) == pytest.approx((0.02, 0.08))
    assert (second.start, second.end) == pytest.approx((0.16, 0.18))
    assert first.confidence == pytest.approx(0.9, abs=1e-5)
    assert hypothesis.score == pytest.approx(10 * math.log(0.9), abs=1e-4)


def test_confidence_is_the_geometric_mean_of_each_symbols_best_frame() -> None:
    probabilities = torch.tensor([[0.1, 0, 0, 0, 0, 0.9, 0], [0.4, 0, 0, 0, 0, 0.6, 0], [0.7, 0, 0, 0, 0, 0, 0.3]])

    # The last frame is blank: `B` is found in the fourth.
    logits = torch.cat([probabilities, torch.tensor([[0.5, 0, 0, 0, 0, 0, 0.5 + 1e-6]])]).add(1e-12).log()

    (hypothesis,) = GreedyDecoder(VOCABULARY).decode(logits)

    assert hypothesis.text == "AB"
    assert hypothesis.words[0].confidence == pytest.approx(math.sqrt(0.9 * 0.5), rel=1e-4)
    assert hypothesis.confidence == hypothesis.words[0].confidence


def test_specials_are_never_text() -> None:
    assert GreedyDecoder(VOCABULARY).decode(scores_of([5, 1, 2, 3, 6], 7))[0].text == "AB"


def test_pieces_begin_words_with_their_mark() -> None:
    assert GreedyDecoder(PIECES).decode(scores_of([1, 2, 0, 3, 2, 1], 4))[0].text == "AB B A"


@pytest.mark.parametrize("path", [[], [0, 0], [4, 4], [1, 2]])
def test_nothing_recognised_is_an_empty_hypothesis(path: list[int]) -> None:
    (hypothesis,) = GreedyDecoder(VOCABULARY).decode(scores_of(path, 7) if path else torch.zeros(0, 7))

    assert (hypothesis.text, hypothesis.words, hypothesis.confidence) == ("", (), 0.0)


def test_scores_of_another_width_are_refused() -> None:
    with pytest.raises(DecodingError, match=r"\(frames, 7\).*\(3, 8\).*vocabulary"):
        GreedyDecoder(VOCABULARY).decode(torch.zeros(3, 8))
