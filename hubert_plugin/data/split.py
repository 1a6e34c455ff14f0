"""Dividing a corpus into training and validation, the same way every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from hubert_plugin.errors import ConfigError, format_problems

T = TypeVar("T")


def compile_speaker_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression whose first group is the speaker.

    :raises ConfigError: It is no regular expression, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as ex:
        raise ConfigError(f"`speaker_pattern` must be a regular expression, but '{pattern}' is none: {ex}.") from ex

    if compiled.groups < 1:
        raise ConfigError(
            f"`speaker_pattern` must have a group that holds the speaker, but '{pattern}' has none. For LibriSpeech: "
            "`([0-9]+)/[0-9]+/[^/]+$`."
        )

    return compiled


def split_by_utterance(
    items: Sequence[T], name: Callable[[T], str], valid_fraction: float, seed: int
) -> tuple[list[T], list[T]]:
    """Divide ``items`` into training and validation.

    Where an item goes depends on ``seed`` and its name alone, so adding files moves none of the others; but neither
    side stays empty (with two items or more and a fraction above 0).

    :param valid_fraction: The expected share of the items in validation, in [0, 1).
    """
    return _split(items, [name(i) for i in items], valid_fraction, seed)


def split_by_speaker(
    items: Sequence[T], name: Callable[[T], str], pattern: str, valid_fraction: float, seed: int
) -> tuple[list[T], list[T], int]:
    """Divide ``items`` into training and validation so that no speaker is on both sides.

    :param pattern: A regular expression that is searched in the name; its first group is the speaker.
    :param valid_fraction: The expected share of the speakers in validation, in [0, 1).
    :returns: Training, validation, and the number of speakers.
    :raises ConfigError: The pattern cannot be used, finds no speaker in some name, or finds a single speaker.
    """
    compiled = compile_speaker_pattern(pattern)

    speakers = []
    unmatched = []

    for item in items:
        match = compiled.search(name(item))

        if match is None or not match[1]:
            unmatched.append(name(item))
        else:
            speakers.append(match[1])

    if unmatched:
        what = "no path" if not speakers else f"only {len(speakers)} of {len(items)} paths"

        raise ConfigError(
            format_problems(
                f"`speaker_pattern` '{pattern}' finds a speaker in {what}. It is searched in paths like "
                f"'{unmatched[0]}'. Without a speaker:",
                [repr(n) for n in unmatched],
            )
        )

    num_speakers = len(set(speakers))

    if num_speakers == 1 and valid_fraction > 0:
        raise ConfigError(
            f"`speaker_pattern` '{pattern}' finds the same speaker, '{speakers[0]}', in all {len(items)} paths, so no "
            f"speaker can be held out for validation. The first path is '{name(items[0])}'."
        )

    train, valid = _split(items, speakers, valid_fraction, seed)

    return train, valid, num_speakers


def _split(items: Sequence[T], keys: Sequence[str], valid_fraction: float, seed: int) -> tuple[list[T], list[T]]:
    positions = {key: _position(seed, key) for key in keys}

    chosen = {key for key, position in positions.items() if position < valid_fraction}

    if valid_fraction > 0 and len(positions) > 1:
        # The first and the last to be chosen as the fraction grows, so a larger fraction only ever adds.
        if not chosen:
            chosen = {min(positions, key=lambda k: (positions[k], k))}
        elif len(chosen) == len(positions):
            chosen.remove(max(positions, key=lambda k: (positions[k], k)))

    train = [item for item, key in zip(items, keys, strict=True) if key not in chosen]
    valid = [item for item, key in zip(items, keys, strict=True) if key in chosen]

    return train, valid


def _position(seed: int, key: str) -> float:
    """Return a number in [0, 1) that stands for ``key``: the first 53 bits of a digest."""
    digest = hashlib.blake2b(f"{seed}\n{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()

    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
