"""Finding the members of uncompressed archives (zip, tar, kaldi's arks) as byte ranges that need no unpacking."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from hubert_plugin.errors import AudioError

_PLACEHOLDER_SIZE = 0x7FFFF000  # bytes; streams announce the largest number of their field, or nearly

_LOCAL_HEADER_SIZE = 30  # bytes, up to the name; APPNOTE.TXT of the zip format, section 4.3.7


def iter_archive_members(path: Path | str, extensions: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield name and reference (``archive.zip:offset:length``) of each file in a zip or tar, in the archive's order.

    References start with the bare name of the archive, so they are relative to its folder.

    :param extensions: If given, only members that end so (lower case, with the dot) are looked at.
    :raises AudioError: The archive cannot be read, or such a member is compressed, encrypted or sparse: its bytes do
        not lie in the archive as they are.
    """
    path = Path(path)

    try:
        if path.suffix.lower() == ".zip":
            members = _iter_zip(path, extensions)
        elif path.suffix.lower() == ".tar":
            members = _iter_tar(path, extensions)
        else:
            raise AudioError(f"'{path}' is not an archive that can be read in place: expected .zip or .tar.")

        for name, offset, length in members:
            yield name, f"{path.name}:{offset}:{length}"
    except (OSError, EOFError, struct.error, zipfile.BadZipFile, tarfile.TarError) as ex:
        raise AudioError(f"'{path}' cannot be read as an archive: {ex}.") from ex


def locate_in_ark(path: Path | str, offset: int, end: int | None = None) -> tuple[int, int]:
    """Return the byte range of the audio that begins at ``offset`` of a kaldi archive: its offset and length.

    The audio is a WAV file, as kaldi writes it, whose header tells the length; a file after kaldiio's mark ``AUDIO``
    and a length; or another file (FLAC) that goes on to ``end``.

    :param end: Where the next object begins, as far as is known; ``None``: the end of the archive.
    :raises AudioError: There is no audio, or the archive ends before it does.
    """
    try:
        with open(path, "rb") as fp:
            size = os.fstat(fp.fileno()).st_size

            # Systems refuse to go to places that no file reaches.
            fp.seek(min(offset, size))

            head = fp.read(16)
    except OSError as ex:
        raise AudioError(f"'{path}' cannot be read: {ex.strerror or ex}.") from ex

    end = size if end is None else min(end, size)

    if head[:5] == b"AUDIO" and len(head) > 5:
        width = head[5]

        start, length = offset + 6 + width, int.from_bytes(head[6 : 6 + width], "little")
    elif head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        start, length = offset, 8 + int.from_bytes(head[4:8], "little")

        if length >= _PLACEHOLDER_SIZE:  # written to a pipe, before the length was known
            length = end - offset
    elif head[:4] in (b"fLaC", b"OggS"):
        start, length = offset, end - offset
    else:
        raise AudioError(
            f"'{path}:{offset}' holds no audio: expected a WAV or FLAC file, found {head[:8]!r}"
            f"{' (the archive ends there or before)' if not head else ''}."
        )

    if start + length > size:
        raise AudioError(
            f"'{path}:{offset}' is cut off: {length:,} bytes of audio were announced from byte {start:,} on, but the "
            f"archive has {size:,} bytes."
        )

    return start, length


def _iter_zip(path: Path, extensions: Collection[str] | None) -> Iterator[tuple[str, int, int]]:
    with path.open("rb") as fp, zipfile.ZipFile(fp) as archive:
        for info in archive.infolist():
            if info.is_dir() or not _is_wanted(info.filename, extensions):
                continue

            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
                how = "encrypted" if info.flag_bits & 0x1 else "compressed"

                raise AudioError(
                    f"'{path}' cannot be read in place: its member '{info.filename}' is {how}, expected a stored one. "
                    "Pack it again without compression (`zip -0 -r archive.zip folder`) or unpack it."
                )

            yield info.filename, _zip_data_offset(fp, info, path), info.file_size


def _zip_data_offset(fp: BinaryIO, info: zipfile.ZipInfo, path: Path) -> int:
    # The length of the extra field may differ between the central directory and the local header; the local one counts.
    fp.seek(info.header_offset)

    header = fp.read(_LOCAL_HEADER_SIZE)

    if len(header) < _LOCAL_HEADER_SIZE or header[:4] != b"PK\x03\x04":
        raise AudioError(f"'{path}' is damaged: no member starts at byte {info.header_offset} ('{info.filename}').")

    name_length, extra_length = struct.unpack_from("<HH", header, 26)

    return info.header_offset + _LOCAL_HEADER_SIZE + name_length + extra_length


def _iter_tar(path: Path, extensions: Collection[str] | None) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if not info.isreg() or not _is_wanted(info.name, extensions):
                continue

            if info.issparse():
                raise AudioError(f"'{path}' cannot be read in place: its member '{info.name}' is a sparse file.")

            yield info.name, info.offset_data, info.size


def _is_wanted(name: str, extensions: Collection[str] | None) -> bool:
    return extensions is None or os.path.splitext(name)[1].lower() in extensions
