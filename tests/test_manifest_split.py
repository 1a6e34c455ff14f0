"""Splits are the same every time, survive new files, and never share a speaker."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data.split import compile_speaker_pattern, split_by_speaker, split_by_utterance
from hubert_plugin.errors import ConfigError

NAMES = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=60, unique=True)
FRACTIONS = st.floats(0.001, 0.999)
LIBRISPEECH = r"([0-9]+)/[0-9]+/[^/]+$"


def identity(name: str) -> str:
    return name


@settings(max_examples=100, deadline=None)
@given(NAMES, FRACTIONS, st.integers(0, 9))
def test_every_utterance_is_on_one_side_in_order_and_no_side_is_empty(
    names: list[str], valid_fraction: float, seed: int
) -> None:
    train, valid = split_by_utterance(names, identity, valid_fraction, seed)

    assert train and valid
    assert not set(train) & set(valid)
    assert train == [n for n in names if n in set(train)]
    assert sorted(train + valid) == sorted(names)


@settings(max_examples=50, deadline=None)
@given(NAMES, FRACTIONS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_sides_depend_on_names_only(names: list[str], valid_fraction: float, seed: int, rng: random.Random) -> None:
    shuffled = rng.sample(names, len(names))

    assert set(split_by_utterance(names, identity, valid_fraction, seed)[1]) == set(
        split_by_utterance(shuffled, identity, valid_fraction, seed)[1]
    )


def test_new_files_move_none_of_the_old_ones() -> None:
    old = [f"{i}.wav" for i in range(1000)]

    valid = set(split_by_utterance(old, identity, 0.05, 1)[1])
    valid_of_more = set(split_by_utterance([*old, *(f"new{i}.wav" for i in range(500))], identity, 0.05, 1)[1])

    assert valid_of_more & set(old) == valid


def test_a_larger_fraction_only_adds() -> None:
    names = [f"{i}.wav" for i in range(300)]

    sides = [set(split_by_utterance(names, identity, f, 1)[1]) for f in (0.0, 1e-6, 0.01, 0.1, 0.5, 0.999999)]

    assert not sides[0]
    assert all(a <= b for a, b in pairwise(sides))


def test_the_fraction_is_met_and_seeds_differ() -> None:
    names = [f"{i}.wav" for i in range(20000)]

    by_seed = [set(split_by_utterance(names, identity, 0.1, seed)[1]) for seed in range(3)]

    for valid in by_seed:
        assert len(valid) == pytest.approx(2000, abs=5 * (20000 * 0.1 * 0.9) ** 0.5)

    assert len(by_seed[0] & by_seed[1]) == pytest.approx(200, abs=75)


def test_a_single_utterance_stays_in_training() -> None:
    assert split_by_utterance(["a"], identity, 0.5, 1) == (["a"], [])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), min_size=2, max_size=80, unique=True),
    FRACTIONS,
    st.integers(0, 9),
)
def test_no_speaker_is_on_both_sides(utterances: list[tuple[int, int]], valid_fraction: float, seed: int) -> None:
    names = [f"train-clean-100/{s}/{u}/{s}-{u}-0001.flac" for s, u in utterances]
    speakers = {s for s, _ in utterances}

    if len(speakers) == 1:
        with pytest.raises(ConfigError, match="finds the same speaker"):
            split_by_speaker(names, identity, LIBRISPEECH, valid_fraction, seed)

        return

    train, valid, num_speakers = split_by_speaker(names, identity, LIBRISPEECH, valid_fraction, seed)

    sides = [{n.split("/")[1] for n in side} for side in (train, valid)]

    assert not sides[0] & sides[1]
    assert sides[0] and sides[1]
    assert num_speakers == len(speakers)
    assert sorted(train + valid) == sorted(names)


@pytest.mark.parametrize("below", ["", "chapter7/", "1034/"])
def test_the_pattern_of_the_documentation_takes_the_first_folder(repo_dir: Path, below: str) -> None:
    (pattern,) = re.findall(r"speaker_pattern='(.+?)'", (repo_dir / "docs/own-data.md").read_text())

    paths = [f"{speaker}/{below}{nr}.flac" for speaker in ("19", "anna", "s-2") for nr in range(3)]

    train, valid, num_speakers = split_by_speaker(paths, str, pattern, 0.3, 0)

    assert num_speakers == 3 and valid

    assert not {p.partition("/")[0] for p in train} & {p.partition("/")[0] for p in valid}


def test_a_pattern_that_finds_no_speaker_is_named_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"in no path\. It is searched in paths like 'bob/1\.wav'"):
        split_by_speaker(["bob/1.wav", "eve/2.wav"], identity, LIBRISPEECH, 0.1, 1)

    with pytest.raises(ConfigError, match=r"(?s)only 1 of 3 paths.*'noise/1\.wav'.*'noise/2\.wav'"):
        split_by_speaker(["1/2/a.wav", "noise/1.wav", "noise/2.wav"], identity, LIBRISPEECH, 0.1, 1)


@pytest.mark.parametrize(("pattern", "words"), [("(", "is none"), ("[0-9]+", "must have a group")])
def test_a_pattern_that_cannot_be_used_is_named(pattern: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compile_speaker_pattern(pattern)
