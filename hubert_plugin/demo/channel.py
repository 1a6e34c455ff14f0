"""What lies between a voice and its recording: resampling, band gains, reverberation and noise.

Everything is done by Fourier transforms of numpy (importing scipy's signal processing costs every worker process two
seconds). Nothing here moves a phone in time: resampling and band gains have zero phase, and the first tap of the room
is the direct sound.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.demo.speakers import Level
from hubert_plugin.frames import SAMPLE_RATE

Signal = NDArray[np.float64]
"""*Shape:* (n,)."""

RESAMPLE_UP: Final = 320
"""Samples at 16 kHz that ``warp`` samples of the engine become; see :attr:`hubert_plugin.demo.speakers.Level.warp`."""

_BAND_EDGES: Final = np.array([0.0, 250, 500, 1000, 2000, 3000, 4500, 6000, 8000])
"""In Hz; between them gains are interpolated."""

_ROOM_GAIN: Final = 0.08
"""Standard deviation of the room's response at its begin, where the direct sound is 1."""

_ROLL_OFF: Final = 0.05
"""The share of the pass band in which resampling fades out, so that edges do not ring."""


def resample(signal: Signal, up: int, down: int) -> Signal:
    """Return ``signal`` with ``up`` samples for every ``down``; sample ``i`` comes to lie at ``i * up / down``.

    ``up`` must be less than ``down``.

    :returns: *Shape:* (ceil(n up / down),).
    """
    # A whole number of blocks, so that both transforms stand for the same time; one more, so that the end, which a
    # transform joins to the begin, is silent.
    num_blocks = _fast_length(-(-len(signal) // down) + 1)

    num_outputs = num_blocks * up

    spectrum = np.fft.rfft(signal, num_blocks * down)[: num_outputs // 2 + 1]

    fade = int(len(spectrum) * _ROLL_OFF)

    spectrum[-fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / fade)

    return np.fft.irfft(spectrum, num_outputs)[: -(-len(signal) * up // down)] * (up / down)


def apply_channel(signal: Signal, level: Level, rng: Random, *, lead: int, tail: int) -> Signal:
    """Return ``signal`` as recorded: with band gains, reverberation and noise.

    :param signal: At 16 kHz. *Shape:* (n,).
    :param lead: Samples of noise to put before the signal; ``tail``: after it.
    :returns: *Shape:* (lead + n + tail,).
    """
    noise_rng = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))

    num_samples = lead + len(signal) + tail

    room = _make_room(level, rng, noise_rng)

    length = _fast_length(num_samples + len(room))

    padded = np.zeros(length)

    padded[lead : lead + len(signal)] = signal

    spectrum = np.fft.rfft(padded)

    frequencies = np.linspace(0, SAMPLE_RATE / 2, len(spectrum))

    if level.band_gain:
        gains = [rng.uniform(-level.band_gain, level.band_gain) for _ in _BAND_EDGES]

        spectrum *= 10 ** (np.interp(frequencies, _BAND_EDGES, gains) / 20)

    if len(room) > 1:
        spectrum *= np.fft.rfft(room, length)

    recorded = np.fft.irfft(spectrum, length)[:num_samples]

    # White noise through one pole, so that it falls towards high frequencies as a room's noise does.
    pole = rng.uniform(0.3, 0.95)

    white = noise_rng.standard_normal(2 * len(spectrum)).view(np.complex128)

    noise = np.fft.irfft(white / (1 - pole * np.exp(-1j * np.pi / (SAMPLE_RATE / 2) * frequencies)), length)[
        :num_samples
    ]

    snr = rng.uniform(*level.snr)

    power = np.sqrt(np.mean(recorded[lead : lead + len(signal)] ** 2))

    return recorded + noise * (power / noise.std() * 10 ** (-snr / 20))


def _make_room(level: Level, rng: Random, noise_rng: np.random.Generator) -> Signal:
    """Return the response of a room: the direct sound, then noise that decays exponentially."""
    if level.reverberation is None:
        return np.ones(1)

    decay = rng.uniform(*level.reverberation)

    times = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE

    # exp(-6.9) is -60 dB.
    room = noise_rng.standard_normal(len(times)) * np.exp(-6.9 * times / decay) * _ROOM_GAIN

    room[0] = 1.0

    return room


@cache
def _fast_length(length: int) -> int:
    """Return the smallest even number from ``length`` on whose prime factors are 2, 3 and 5."""
    while length % 2 or pow(30, 24, length):
        length += 1

    return length
