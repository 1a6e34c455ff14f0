"""Resampling equals torchaudio's, and its length is the frame clock's for every rate and length."""

from __future__ import annotations

from functools import cache
from math import ceil, gcd
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hubert_plugin.audio import AudioPolicy, probe_audio, read_waveform
from hubert_plugin.audio.resample import resample_to_16k
from hubert_plugin.errors import AudioError
from hubert_plugin.frames import resampled_length

RATES = [8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000]


@cache
def get_reference(sample_rate: int) -> torchaudio.transforms.Resample:
    """torchaudio in double precision."""
    return torchaudio.transforms.Resample(sample_rate, 16000, dtype=torch.float64)


def resample_reference(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    return get_reference(sample_rate)(torch.from_numpy(waveform).double()).numpy()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*RATES, 16000]), st.integers(400, 60000), st.integers(0, 2**31))
def test_resampling_equals_torchaudio(sample_rate: int, num_samples: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)

    actual = resample_to_16k(waveform, sample_rate)
    expected = resample_reference(waveform, sample_rate)

    assert len(actual) == len(expected) == resampled_length(num_samples, sample_rate)

    np.testing.assert_allclose(actual, expected, atol=3e-6)


@pytest.mark.parametrize("sample_rate", RATES)
def test_the_common_torchaudio_call_differs_by_its_own_rounding_only(sample_rate: int) -> None:
    waveform = np.random.default_rng(0).standard_normal(20001).astype(np.float32)

    expected = torchaudio.functional.resample(torch.from_numpy(waveform), sample_rate, 16000).numpy()

    np.testing.assert_allclose(resample_to_16k(waveform, sample_rate), expected, atol=1.5e-4)


@pytest.mark.parametrize("sample_rate", RATES)
def test_odd_lengths_have_the_length_the_header_promises(tmp_path: Path, sample_rate: int) -> None:
    for num_samples in (1201, 3307, 44101, 65537):
        soundfile.write(tmp_path / "a.wav", np.zeros(num_samples), sample_rate)

        waveform = read_waveform(tmp_path, "a.wav", AudioPolicy())

        assert len(waveform) == ceil(num_samples * 16000 / sample_rate)
        assert probe_audio(tmp_path, "a.wav").num_samples == len(waveform)


@pytest.mark.parametrize("sample_rate", [22050, 44100])
def test_long_files_lose_no_sample_to_single_precision(sample_rate: int) -> None:
    # ceil(n * 16000 / rate) in single precision, as in torchaudio, forgets a small fraction.
    period = sample_rate // gcd(sample_rate, 16000)
    num_samples = period * 9000 + 1

    waveform = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)

    exact = -(-num_samples * 16000 // sample_rate)
    theirs = resample_reference(waveform, sample_rate)
    ours = resample_to_16k(waveform, sample_rate)

    assert len(ours) == exact
    assert len(theirs) <= exact

    np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=3e-6)


def test_a_tone_keeps_its_pitch_and_level() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)

    np.testing.assert_allclose(resample_to_16k(tone, 44100)[200:-200], expected[200:-200], atol=2e-3)


def test_rates_that_would_need_a_giant_filter_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(30000), 44101)

    with pytest.raises(AudioError, match=r"a\.wav.*44101 Hz cannot be resampled"):
        read_waveform(tmp_path, "a.wav", AudioPolicy())
