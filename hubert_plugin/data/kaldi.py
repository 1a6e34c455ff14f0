"""Kaldi's files, through kaldiio: the only module that imports it.

A *table* maps keys (utterances) to objects. Its objects lie one after another in an archive (``.ark``: key, space,
object), or anywhere, with a script file (``.scp``) that has a line ``key path:offset`` for each. Objects are matrices
(float, double or compressed; binary or text) and vectors of 32-bit integers (alignments).

kaldiio decodes and writes the matrices. Everything around is done here, because kaldiio would run commands
(``cat x |``) and unpickle Python objects that it meets in files: here commands run on the explicit word only, and
pickles never. Text matrices and vectors of integers are read here as well: kaldiio takes a text matrix that begins
with ``0`` for integers, stumbles over empty integer vectors, and reads the others byte by byte.

Problems are told as :class:`KaldiFormatError`; whoever asked says in whose name (features, labels, manifest).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.kaldi_scp import ALLOW_PIPES_ADVICE, open_file, read_scp, run_command, unreadable
from hubert_plugin.data.kaldi_scp import KaldiFormatError as KaldiFormatError
from hubert_plugin.data.kaldi_scp import ScpEntry as ScpEntry
from hubert_plugin.data.kaldi_scp import check_key as check_key

INT_ITEM: Final = np.dtype([("num_bytes", "u1"), ("value", "<i4")])
"""How kaldi writes an integer in binary: its number of bytes, then its bytes."""

MAX_ROW_OVERSHOOT: Final = 3
"""By how many rows a range may go beyond its matrix: kaldi's own tolerance (``ParseMatrixRangeSpecifier`` in
``util/kaldi-holder.cc``), as segments are rounded to 10 ms and windows do not reach the end."""

_FOREIGN: Final = {
    b"\x1f\x8b": "compressed with gzip",
    b"PKL": "a Python pickle, which can run code when it is read and is never read here",
    b"NPY": "a NumPy array of kaldiio's own format, which kaldi does not know",
    b"AUDIO": "audio",
    b"RIFF": "audio (WAV)",
    b"fLaC": "audio (FLAC)",
}


def open_table(path: Path, *, allow_pipes: bool = False, pipe_advice: str = ALLOW_PIPES_ADVICE) -> list[ScpEntry]:
    """Return where the objects of a table lie: of a script file as it says, of an archive by walking through it.

    The parameters are those of :func:`~hubert_plugin.data.kaldi_scp.read_scp`.

    :raises KaldiFormatError: The file is missing, compressed, malformed or cut off, or a key is repeated.
    """
    path = Path(path)

    if not _is_archive(path):
        return read_scp(path, allow_pipes=allow_pipes, pipe_advice=pipe_advice)

    entries = [entry for entry, _ in _walk(path)]

    if not entries:
        raise KaldiFormatError(f"The kaldi archive '{path}' is empty.")

    return entries


def iter_int_vectors(
    path: Path, *, allow_pipes: bool = False, pipe_advice: str = ALLOW_PIPES_ADVICE
) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Yield the keys and vectors of integers of a table (script file or archive), one after another.

    :raises KaldiFormatError: As :func:`open_table` and :func:`read_int_vector`.
    """
    path = Path(path)

    if _is_archive(path):
        for entry, vector in _walk(path):
            yield entry.key, _check_int_vector(entry, vector)
    else:
        for entry in read_scp(path, allow_pipes=allow_pipes, pipe_advice=pipe_advice):
            yield entry.key, read_int_vector(entry)


def read_matrix(entry: ScpEntry) -> NDArray[np.float32]:
    """Read a matrix. *Shape:* (M, D).

    :raises KaldiFormatError: It is missing, cut off, or no matrix, or the entry's range is not inside it.
    """
    matrix = _read(entry)

    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise KaldiFormatError(
            f"'{entry.key}' ({entry.place}) must be a matrix, but is a vector of "
            f"{len(matrix)} {'integers' if matrix.dtype.kind == 'i' else 'numbers'}."
        )

    if entry.ranges:
        matrix = _cut(matrix, entry)

    return np.ascontiguousarray(matrix, np.float32)


