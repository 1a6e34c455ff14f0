"""Manifest entries to waveforms: mono, 16 kHz, float32, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.audio.decode import count_frames, open_sound, read_frames
from hubert_plugin.audio.policy import AudioPolicy
from hubert_plugin.audio.resample import resample_to_16k
from hubert_plugin.audio.source import AudioSource, resolve_ref
from hubert_plugin.errors import AudioError
from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE, resampled_length

NORM_EPS: Final = 1e-5
"""What is added to the variance when normalising: that of ``torch.nn.functional.layer_norm``, which fairseq uses."""


@dataclass(frozen=True)
class AudioInfo:
    """What is known of an utterance before it is decoded."""

    num_samples: int
    """The number of samples at 16 kHz: exactly ``len(read_waveform(...))``. May be below 400, which cannot be read."""

    sample_rate: int
    """The sample rate of the file, in Hz."""

    num_channels: int
    """The number of channels of the file."""

    num_file_samples: int = field(default=0, compare=False)
    """The number of samples per channel at the rate of the file."""


def probe_audio(root: Path, ref: str) -> AudioInfo:
    """Return length, rate and channels of the manifest entry ``ref``, from its header where that can be trusted.

    MP3 is decoded to be measured, for its headers may only estimate (see :mod:`hubert_plugin.audio.decode`).

    :raises AudioError: The file is missing, no audio, truncated or without samples.
    """
    source = resolve_ref(root, ref)

    with open_sound(source, in_memory=False) as sound:
        count = count_frames(sound, source)

        return AudioInfo(resampled_length(count, sound.samplerate), sound.samplerate, sound.channels, count)


def read_waveform(
    root: Path, ref: str, policy: AudioPolicy, *, expected_samples: int | None = None
) -> NDArray[np.float32]:
    """Return the waveform of the manifest entry ``ref``: mono, 16 kHz, contiguous. *Shape:* (n,).

    Channels are averaged, then the rate is converted, then the whole is normalised if ``policy`` says so. Without
    normalisation values are nominally in [-1, 1]: float files and resampling may pass the limits a little.

    :param ref: A path relative to ``root`` or ``archive.zip:offset:length`` (bytes), with ``[start:stop]`` (samples of
        the file) for a segment.
    :param expected_samples: The number of samples at 16 kHz that the manifest says, if it is to be checked.
    :raises AudioError: The file is missing, no audio, truncated, empty, below 400 samples (one frame), not finite, of
        another rate while the policy refuses that, or of another length than expected.
    """
    source = resolve_ref(root, ref)

    with open_sound(source) as sound:
        check_sample_rate(source, sound.samplerate, policy)

        frames = read_frames(sound, source)
        sample_rate = sound.samplerate

    waveform = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)

    _check_finite(waveform, source)

    num_frames = len(waveform)

    try:
        waveform = resample_to_16k(np.ascontiguousarray(waveform), sample_rate)
    except AudioError as ex:
        raise AudioError(f"'{source}': {ex}") from ex

    _check_length(source, len(waveform), num_frames, sample_rate, expected_samples)

    if policy.normalize:
        waveform = normalize_waveform(waveform)

    return np.ascontiguousarray(waveform, dtype=np.float32)


def normalize_waveform(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give ``waveform`` (*Shape:* (n,)) zero mean and unit variance: (x - mean) / sqrt(var + 1e-5), biased variance."""
    mean = waveform.mean(dtype=np.float64)
    var = waveform.var(dtype=np.float64)

    return ((waveform - np.float32(mean)) * np.float32(1.0 / math.sqrt(var + NORM_EPS))).astype(np.float32, copy=False)


def check_sample_rate(source: AudioSource, sample_rate: int, policy: AudioPolicy) -> None:
    """Refuse another rate than 16 kHz where the policy says so.

    :raises AudioError: The policy is ``refuse`` and the rate is another.
    """
    if policy.sample_rate == "refuse" and sample_rate != SAMPLE_RATE:
        raise AudioError(
            f"'{source}' has a sample rate of {sample_rate} Hz, expected {SAMPLE_RATE} Hz. Convert it, or "
            "let it be converted when it is read: `audio.sample_rate=resample`, in training "
            "`dataset.sample_rate_policy=resample`."
        )


def check_length(source: AudioSource, num_samples: int) -> None:
    """Refuse audio that cannot hold a frame.

    :param num_samples: At 16 kHz.
    :raises AudioError: It is shorter.
    """
    if num_samples < RECEPTIVE_FIELD:
        raise AudioError(
            f"'{source}' is too short: it has {num_samples} samples at {SAMPLE_RATE} Hz, expected at least "
            f"{RECEPTIVE_FIELD} (25 ms, one frame)."
        )


def _check_finite(waveform: NDArray[np.float32], source: AudioSource) -> None:
    # One NaN or infinity makes the sum not finite: one pass without a temporary array for the many good files.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(waveform.sum())):
            return

    finite = np.isfinite(waveform)

    if finite.all():
        return

    raise AudioError(
        f"'{source}' has {int((~finite).sum())} samples that are not finite (NaN or infinity), the first at sample "
        f"{int(np.argmin(finite))}; expected finite numbers."
    )


def _check_length(
    source: AudioSource, num_samples: int, num_frames: int, sample_rate: int, expected_samples: int | None
) -> None:
    if expected_samples is not None and num_samples != expected_samples:
        hint = "Restore the file or make the manifest again."

        if expected_samples == num_frames:
            hint = f"The manifest counts samples at {sample_rate} Hz, but they must be counted at {SAMPLE_RATE} Hz."

        raise AudioError(
            f"'{source}' has {num_samples} samples at {SAMPLE_RATE} Hz, but its manifest says {expected_samples}. "
            f"{hint}"
        )

    check_length(source, num_samples)
