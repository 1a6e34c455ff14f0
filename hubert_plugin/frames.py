"""The frame clock: every rounding of time in this package happens here.

HuBERT sees a 16 kHz waveform as frames of 400 samples every 320 samples (seven convolutions without padding; fairseq
``hubert.py``). Letters: *n* samples, *T* frames (50 Hz), *M* MFCC frames (100 Hz, 400 samples every 160).

Frame ``t`` covers the samples ``[320 t, 320 t + 400)``; its centre is at ``12.5 ms + t * 20 ms``. MFCC frame ``2 t``
covers exactly the same samples, so 100 Hz labels are used by taking every second one.
"""

from __future__ import annotations

from typing import Final

SAMPLE_RATE: Final = 16_000
"""Samples per second of every waveform inside the package."""

STRIDE: Final = 320
"""Samples between the starts of two frames."""

RECEPTIVE_FIELD: Final = 400
"""Samples that one frame sees."""

FRAME_RATE: Final = SAMPLE_RATE / STRIDE
"""Frames per second: 50."""

MFCC_STRIDE: Final = 160
"""Samples between the starts of two MFCC frames."""

MFCC_RATE: Final = SAMPLE_RATE / MFCC_STRIDE
"""MFCC frames per second: 100."""

SUPPORTED_LABEL_RATES: Final = (50, 100)
"""Label rates, in Hz, that fall on the frame clock."""


def num_frames(num_samples: int) -> int:
    """Return *T* = floor((n - 400) / 320) + 1, and 0 below 400 samples (fairseq's convolution-length formula)."""
    return _count(num_samples, STRIDE)


def num_mfcc_frames(num_samples: int) -> int:
    """Return *M* = floor((n - 400) / 160) + 1, and 0 below 400 samples (kaldi, ``snip_edges``)."""
    return _count(num_samples, MFCC_STRIDE)


def num_labels(num_samples: int, label_rate: int) -> int:
    """Return how many labels of ``label_rate`` Hz an utterance of ``num_samples`` has."""
    return _count(num_samples, label_stride(label_rate))


def label_stride(label_rate: int) -> int:
    """Return the number of samples between two labels of ``label_rate`` Hz.

    :raises ValueError: ``label_rate`` is neither 50 nor 100.
    """
    if label_rate not in SUPPORTED_LABEL_RATES:
        raise ValueError(f"`label_rate` must be 50 or 100 Hz, but is {label_rate} instead.")

    return SAMPLE_RATE // label_rate


def labels_per_frame(label_rate: int) -> int:
    """Return by how many labels of ``label_rate`` Hz two neighbouring frames are apart: 1 or 2."""
    return STRIDE // label_stride(label_rate)


def num_samples_of(frames: int) -> int:
    """Return the smallest number of samples that yields ``frames`` frames: 320 (T - 1) + 400, and 0 for no frame."""
    return 0 if frames <= 0 else STRIDE * (frames - 1) + RECEPTIVE_FIELD


def frame_start(frame: int) -> int:
    """Return the first sample that ``frame`` sees. Crops start at these samples only, so labels stay aligned
    exactly."""
    return frame * STRIDE


def frame_center_seconds(frame: int, rate: int = 50) -> float:
    """Return the centre, in seconds, of the window of frame ``frame`` at ``rate`` (50 or 100) Hz.

    That is 12.5 ms + frame / rate.
    """
    return (label_stride(rate) * frame + RECEPTIVE_FIELD / 2) / SAMPLE_RATE


def seconds(num_samples: int) -> float:
    """Convert samples at 16 kHz to seconds."""
    return num_samples / SAMPLE_RATE


def resampled_length(num_samples: int, sample_rate: int) -> int:
    """Return the length at 16 kHz of ``num_samples`` at ``sample_rate`` Hz: ceil(n * 16000 / rate), as torchaudio."""
    return -(-num_samples * SAMPLE_RATE // sample_rate)


def _count(num_samples: int, stride: int) -> int:
    if num_samples < RECEPTIVE_FIELD:
        return 0

    return (num_samples - RECEPTIVE_FIELD) // stride + 1
