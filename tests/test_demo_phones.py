"""The demo corpus' parts that need no synthesiser: phones, segments, frames, text, speakers, resampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.demo import PHONES, SILENCE, Segment, frame_phones
from hubert_plugin.demo.channel import apply_channel, resample
from hubert_plugin.demo.grammar import make_text, vocabulary
from hubert_plugin.demo.phones import UNKNOWN, find_segments, fold_phone
from hubert_plugin.demo.speakers import LEVELS, NUM_VOICES, make_speakers


@st.composite
def alignments(draw: st.DrawFn) -> list[Segment]:
    lengths = draw(st.lists(st.integers(1, 4000), min_size=1, max_size=20))

    names = draw(st.lists(st.sampled_from(PHONES), min_size=len(lengths), max_size=len(lengths)))

    ends = np.cumsum(lengths).tolist()

    return [(a / 16000, b / 16000, p) for a, b, p in zip([0, *ends[:-1]], ends, names, strict=True)]


@settings(max_examples=200, deadline=None)
@given(alignments(), st.integers(0, 60), st.sampled_from([50, 100]))
def test_frame_phones_reads_the_phone_at_the_centre_of_each_window(
    segments: list[Segment], num_frames: int, rate: int
) -> None:
    expected = []

    for t in range(num_frames):
        # The centre of the 400 samples that begin at t * 16000 / rate.
        center = (t * (16000 // rate) + 200) / 16000

        phone = segments[-1][2]
        for start, end, name in segments:
            if start <= center < end:
                phone = name

        expected.append(phone)

    assert frame_phones(segments, num_frames, rate) == expected


def test_frame_phones_refuses_what_it_cannot_answer() -> None:
    assert frame_phones([], 0, 50) == []

    with pytest.raises(ValueError, match="at least one segment"):
        frame_phones([], 1, 50)

    with pytest.raises(ValueError, match="50 or 100 Hz"):
        frame_phones([(0.0, 1.0, "AA")], 1, 75)


def test_fold_phone_ignores_stress_and_pause_marks() -> None:
    assert fold_phone("'aI") == fold_phone("aI") == "AY"
    assert fold_phone("I#") == "IH"
    assert fold_phone("_:") == fold_phone("") == SILENCE
    assert fold_phone("no such phone") == UNKNOWN


def test_find_segments_gives_closures_to_stops_and_long_gaps_to_silence() -> None:
    sample_rate = 1000

    pcm = np.zeros(600, np.int16)
    pcm[0:80] = 1  # a vowel, then 40 ms of zeros that are the closure of the P
    pcm[120:150] = 1  # the burst of the P
    pcm[150:240] = 1  # a vowel, then 60 ms of zeros before an S: a pause
    pcm[300:390] = 1  # the S, then 10 ms of zeros: the S itself
    pcm[400:490] = 1  # a vowel, in whose last third the L of the syllable sounds

    events = [("A:", 0), ("p", 120), ("A:", 150), ("s", 300), ("O:", 400), ("l", 490), ("_:", 500)]

    assert find_segments(pcm, events, sample_rate) == [
        (0, 80, "AA"),
        (80, 150, "P"),
        (150, 240, "AA"),
        (240, 300, SILENCE),
        (300, 400, "S"),
        (400, 460, "AO"),
        (460, 490, "L"),
        (490, 600, SILENCE),
    ]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_find_segments_covers_any_signal_without_gaps(data: st.DataObject) -> None:
    num_samples = data.draw(st.integers(1, 3000))

    names = st.sampled_from(["A:", "p", "l", "s", "_:", "r", "tS", "odd"])

    starts = sorted(data.draw(st.lists(st.integers(0, num_samples), max_size=12)))

    events = [(data.draw(names), start) for start in starts]

    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    pcm = np.repeat(rng.integers(0, 2, num_samples // 50 + 1), 50)[:num_samples].astype(np.int16)

    segments = find_segments(pcm, events, 1000)

    assert segments[0][0] == 0
    assert segments[-1][1] == num_samples
    assert all(start < end for start, end, _ in segments)
    assert all(a[1] == b[0] for a, b in pairwise(segments))
    assert {phone for *_, phone in segments} <= set(PHONES)


def test_texts_are_functions_of_their_keys_and_use_the_vocabulary() -> None:
    words = set(vocabulary())

    assert len(words) > 400

    texts = [make_text(f"0/train/s000/{i}") for i in range(2000)]

    assert texts == [make_text(f"0/train/s000/{i}") for i in range(2000)]
    assert len({" ".join(t) for t in texts}) > 1990
    assert {w for t in texts for w in t} == words
    assert not any(a == "a" and b[0] in "aeiou" and b != "usual" for t in texts for a, b in pairwise(t))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("num_train", "num_valid"), [(1, 1), (36, 4), (100, 10), (2, 100)])
def test_speakers_are_disjoint_and_held_out_voices_are_their_own(level: str, num_train: int, num_valid: int) -> None:
    train, valid = make_speakers(3, LEVELS[level], num_train, num_valid)

    assert (len(train), len(valid)) == (num_train, num_valid)
    assert len({s.id for s in (*train, *valid)}) == num_train + num_valid

    low, high = LEVELS[level].warp

    assert all(low <= s.warp <= high for s in (*train, *valid))

    if num_valid < NUM_VOICES:
        assert not {s.voice for s in train} & {s.voice for s in valid}

    assert (train, valid) != make_speakers(4, LEVELS[level], num_train, num_valid)


@pytest.mark.parametrize("warp", [384, 441, 512])
def test_resample_keeps_a_tone_where_it_is_in_time(warp: int) -> None:
    # An independent oracle: the same analytic tone burst, sampled at both rates.
    def burst(times: np.ndarray) -> np.ndarray:
        return np.exp(-(((times - 0.3) / 0.05) ** 2)) * np.sin(2 * np.pi * 1234 * times)

    rate = 16000 * warp / 320

    resampled = resample(burst(np.arange(int(0.6 * rate)) / rate), 320, warp)

    np.testing.assert_allclose(resampled, burst(np.arange(len(resampled)) / 16000), atol=1e-6)


def test_resample_removes_what_lies_above_the_new_band() -> None:
    rate = 16000 * 441 / 320

    tone = np.sin(2 * np.pi * 9500 * np.arange(int(rate)) / rate)

    assert np.abs(resample(tone, 320, 441)[400:-400]).max() < 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_channel_adds_noise_at_the_level_and_moves_nothing(level: str) -> None:
    from random import Random

    n, lead, tail = 16000, 2000, 3000

    click = np.zeros(n)
    click[8000] = 1.0

    recorded = apply_channel(click, LEVELS[level], Random(0), lead=lead, tail=tail)

    assert recorded.shape == (lead + n + tail,)
    assert np.abs(recorded).argmax() == lead + 8000

    # No digital silence anywhere, not even where nothing is said.
    assert (np.abs(recorded[:lead].reshape(-1, 400)).max(axis=1) > 0).all()

    # The noise before the signal, where there is no echo: its power lies within the level's range.
    speech = np.random.default_rng(0).standard_normal(n)

    noisy = apply_channel(speech, LEVELS[level], Random(1), lead=lead, tail=tail)

    snr = 10 * np.log10(np.mean(noisy[lead : lead + n] ** 2) / np.mean(noisy[:lead] ** 2))

    low, high = LEVELS[level].snr

    assert low - 1.5 < snr < high + 1.5
