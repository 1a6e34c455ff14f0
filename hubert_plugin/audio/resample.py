"""Other sample rates to 16 kHz, with torchaudio's windowed sinc. The only module of the room that imports torch."""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING, Final

from hubert_plugin.errors import AudioError
from hubert_plugin.frames import SAMPLE_RATE, resampled_length

if TYPE_CHECKING:
    from torchaudio.transforms import Resample

    from hubert_plugin.registry import Waveform

MAX_KERNEL_SIZE: Final = 1 << 25
"""The most weights a resampling kernel may have (128 MiB). Rates that share no large divisor with 16 kHz need more."""


def resample_to_16k(waveform: Waveform, sample_rate: int) -> Waveform:
    """Convert ``waveform`` (*Shape:* (n,)) from ``sample_rate`` Hz to 16 kHz.

    Equal to ``torchaudio.transforms.Resample`` with its defaults (sinc, Hann window, width 6, roll-off 0.99) but for
    two things. The filter is computed in double precision; torchaudio's default, partly in single, is off by up to
    7e-5 of the level. And torchaudio computes the length, ceil(n * 16000 / rate), in single precision too, so that long
    files end a few samples too early or late; here it is :func:`~hubert_plugin.frames.resampled_length`, always.

    :raises AudioError: ``sample_rate`` shares too small a divisor with 16,000 for a kernel of bearable size.
    """
    if sample_rate == SAMPLE_RATE:
        return waveform

    import torch

    num_samples = len(waveform)
    target_length = resampled_length(num_samples, sample_rate)

    # torchaudio pads with zeros itself, so zeros of ours change no sample; they make sure that none is missing.
    slack = sample_rate // gcd(sample_rate, SAMPLE_RATE) + (max(num_samples, target_length) >> 20) * 2

    with torch.inference_mode():
        resampler = _get_resampler(sample_rate)
        padded = torch.nn.functional.pad(torch.from_numpy(waveform), (0, slack))
        result: Waveform = resampler(padded)[:target_length].numpy()

    return result


@lru_cache(maxsize=8)
def _get_resampler(sample_rate: int) -> Resample:
    divisor = gcd(sample_rate, SAMPLE_RATE)

    if (sample_rate // divisor) * (SAMPLE_RATE // divisor) > MAX_KERNEL_SIZE:
        raise AudioError(
            f"{sample_rate} Hz cannot be resampled to {SAMPLE_RATE} Hz here: the two share no divisor above {divisor}, "
            "so the filter would be too large. Convert such files beforehand."
        )

    import torch
    from torchaudio.transforms import Resample

    return Resample(sample_rate, SAMPLE_RATE, dtype=torch.float64).to(torch.float32)
