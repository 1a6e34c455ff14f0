"""MFCC of several utterances at once, against torchaudio one utterance at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio.compliance.kaldi as kaldi
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import compute_deltas

from hubert_plugin.errors import ConfigError
from hubert_plugin.frames import num_labels
from hubert_plugin.units.mfcc import MfccConfig, MfccSource, mfcc


def reference(waveform: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    """fairseq's ``dump_mfcc_feature.py``, by the library it uses."""
    if len(waveform) < 400:
        return np.empty((0, 39), np.float32)

    static = kaldi.mfcc(torch.from_numpy(waveform)[None].to(dtype), sample_frequency=16_000, use_energy=False).T

    delta = compute_deltas(static)

    return torch.cat([static, delta, compute_deltas(delta)]).T.numpy()


def make(kind: str, num_samples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)

    noise = rng.standard_normal(num_samples)

    waves = {
        "noise": 0.1 * noise,
        "loud": np.clip(0.4 * noise, -1.0, 1.0),
        "silence": np.zeros(num_samples),
        "hiss": 1e-7 * noise,
        "offset": 0.3 + 1e-3 * noise,
        "constant": np.full(num_samples, 0.7),
        "onset": 0.1 * noise * (np.arange(num_samples) > num_samples // 2),
        "tone": 0.3 * np.sin(0.2 * np.arange(num_samples)) + 0.01 * noise,
    }

    return waves[kind].astype(np.float32)


KINDS = ["noise", "loud", "silence", "hiss", "offset", "constant", "onset", "tone"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.one_of(st.integers(0, 1_500), st.sampled_from([399, 400, 401, 559, 560, 719, 720, 20_000])),
            st.integers(0, 1_000),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_batch_equals_torchaudio_utterance_by_utterance(items: list[tuple[str, int, int]]) -> None:
    waveforms = [make(*item) for item in items]

    for features, waveform in zip(MfccSource().extract(waveforms), waveforms, strict=True):
        assert features.dtype == np.float32

        expected = reference(waveform)

        # Where a waveform has an offset or begins in a frame, the library's own single precision is off by up to 4e-4.
        rounding = np.abs(expected - reference(waveform, torch.float64)).max(initial=0.0)

        np.testing.assert_allclose(features, expected, atol=2e-4 + rounding, rtol=0)


def test_what_else_is_in_the_batch_does_not_change_a_bit() -> None:
    """Blocks have one shape, so labels do not depend on how utterances are handed out to workers and ranks."""
    waveforms = [make("noise", n, n) for n in (400, 81_000, 5_000, 17_777, 399, 33_333)]

    together = MfccSource(MfccConfig(splice=3)).extract(waveforms)

    for features, waveform in zip(together, waveforms, strict=True):
        np.testing.assert_array_equal(features, MfccSource(MfccConfig(splice=3)).extract([waveform])[0])


def test_many_threads_of_pytorch_do_not_change_a_bit() -> None:
    waveforms = [make("noise", n, n) for n in (50_000, 70_000)]

    before = torch.get_num_threads()

    results = []

    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)

        results.append(MfccSource().extract(waveforms))

    torch.set_num_threads(before)

    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_strong_tone_over_weak_noise_is_as_near_to_the_truth_as_torchaudio() -> None:
    """Both lose the noise in the rounding of the tone; neither is the truth, which float64 tells."""
    waveform = make("tone", 16_000, 0) * np.float32(3.0)

    waveform = waveform + np.float32(1e-4) * make("noise", 16_000, 1)

    exact = kaldi.mfcc(torch.from_numpy(waveform.astype(np.float64))[None], sample_frequency=16_000, use_energy=False)

    ours = np.abs(mfcc(waveform)[:, :13] - exact.numpy()).max()
    theirs = np.abs(reference(waveform)[:, :13] - exact.numpy()).max()

    assert ours <= 2.0 * theirs + 2e-4


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("rate", [50, 100])
def test_splicing_puts_neighbours_side_by_side_within_each_kind(width: int, rate: int) -> None:
    waveforms = [make("noise", n, n) for n in (4_000, 400, 399, 9_000)]

    spliced = MfccSource(MfccConfig(splice=width, rate=rate))

    assert spliced.dim == 39 * width

    half = width // 2

    for features, waveform in zip(spliced.extract(waveforms), waveforms, strict=True):
        plain = mfcc(waveform)

        rows = []

        for t in range(len(plain)):
            around = [plain[min(max(t + k, 0), len(plain) - 1)] for k in range(-half, half + 1)]

            rows.append(np.concatenate([a[13 * i : 13 * (i + 1)] for i in range(3) for a in around]))

        expected = np.array(rows, np.float32).reshape(len(plain), 39 * width)[:: 100 // rate]

        np.testing.assert_array_equal(features, expected)

        assert len(features) == num_labels(len(waveform), rate)


def test_records_tell_spliced_features_from_plain_ones() -> None:
    assert MfccSource().describe() == {"name": "mfcc", "dim": 39, "rate": 100}

    assert MfccSource(MfccConfig(splice=3)).describe() == {"name": "mfcc", "dim": 117, "rate": 100, "splice": 3}


def test_no_waveforms_have_no_features() -> None:
    assert MfccSource().extract([]) == []


def test_bad_configurations_are_named() -> None:
    assert len(MfccConfig(rate=25, splice=2).validate().errors) == 2

    with pytest.raises(ValueError, match="odd number of frames"):
        MfccSource(MfccConfig(splice=4))

    with pytest.raises(ConfigError, match="such as 'cpu'"):
        MfccSource(MfccConfig(device="toaster"))

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="but is 'cuda'"):
            MfccSource(MfccConfig(device="cuda"))
