"""Kaldi's mel-frequency cepstra of many utterances at once, and their differences over time.

Letters: *n* samples of an utterance, *M* frames of all utterances, *F* frames of the layout below, *C* = 13 cepstra.

The values are those of ``torchaudio.compliance.kaldi.mfcc`` with fairseq's settings (``dump_mfcc_feature.py``: 25 ms
windows every 10 ms, 23 mel bins from 20 Hz, pre-emphasis 0.97, mean of each window removed, povey window, no dither,
lifter 22, no energy) and of ``torchaudio.functional.compute_deltas``. What is done otherwise, for speed:

- Utterances lie one behind another, each from a multiple of the window shift on, so that one strided view holds the
  windows of all; the few windows that cross from one to the next are computed and dropped.
- Pre-emphasis is linear and the povey window is zero at both ends, so the signal is filtered once, not each window: a
  window less its mean µ, pre-emphasised, is the filtered window less 0.03 µ. Means come from sums over 5 ms.
- Frames are computed in blocks of a fixed size that fits the cache. As every product has the same shape, the values of
  a frame do not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from hubert_plugin.frames import MFCC_STRIDE, RECEPTIVE_FIELD, SAMPLE_RATE, num_mfcc_frames

NUM_CEPSTRA: Final = 13

_NUM_MELS: Final = 23

_LOW_FREQUENCY: Final = 20.0

_PRE_EMPHASIS: Final = 0.97

_LIFTER: Final = 22.0

_FFT: Final = 512

_BLOCK: Final = 256
"""Frames that are computed together: 0.5 MB of windows and as much of spectra, which is what a core's cache holds."""

_SUM: Final = 80
"""Samples of a partial sum for the means: divides both the window (400) and its shift (160)."""

_TAIL: Final = 3 * _SUM
"""Samples that the last window of a block reaches beyond its shift: 400 - 160."""

_COLUMNS: Final = 24
"""The width of the mel matrix: 23 and an empty one, with which the product takes half the time."""

_MEL_FLOOR: Final = float(torch.finfo(torch.float32).eps)


class _Tables(NamedTuple):
    """The constants of the transform, on one device."""

    window: Tensor
    """*Shape:* (400,)."""

    mel: Tensor
    """From squared real and imaginary parts, which alternate, to mel energies. *Shape:* (514, 24)."""

    dct: Tensor
    """From log mel energies to cepstra. *Shape:* (24, C)."""

    lifter: Tensor
    """*Shape:* (C,)."""


def cepstra(waveforms: Sequence[NDArray[np.float32]], device: torch.device | str = "cpu") -> tuple[Tensor, list[int]]:
    """Return the cepstra of all frames of all utterances.

    :param waveforms: Waveforms at 16 kHz in [-1, 1]. *Shape of an item:* (n,).
    :returns: The cepstra (*Shape:* (M, C), float32), one utterance behind another, and how many frames each has:
        floor((n - 400) / 160) + 1, none below 400 samples.
    """
    counts = [num_mfcc_frames(len(w)) for w in waveforms]

    # Where each utterance begins, in window shifts; one without frames takes no room.
    widths = [-(-len(w) // MFCC_STRIDE) if c else 0 for w, c in zip(waveforms, counts, strict=True)]

    starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)

    num_blocks = max(-(-int(starts[-1]) // _BLOCK), 1)

    # One sample before the first window (the filter looks back), whole blocks, and the tail of the last window.
    samples = np.zeros(1 + num_blocks * _BLOCK * MFCC_STRIDE + _TAIL, np.float32)

    for waveform, count, start in zip(waveforms, counts, starts[:-1].tolist(), strict=True):
        if count:
            first = 1 + start * MFCC_STRIDE

            # A constant does not show in the result, but a large one would eat the digits of a quiet signal.
            np.subtract(waveform, np.mean(waveform, dtype=np.float64), out=samples[first : first + len(waveform)],
                        casting="same_kind")  # fmt: skip

    rows = [np.arange(s, s + c) for s, c in zip(starts[:-1].tolist(), counts, strict=True)]

    index = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *rows])).to(device)

    with torch.inference_mode():
        return _all_cepstra(torch.from_numpy(samples).to(device), num_blocks)[index], counts


