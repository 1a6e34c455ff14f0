"""Levels of difficulty, and the speakers of a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much speakers and recordings vary. Pairs are the ends of a uniform distribution."""

    warp: tuple[int, int]
    """Samples at 22,050 Hz that become 320 samples at 16,000 Hz: 441 leaves the voice as it is, fewer lower formants
    and pitch and slow it down, more do the opposite."""

    pitch: tuple[int, int]
    """The speakers' mean pitch, of 100."""

    wpm: tuple[int, int]
    """The speakers' words a minute."""

    snr: tuple[float, float]
    """Speech over noise, in dB. Never infinite: digital silence has the logarithm of nothing as MFCC."""

    reverberation: tuple[float, float] | None
    """The time, in seconds, in which the room's echo falls by 60 dB."""

    band_gain: float
    """The largest gain or loss of a band of frequencies, in dB."""


LEVELS: Final = {
    "clean": Level(warp=(441, 441), pitch=(40, 60), wpm=(155, 175), snr=(50, 60), reverberation=None, band_gain=0),
    "easy": Level(warp=(405, 480), pitch=(30, 75), wpm=(135, 205), snr=(22, 40), reverberation=None, band_gain=3),
    # MFCC units of this level are about as pure as those of LibriSpeech, so it leaves HuBERT as much room as real
    # speech: PNMI 0.22 / 0.25 / 0.30 for K = 50 / 100 / 500; at `easy` it is 0.46 for K = 100.
    "hard": Level(
        warp=(384, 515), pitch=(15, 90), wpm=(125, 220), snr=(8, 25), reverberation=(0.08, 0.35), band_gain=8
    ),
}


def _words(text: str) -> list[str]:
    return text.split()


# Left out: robot, whisper, echo and croak variants, and those whose words an independent aligner found badly.
_VARIANTS: Final = _words(
    """
    m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Alex Andrea Annie Denis Diogo Gene Hugo Jacky Marco Mario Michael Mike
    Reed adam anika antonio aunty belinda benjamin caleb david ed edward grandma grandpa gustave iven john linda max
    michel miguel norbert pablo paul pedro quincy rob robert sandro steph travis victor klatt klatt2 klatt3 klatt4
    klatt5 klatt6
    """
)

NUM_VOICES: Final = len(_VARIANTS)


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A voice and its habits."""

    id: str
    """``s000``, ``s001``, …"""

    voice: str
    """The name under which eSpeak knows the voice."""

    pitch: int
    """Of 100."""

    pitch_range: int
    """Of 100."""

    wpm: int
    """Words a minute before the warp."""

    warp: int
    """See :attr:`Level.warp`."""


def make_speakers(seed: int, level: Level, num_train: int, num_valid: int) -> tuple[list[Speaker], list[Speaker]]:
    """Return the speakers for training and those held out for validation.

    Held-out speakers have voices that no training speaker has as long as there are more than ``num_valid`` voices.
    Where there are more speakers than voices, some share one, each with a warp, pitch and rate of its own.
    """
    voices = list(_VARIANTS)

    Random(f"voices/{seed}").shuffle(voices)

    num_reserved = min(num_valid, len(voices) - 1)

    held_out, shared = voices[:num_reserved], voices[num_reserved:]

    train = [_make_speaker(seed, i, level, shared[i % len(shared)]) for i in range(num_train)]
    valid = [_make_speaker(seed, num_train + i, level, held_out[i % len(held_out)]) for i in range(num_valid)]

    return train, valid


def _make_speaker(seed: int, index: int, level: Level, variant: str) -> Speaker:
    rng = Random(f"speaker/{seed}/{index}")

    return Speaker(
        id=f"s{index:03d}",
        voice=f"en-us+{variant}",
        pitch=rng.randint(*level.pitch),
        pitch_range=rng.randint(30, 70),
        wpm=rng.randint(*level.wpm),
        warp=rng.choice(_smooth_numbers(*level.warp)),
    )


def _smooth_numbers(low: int, high: int) -> list[int]:
    """Return the numbers from ``low`` to ``high`` without prime factors above 11: Fourier transforms of such lengths
    are fast, and resampling (:mod:`hubert_plugin.demo.channel`) is done by them."""
    return [n for n in range(low, high + 1) if pow(2 * 3 * 5 * 7 * 11, 10, n) == 0]
