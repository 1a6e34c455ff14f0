"""One utterance: from its key to a recorded signal with the times of its phones and words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.demo.channel import RESAMPLE_UP, apply_channel, resample
from hubert_plugin.demo.phones import SILENCE, SampleSegment, find_segments
from hubert_plugin.demo.speakers import Level, Speaker
from hubert_plugin.frames import SAMPLE_RATE

if TYPE_CHECKING:
    from hubert_plugin.demo.espeak import Espeak, Speech


@dataclass(frozen=True)
class Rendering:
    """A signal at 16 kHz and what is said in it."""

    pcm: NDArray[np.int16]
    """*Shape:* (n,)."""

    phones: list[SampleSegment]

    words: list[SampleSegment]


def render(engine: Espeak, speaker: Speaker, level: Level, text: Sequence[str], key: str) -> Rendering:
    """Let ``speaker`` say ``text``. Whatever is random is drawn from ``key``."""
    rng = Random(f"audio/{key}")

    speech = engine.say(
        " ".join(text) + ".",
        speaker.voice,
        wpm=speaker.wpm + rng.randint(-8, 8),
        pitch=speaker.pitch + rng.randint(-3, 3),
        pitch_range=speaker.pitch_range,
        seed=rng.randint(1, 2**31 - 1),
    )

    # The engine's rate and 16 kHz are as 441 to 320; a speaker's warp stands in for 441.
    voice = resample(speech.pcm / 32768, RESAMPLE_UP, speaker.warp)

    lead, tail = (int(SAMPLE_RATE * rng.uniform(0.10, 0.35)) for _ in range(2))

    signal = apply_channel(voice, level, rng, lead=lead, tail=tail)

    peak = rng.uniform(0.3, 0.8)

    pcm = np.round(signal * (peak * 32767 / np.abs(signal).max())).astype(np.int16)

    def to_output(sample: int) -> int:
        return lead + round(sample * RESAMPLE_UP / speaker.warp)

    phones = _place_phones(find_segments(speech.pcm, speech.phones, engine.sample_rate), to_output, len(pcm))

    return Rendering(pcm, phones, _place_words(speech, text, phones, to_output))


def _place_phones(
    segments: Sequence[SampleSegment], to_output: Callable[[int], int], num_samples: int
) -> list[SampleSegment]:
    """Bring ``segments`` to the recording's clock and fill its begin and end with silence."""
    placed: list[SampleSegment] = []

    start = 0

    for end, phone in (
        (to_output(segments[0][0]), SILENCE),
        *((to_output(end), phone) for _, end, phone in segments),
        (num_samples, SILENCE),
    ):
        if end <= start:
            continue

        if placed and placed[-1][2] == SILENCE == phone:
            placed[-1] = (placed[-1][0], end, phone)
        else:
            placed.append((start, end, phone))

        start = end

    return placed


def _place_words(
    speech: Speech, text: Sequence[str], phones: Sequence[SampleSegment], to_output: Callable[[int], int]
) -> list[SampleSegment]:
    """Return the words' times: from a word's event to the next one's, less the silence at both ends.

    eSpeak may say several words in one breath and reports only the first of them: its span then has the text of all.
    """
    first_characters = [0, *accumulate(len(word) + 1 for word in text)][: len(text)]

    # The index of the word that each event announces; the end of the text closes the list.
    starts: dict[int, int] = {}

    for character, sample in speech.words:
        starts.setdefault(bisect_right(first_characters, max(character, 0)) - 1, to_output(sample))

    indices = sorted(starts)

    words: list[SampleSegment] = []

    for index, following in zip(indices, [*indices[1:], len(text)], strict=True):
        begin, end = starts[index], starts.get(following, phones[-1][1])

        sounding = [(a, b) for a, b, phone in phones if phone != SILENCE and b > begin and a < end]
        if sounding:
            words.append((max(begin, sounding[0][0]), min(end, sounding[-1][1]), " ".join(text[index:following])))

    return words
