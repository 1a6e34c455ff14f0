"""The edit distance, and the alignments behind it."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.decoding.distance import EditCounts, align, edit_counts

TEXTS = st.text("abc", max_size=9)


def brute_force(reference: str, hypothesis: str) -> tuple[int, int]:
    """The fewest edits, and the fewest substitutions among alignments of so many: every alignment is tried."""

    @cache
    def best(i: int, j: int) -> tuple[int, int]:
        if i == 0 and j == 0:
            return 0, 0

        options = []

        if i and j:
            edits, substitutions = best(i - 1, j - 1)

            is_wrong = reference[i - 1] != hypothesis[j - 1]

            options.append((edits + is_wrong, substitutions + is_wrong))

        if i:
            options.append((best(i - 1, j)[0] + 1, best(i - 1, j)[1]))

        if j:
            options.append((best(i, j - 1)[0] + 1, best(i, j - 1)[1]))

        return min(options)

    return best(len(reference), len(hypothesis))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", (0, 0, 0, 3)),
        ("the cat sat", "the hat sat", (1, 0, 0, 3)),
        ("the cat sat", "the cat sat down", (0, 1, 0, 3)),
        ("the cat sat", "cat sat", (0, 0, 1, 3)),
        ("the cat sat", "", (0, 0, 3, 3)),
        ("", "a cat", (0, 2, 0, 0)),
        ("", "", (0, 0, 0, 0)),
        # Two substitutions, or a deletion and an insertion around the word that is right: the latter counts.
        ("a b", "b c", (0, 1, 1, 2)),
        ("a a a b", "b a a a", (0, 1, 1, 4)),
    ],
)
def test_counts_are_those_that_a_person_counts(
    reference: str, hypothesis: str, expected: tuple[int, int, int, int]
) -> None:
    counts = edit_counts(reference.split(), hypothesis.split())

    assert (counts.substitutions, counts.insertions, counts.deletions, counts.reference_length) == expected


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_counts_and_alignment_are_those_of_brute_force(reference: str, hypothesis: str) -> None:
    counts = edit_counts(reference, hypothesis)

    assert (counts.edits, counts.substitutions) == brute_force(reference, hypothesis)
    assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)
    assert counts.reference_length == len(reference)

    pairs = align(reference, hypothesis)

    assert [i for i, _ in pairs if i is not None] == list(range(len(reference)))
    assert [j for _, j in pairs if j is not None] == list(range(len(hypothesis)))
    assert sum(i is None for i, _ in pairs) == counts.insertions
    assert sum(j is None for _, j in pairs) == counts.deletions

    wrong = sum(i is not None and j is not None and reference[i] != hypothesis[j] for i, j in pairs)

    assert wrong == counts.substitutions


def random_words(rng: random.Random, num_words: int) -> list[str]:
    return [rng.choice(["a", "b", "cat", "dog", "ü"]) for _ in range(rng.randint(1, num_words))]


@pytest.mark.parametrize("module", ["editdistance", "jiwer"])
def test_edits_are_those_of_other_libraries(module: str) -> None:
    other = pytest.importorskip(module)

    rng = random.Random(0)

    for _ in range(200):
        ref, hyp = random_words(rng, 60), random_words(rng, 60)

        counts = edit_counts(ref, hyp)

        if module == "editdistance":
            assert counts.edits == other.eval(ref, hyp)
            assert edit_counts(" ".join(ref), " ".join(hyp)).edits == other.eval(" ".join(ref), " ".join(hyp))
        else:
            assert counts.rate == pytest.approx(other.wer(" ".join(ref), " ".join(hyp)))
            assert edit_counts(" ".join(ref), " ".join(hyp)).rate == pytest.approx(
                other.cer(" ".join(ref), " ".join(hyp))
            )


def test_rates_of_a_corpus_are_of_the_sums() -> None:
    total = edit_counts(["a", "b", "c"], ["a", "x", "c"]) + edit_counts(["a"], ["a", "b", "c"])

    assert total == EditCounts(1, 2, 0, 4)
    assert total.rate == 0.75


def test_rate_without_reference_is_infinite_or_zero() -> None:
    assert edit_counts([], ["a"]).rate == float("inf")
    assert edit_counts([], []).rate == 0.0
    assert edit_counts(["a"], ["b", "c"]).rate == 2.0


def test_items_of_any_kind_are_compared() -> None:
    assert edit_counts([1, 2, 3], (1, 3)).deletions == 1
    assert edit_counts([("a", 1)], [("a", 2)]).substitutions == 1


def test_long_texts_are_counted_exactly() -> None:
    reference = "ab" * 2000

    assert edit_counts(reference, "x" + reference[:-1]).edits == 2
    assert edit_counts(reference, reference[::-1]).edits == 2
