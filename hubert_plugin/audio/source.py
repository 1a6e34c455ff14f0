"""Where an utterance lies: a file, or a byte range of an uncompressed archive, or a segment of one of these.

A manifest names them in one string, relative to its root, the first two as fairseq does: ``dir/utt.flac``,
``dir/archive.zip:offset:length`` (``.tar`` and kaldi's ``.ark`` likewise), offset and length in bytes; a segment is
``dir/recording.flac[start:stop]``, in samples at the file's own rate, the last one not included.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from hubert_plugin.errors import AudioError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ARCHIVE_EXTENSIONS: Final = (".tar", ".zip")
"""Archives whose members can be read in place."""

_SLICE = re.compile(r"(?P<path>.+\.(?:zip|tar|ark)):(?P<offset>[0-9]+):(?P<length>[0-9]+)", re.IGNORECASE | re.DOTALL)

_SEGMENT = re.compile(r"(?P<ref>.+)\[(?P<start>[0-9]+):(?P<stop>[0-9]+)\]", re.DOTALL)


@dataclass(frozen=True)
class AudioSource:
    """The bytes of one utterance."""

    path: str
    """The full path of the file or archive."""

    offset: int | None = None
    """The first byte inside the archive; ``None`` for a file of its own."""

    length: int = 0
    """The number of bytes inside the archive."""

    start: int = 0
    """The first sample of the segment, at the rate of the file."""

    stop: int | None = None
    """The first sample after the segment; ``None``: the utterance is the whole audio."""

    @override
    def __str__(self) -> str:
        text = self.path if self.offset is None else f"{self.path}:{self.offset}:{self.length}"

        return text if self.stop is None else f"{text}[{self.start}:{self.stop}]"


def resolve_ref(root: Path | str, ref: str) -> AudioSource:
    """Return where the manifest entry ``ref`` lies; nothing is opened."""
    path, offset, length = split_ref(ref)

    _, start, stop = split_segment(ref)

    return AudioSource(os.path.join(root, path), offset, length, start, stop)


def split_segment(ref: str) -> tuple[str, int, int | None]:
    """Split a manifest entry into that of the whole audio, and the samples of the segment (0 and ``None``: all)."""
    if not ref.endswith("]") or (match := _SEGMENT.fullmatch(ref)) is None:
        return ref, 0, None

    return match["ref"], int(match["start"]), int(match["stop"])


def split_ref(ref: str) -> tuple[str, int | None, int]:
    """Split a manifest entry into path, offset and length in bytes; the offset of an ordinary file is ``None``.

    Which segment of it is meant says :func:`split_segment`.
    """
    ref = split_segment(ref)[0]

    # The regular expression costs more than all the rest for the ordinary entry, which ends in no digit.
    if not ref[-1:].isdigit() or (match := _SLICE.fullmatch(ref)) is None:
        return ref, None, 0

    return match["path"], int(match["offset"]), int(match["length"])


@contextmanager
def open_slice(source: AudioSource, *, in_memory: bool) -> Iterator[BytesIO | FileSlice]:
    """Open the byte range of an archive as a file of its own.

    :param in_memory: If ``True``, all bytes are read at once (to decode them); if ``False``, when asked for (headers).
    :raises AudioError: The archive is missing, or the range is not inside it.
    """
    if source.offset is None:
        raise ValueError(f"`source` must be a slice of an archive, but is '{source}' instead.")

    try:
        fd = os.open(source.path, os.O_RDONLY)
    except OSError as ex:
        raise unreadable(source, ex) from ex

    try:
        size = os.fstat(fd).st_size

        if source.length == 0 or source.offset + source.length > size:
            raise AudioError(
                f"'{source}' is outside its archive: expected {source.length} bytes from byte {source.offset} on, but "
                f"the archive has {size} bytes. Was it changed after the manifest was made?"
            )

        window = FileSlice(fd, source.offset, source.length)

        yield BytesIO(window.read(source.length)) if in_memory else window
    except OSError as ex:
        raise unreadable(source, ex) from ex
    finally:
        os.close(fd)


def read_head(source: AudioSource, start: int, size: int) -> bytes:
    """Return up to ``size`` bytes from byte ``start`` of the utterance on."""
    with open(source.path, "rb") as fp:
        if source.offset is None:
            fp.seek(start)
        else:
            fp.seek(source.offset + start)

            size = min(size, max(0, source.length - start))

        return fp.read(size)


def unreadable(source: AudioSource, ex: Exception) -> AudioError:
    """Return the sentence that says why ``source`` could not be opened as audio."""
    try:
        if os.path.isdir(source.path):
            return AudioError(f"'{source}' cannot be read: expected an audio file, found a folder.")

        size = os.stat(source.path).st_size
    except OSError as stat_ex:
        what = "found no file there" if isinstance(stat_ex, FileNotFoundError) else f"found: {stat_ex.strerror}"

        return AudioError(f"'{source}' cannot be read: expected an audio file, {what}.")

    if isinstance(ex, OSError):
        return AudioError(f"'{source}' cannot be read: {ex.strerror or ex}.")

    if size == 0:
        return AudioError(f"'{source}' cannot be read: expected an audio file, found an empty one (0 bytes).")

    reason = str(getattr(ex, "error_string", "") or ex).strip().rstrip(".") or "unknown reason"

    return AudioError(f"'{source}' cannot be read: expected audio that libsndfile can decode, found: {reason}.")


class FileSlice(RawIOBase):
    """A read-only window on an open file. It owns neither the file nor its position, so that threads may share it."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd = fd
        self._offset = offset
        self._length = length
        self._pos = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._fd, min(len(view), max(0, self._length - self._pos)), self._offset + self._pos)
        view[: len(data)] = data

        self._pos += len(data)

        return len(data)

    @override
    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self._pos, SEEK_END: self._length}[whence]

        self._pos = max(0, base + offset)

        return self._pos

    @override
    def tell(self) -> int:
        return self._pos