def _all_cepstra(samples: Tensor, num_blocks: int) -> Tensor:
    """Return the cepstra of every window of ``samples``, junk between utterances included. *Shape:* (F, C)."""
    window, mel, dct, lifter = _tables(str(samples.device))

    device = samples.device

    out = torch.empty((num_blocks * _BLOCK, NUM_CEPSTRA), device=device)

    span = _BLOCK * MFCC_STRIDE + _TAIL

    emphasised = torch.empty(span, device=device)
    padded = torch.zeros((_BLOCK, _FFT), device=device)
    energies = torch.empty((_BLOCK, mel.size(1)), device=device)

    windows = emphasised.as_strided((_BLOCK, RECEPTIVE_FIELD), (MFCC_STRIDE, 1))

    inner = padded[:, :RECEPTIVE_FIELD]

    sums_per_shift, sums_per_window = MFCC_STRIDE // _SUM, RECEPTIVE_FIELD // _SUM

    for block in range(num_blocks):
        start = 1 + block * _BLOCK * MFCC_STRIDE

        here, before = samples[start : start + span], samples[start - 1 : start - 1 + span]

        # The first sample of a window meets a zero of the window function, so what lies before it does not matter.
        torch.sub(here, before, alpha=_PRE_EMPHASIS, out=emphasised)

        sums = here.view(-1, _SUM).sum(dim=1)

        sums = sums.as_strided((_BLOCK, sums_per_window), (sums_per_shift, 1)).sum(dim=1, keepdim=True)

        torch.sub(windows, sums.mul_((1.0 - _PRE_EMPHASIS) / RECEPTIVE_FIELD), out=inner)

        inner.mul_(window)

        parts = torch.view_as_real(torch.fft.rfft(padded)).view(_BLOCK, -1)  # (F, 514)

        torch.mm(parts.square_(), mel, out=energies)

        torch.mm(energies.clamp_(min=_MEL_FLOOR).log_(), dct, out=out[block * _BLOCK : (block + 1) * _BLOCK])

    return out.mul_(lifter)


class Differences:
    """First and second differences over time of utterances that lie one behind another.

    ``d[t] = Σ_k k (x[t + k] - x[t - k]) / (2 Σ_k k²)``, k = 1, 2, the first and the last frame repeated beyond the
    edges (torchaudio's ``compute_deltas``, Kaldi's ``add-deltas``).
    """

    _REACH: Final = 2

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        """:param counts: The number of frames of each utterance."""
        reach = self._REACH

        sources, centres = [np.empty(0, np.int64)], [np.empty(0, np.int64)]

        start = padded_start = 0

        for count in counts:
            if count == 0:
                continue

            sources.append(np.clip(np.arange(-reach, count + reach), 0, count - 1) + start)
            centres.append(np.arange(padded_start, padded_start + count))

            start += count
            padded_start += count + 2 * reach

        # Which frame stands in each row once both edges of every utterance are repeated; which differences to keep.
        self._sources = torch.from_numpy(np.concatenate(sources)).to(device)
        self._centres = torch.from_numpy(np.concatenate(centres)).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """
        :param x: *Shape:* (M, C).
        :returns: *Shape:* Same as ``x``.
        """
        if len(x) == 0:
            return x.clone()

        p = x[self._sources]

        d = p[4:] - p[:-4]

        return d.mul_(2.0).add_(p[3:-1]).sub_(p[1:-3]).mul_(0.1)[self._centres]


def splice(x: Tensor, counts: Sequence[int], width: int) -> Tensor:
    """Put ``width`` neighbouring frames side by side, the edges of every utterance repeated.

    :param x: *Shape:* (M, C).
    :param width: An odd number; the frame itself is in the middle.
    :returns: *Shape:* (M, width C).
    """
    if width == 1 or len(x) == 0:
        return x.repeat(1, width)

    starts = np.repeat(np.cumsum(counts) - counts, counts)
    ends = np.repeat(np.cumsum(counts) - 1, counts)

    times = np.arange(len(x))

    half = width // 2

    columns = [np.clip(times + k, starts, ends) for k in range(-half, half + 1)]

    index = torch.from_numpy(np.stack(columns, axis=1)).to(x.device)  # (M, width)

    return x[index].view(len(x), -1)


@lru_cache(maxsize=8)
def _tables(device: str) -> _Tables:
    # torchaudio's own tables: made in float32, their rounding shows in the fourth digit of silent frames.
    from torchaudio.compliance.kaldi import get_mel_banks
    from torchaudio.functional import create_dct

    # From 20 Hz to half the sample rate, no warping; the last bin of the spectrum (that frequency) belongs to no mel.
    mel, _ = get_mel_banks(_NUM_MELS, _FFT, float(SAMPLE_RATE), _LOW_FREQUENCY, 0.0, 0.0, 0.0, 1.0)  # (23, 256)

    mel = pad(mel, (0, 1, 0, _COLUMNS - _NUM_MELS)).repeat_interleave(2, dim=1)

    dct = create_dct(_NUM_MELS, _NUM_MELS, norm="ortho")  # (23, 23)

    dct[:, 0] = math.sqrt(1.0 / _NUM_MELS)

    dct = pad(dct[:, :NUM_CEPSTRA], (0, 0, 0, _COLUMNS - _NUM_MELS))

    n = torch.arange(NUM_CEPSTRA)

    lifter = 1.0 + 0.5 * _LIFTER * torch.sin(math.pi * n / _LIFTER)

    window = torch.hann_window(RECEPTIVE_FIELD, periodic=False).pow(0.85)  # povey

    return _Tables(*(t.contiguous().to(device) for t in (window, mel.T, dct, lifter)))