def read_int_vector(entry: ScpEntry) -> NDArray[np.int32]:
    """Read a vector of integers, such as an alignment. *Shape:* (M,).

    :raises KaldiFormatError: It is missing, cut off, or holds no integers, or the entry has a range.
    """
    if entry.ranges:
        raise KaldiFormatError(
            f"'{entry.key}' ({entry.place}) must be a whole vector of integers, but has the range {entry.range_text}, "
            "which only matrices can have."
        )

    return _check_int_vector(entry, _read(entry))


def _check_int_vector(entry: ScpEntry, vector: NDArray[Any]) -> NDArray[np.int32]:
    if vector.dtype.kind != "i":
        what = "a matrix" if vector.ndim == 2 else "a vector of real numbers"

        raise KaldiFormatError(f"'{entry.key}' ({entry.place}) must be a vector of integers, but is {what}.")

    return vector


def _cut(matrix: NDArray[Any], entry: ScpEntry) -> NDArray[Any]:
    """Return the entry's range of rows (and columns). *Shape:* (M, D) → (M', D')."""
    for axis, (wanted, size) in enumerate(zip(entry.ranges, matrix.shape, strict=False)):
        first, stop = wanted.start or 0, size if wanted.stop is None else wanted.stop

        limit = size + (MAX_ROW_OVERSHOOT if axis == 0 else 0)

        # `[:]` of nothing is nothing.
        if wanted != slice(None) and not first < min(stop, size) <= stop <= limit:
            raise KaldiFormatError(
                f"'{entry.key}' ({entry.place}) cannot be cut to {entry.range_text}: the matrix has {size} "
                f"{'rows' if axis == 0 else 'columns'}, counted from 0, and the last one of a range belongs to it."
            )

    return matrix[entry.ranges]


def _is_archive(path: Path) -> bool:
    """Tell an archive from a script file: by the name, else by what follows the first key."""
    with open_file(path) as fp:
        head = fp.read(1 << 12)

    if path.suffix in (".ark", ".scp"):
        return path.suffix == ".ark"

    second = head.split(b"\n", 1)[0].split(maxsplit=1)[1:]

    return b"\0B" in head or not second or second[0].lstrip().startswith(b"[") or _is_int_line(second)


def _walk(path: Path) -> Iterator[tuple[ScpEntry, NDArray[Any]]]:
    """Yield place and content of each object of an archive."""
    seen: set[str] = set()

    with open_file(path) as fp:
        while (key := _read_key(fp, path)) is not None:
            if key in seen:
                raise KaldiFormatError(f"The kaldi archive '{path}' has '{key}' twice.")

            seen.add(key)

            entry = ScpEntry(key, str(path), fp.tell())

            yield entry, _read_object(fp, entry)


def write_matrix(fp: IO[bytes], key: str, matrix: NDArray[Any], *, compression_method: int | None = None) -> int:
    """Append a matrix to an archive and return the offset for the script file.

    :param matrix: *Shape:* (M, D), float32 or float64.
    :param compression_method: Kaldi's (2, 3, 5, …); ``None`` writes the values as they are.
    """
    from kaldiio.matio import write_array

    fp.write(f"{key} ".encode("utf-8", "surrogateescape"))

    offset = fp.tell()

    write_array(fp, matrix, compression_method=compression_method)

    return offset


def write_int_vector(fp: IO[bytes], key: str, values: NDArray[Any]) -> int:
    """Append a vector of integers (*Shape:* (M,)) to an archive and return the offset for the script file."""
    items = np.empty(len(values), INT_ITEM)

    items["num_bytes"], items["value"] = 4, values

    fp.write(f"{key} ".encode("utf-8", "surrogateescape"))

    offset = fp.tell()

    fp.write(b"\0B\4" + struct.pack("<i", len(values)) + items.tobytes())

    return offset


