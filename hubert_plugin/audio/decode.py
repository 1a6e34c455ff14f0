"""Decoding with libsndfile, and distrust of what headers say.

libsndfile hides most truncations: it cuts the announced length of WAV, AIFF and AU files to what is there, and
estimates the length of an MP3 without a Xing/Info frame from its first frame. Hence:

- the lengths that it found fault with are read from its log;
- MP3 is decoded to be measured, at thousands of times real time;
- FLAC must decode to its announced end. To measure it, the last sample is sought, which finds a cut file cheaply;
  a FLAC of unannounced length (as written to a pipe) is refused, for libsndfile cannot find its end.

What remains: a cut Ogg or NIST file looks like a shorter one (the sample count of a manifest made before catches it),
and an MP3 that has no Xing/Info frame, has a varying bit rate and starts above its mean rate ends early in libsndfile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

from hubert_plugin.audio.source import AudioSource, open_slice, read_head, unreadable
from hubert_plugin.errors import AudioError

MAX_HEADER_SLACK: Final = 64
"""By how many bytes a header may overstate the data: some writers count the header in, or a padding byte."""

_BLOCK: Final = 1 << 16  # frames
_MAX_SINGLE_READ: Final = 1 << 27  # frames; larger announcements are read in blocks, for they may be nonsense
_UNKNOWN: Final = 1 << 48  # frames; libsndfile says 2^63 - 1 for a FLAC of unannounced length

# Streams to a pipe announce one of the largest numbers of their field, or nearly.
_PLACEHOLDER_SIZE: Final = 0x7FFFF000

_OVERSTATED = re.compile(r"^\s*(?:data|riff|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


@contextmanager
def open_sound(source: AudioSource, *, in_memory: bool = True) -> Iterator[soundfile.SoundFile]:
    """Open ``source`` for decoding.

    :param in_memory: For a slice of an archive: whether to read all its bytes at once.
    :raises AudioError: It is missing, no audio, truncated by its header's own word, or has no samples.
    """
    with ExitStack() as stack:
        try:
            if source.offset is None:
                file: object = os.fsencode(source.path)
            else:
                file = stack.enter_context(open_slice(source, in_memory=in_memory))

            sound = stack.enter_context(soundfile.SoundFile(file))
        except (soundfile.SoundFileError, OSError) as ex:
            raise unreadable(source, ex) from ex

        _check_header(sound, source)

        yield sound


def count_frames(sound: soundfile.SoundFile, source: AudioSource) -> int:
    """Return the number of samples per channel (of the segment), decoding where the header is no proof.

    :raises AudioError: The audio ends early or is damaged.
    """
    count = 0

    if source.stop is not None:
        _check_segment(sound, source)

        return source.stop - source.start

    try:
        if sound.format != "MP3":
            if sound.format == "FLAC":
                sound.seek(sound.frames - 1)

                if len(sound.read(1)) == 0:
                    raise _damaged(sound, source, count)

            return sound.frames

        while num_read := len(sound.read(_BLOCK, dtype="float32", always_2d=True)):
            count += num_read
    except soundfile.SoundFileError as ex:
        raise _damaged(sound, source, count) from ex

    _check_count(sound, source, count)

    return count


def read_frames(sound: soundfile.SoundFile, source: AudioSource) -> NDArray[np.float32]:
    """Decode all samples (of the segment), nominally in [-1, 1]. *Shape:* (n, channels).

    :raises AudioError: The audio ends early or is damaged.
    """
    count = 0

    if source.stop is not None:
        return _read_segment(sound, source, source.stop)

    try:
        if sound.frames <= _MAX_SINGLE_READ:
            frames = sound.read(dtype="float32", always_2d=True)
        else:
            blocks = []

            while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)

                count += len(block)

            frames = np.concatenate(blocks) if blocks else np.empty((0, sound.channels), np.float32)
    except soundfile.SoundFileError as ex:
        raise _damaged(sound, source, count) from ex

    _check_count(sound, source, len(frames))

    return frames


def _read_segment(sound: soundfile.SoundFile, source: AudioSource, stop: int) -> NDArray[np.float32]:
    _check_segment(sound, source)

    count = 0

    try:
        sound.seek(source.start)

        frames = sound.read(stop - source.start, dtype="float32", always_2d=True)

        count = len(frames)
    except soundfile.SoundFileError as ex:
        raise _damaged(sound, source, count) from ex

    if count != stop - source.start:
        raise _damaged(sound, source, count)

    return frames


def _check_segment(sound: soundfile.SoundFile, source: AudioSource) -> None:
    assert source.stop is not None

    if not source.start < source.stop <= sound.frames:
        raise AudioError(
            f"'{source}' is no segment of its audio, which has {sound.frames} samples: expected a start before a stop, "
            "and the stop within. Was the audio changed after the manifest was made?"
        )


def _check_header(sound: soundfile.SoundFile, source: AudioSource) -> None:
    for match in _OVERSTATED.finditer(sound.extra_info):
        stated, found = int(match[1]), int(match[2])

        if found + MAX_HEADER_SLACK < stated < _PLACEHOLDER_SIZE:
            raise AudioError(
                f"'{source}' is truncated: its header announces {stated} bytes of audio, but only {found} are there."
            )

    if sound.frames >= _UNKNOWN:
        raise AudioError(
            f"'{source}' does not say how long it is (audio written to a pipe?), expected a number of samples in its "
            "header. Encode it again into a file."
        )

    if sound.frames <= 0:
        raise AudioError(f"'{source}' has zero samples: expected audio, found only a header.")


def _check_count(sound: soundfile.SoundFile, source: AudioSource, count: int) -> None:
    if count < sound.frames and (sound.format != "MP3" or _mp3_states_length(source)):
        raise _damaged(sound, source, count)

    if count == 0:
        raise AudioError(f"'{source}' has zero samples: expected audio, but nothing could be decoded.")


def _mp3_states_length(source: AudioSource) -> bool:
    """Tell whether an MP3 starts with a Xing or Info frame, so that its length is stated and not estimated."""
    head = read_head(source, 0, 10)
    start = 0

    if head[:3] == b"ID3" and len(head) == 10:
        # An ID3v2 tag: 10 bytes, then as many as its last four bytes say in groups of seven bits.
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))

    frame = read_head(source, start, 256)

    return b"Xing" in frame or b"Info" in frame


def _damaged(sound: soundfile.SoundFile, source: AudioSource, count: int) -> AudioError:
    found = f"only {count} can be decoded" if count else "they cannot be decoded to the end"

    return AudioError(f"'{source}' is truncated or damaged: its header announces {sound.frames} samples, but {found}.")