def _read(entry: ScpEntry) -> NDArray[Any]:
    if entry.is_command:
        return _read_object(BytesIO(run_command(entry)), entry)

    with open_file(entry.path) as fp:
        if entry.offset is not None:
            try:
                fp.seek(entry.offset)
            except (OverflowError, ValueError, OSError):  # numbers that no file reaches
                raise _ends_before(entry, entry.offset) from None

        return _read_object(fp, entry)


def _read_object(fp: BinaryIO, entry: ScpEntry) -> NDArray[Any]:
    """Read the object at the position of ``fp``: a matrix, a vector or a vector of integers."""
    start = fp.tell()

    head = fp.read(5)

    fp.seek(start)

    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            raise KaldiFormatError(f"'{entry.key}' ({entry.place}) must be a matrix or vector, but is {what}.")

    if not head:
        raise _ends_before(entry, start)

    try:
        if head[:3] == b"\0B\4":
            return _read_int_items(fp)

        if head[:2] == b"\0B":
            from kaldiio.matio import read_matrix_or_vector

            array: NDArray[Any] = read_matrix_or_vector(fp)

            return array

        return _read_text(fp)
    except OSError as ex:
        raise unreadable(Path(entry.path), ex) from ex
    except Exception as ex:  # kaldiio meets a file that ends early with whatever fails first
        raise KaldiFormatError(
            f"'{entry.key}' ({entry.place}) cannot be read: the file is cut off or damaged ({ex or type(ex).__name__})."
        ) from ex


def _ends_before(entry: ScpEntry, start: int) -> KaldiFormatError:
    return KaldiFormatError(
        f"'{entry.key}' should begin at byte {start:,} of '{entry.path}', but the file ends there or before. It may "
        "have been cut off."
    )


def _read_int_items(fp: BinaryIO) -> NDArray[np.int32]:
    fp.read(3)

    size_field = fp.read(4)

    size = struct.unpack("<i", size_field)[0]

    data = fp.read(size * INT_ITEM.itemsize) if size > 0 else b""

    items = np.frombuffer(data, INT_ITEM)

    if size < 0 or len(items) != size or (items["num_bytes"] != 4).any():
        raise ValueError(f"{size} integers were announced, {len(items)} are there")

    return items["value"].astype(np.int32)


def _read_text(fp: BinaryIO) -> NDArray[Any]:
    """Read a text matrix (``[`` rows ``]``), a text vector, or a line of integers."""
    line = fp.readline()

    if not line.lstrip().startswith(b"["):
        return np.array([int(x) for x in line.split()], np.int32)

    lines = [line.lstrip()[1:]]

    while b"]" not in lines[-1]:
        if not (line := fp.readline()):
            raise ValueError("there is no ']' that closes the '['")

        lines.append(line)

    lines[-1] = lines[-1].split(b"]")[0]

    rows = [fields for line in lines if (fields := line.split())]

    # A vector stands on the line of its bracket; the rows of a matrix begin on the next.
    if lines[0].split():
        if len(rows) > 1:
            raise ValueError("a vector must stand on one line")

        return np.array(rows[0], np.float32)

    return np.array(rows, np.float32).reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)


def _read_key(fp: BinaryIO, path: Path) -> str | None:
    """Read the key of the next object; ``None`` at the end of the archive."""
    key = bytearray()

    while (byte := fp.read(1)) != b" ":
        if not byte:
            if key.strip():
                raise KaldiFormatError(f"The kaldi archive '{path}' ends within a key: it is cut off.")

            return None

        if byte == b"\n" and key:  # an empty line of integers may lack its space
            fp.seek(-1, os.SEEK_CUR)
            break

        if byte != b"\n":
            key += byte

        if len(key) > 1 << 12 or byte == b"\0":
            raise KaldiFormatError(f"'{path}' is no kaldi archive: where a key should be, there is other data.")

    return key.decode("utf-8", "surrogateescape")


def _is_int_line(fields: Sequence[bytes]) -> bool:
    return bool(fields) and all(f.lstrip(b"-").isdigit() for f in fields[0].split())
