"""The binary form of labels: one file that is mapped into memory, not read.

``SPLIT.NAME.safetensors`` is a safetensors file, so other tools can read it, with two tensors:

- ``offsets``, int64 (N + 1,): the labels of utterance i are ``values[offsets[i]:offsets[i + 1]]``;
- ``values``: the labels of all utterances one after another, uint8 up to 256 units, int16 up to 32,768, else int32;

and the record that text labels have beside them (:mod:`hubert_plugin.data.label_meta`) as JSON in its metadata. The ids
of the utterances are not in it: the fingerprint of the manifest is, and labels are checked when they are written. So
opening costs the header and two offsets, however many utterances there are. The digest in the record is of the offsets
and values; :func:`verify_binary_labels` compares it, which reads the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.label_meta import FORMAT, check_record
from hubert_plugin.errors import LabelError
from hubert_plugin.files import atomic_path
from hubert_plugin.registry import LabelSetSpec

SUFFIX: Final = ".safetensors"

_TYPES: Final[dict[str, np.dtype[Any]]] = {"U8": np.dtype("u1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4")}

_HEADER_SLACK: Final = 1024
"""What the numbers that are known at the end may add to the header: it has its place before."""

_ALIGNMENT: Final = 64

_CHUNK: Final = 1 << 22
"""How many labels, or bytes, are taken into a digest at a time."""


def binary_path(label_dir: Path, split: str, name: str) -> Path:
    """Return the file of the binary labels ``<split>.<name>``."""
    return Path(label_dir) / f"{split}.{name}{SUFFIX}"


@final
class BinaryLabels:
    """An opened file of binary labels; its arrays are mapped."""

    def __init__(self, record: Mapping[str, Any], offsets: NDArray[np.int64], values: NDArray[Any]) -> None:
        self.record, self.offsets, self.values = record, offsets, values


def open_binary_labels(path: Path) -> BinaryLabels:
    """Map the labels in ``path``; only the header, and the first and last offset, are read.

    :raises LabelError: The file is missing, cut off, or holds no labels.
    """
    with _explaining(path):
        header, start, size = _read_header(path)

        record = json.loads(header["__metadata__"][FORMAT])

        offsets = _map(path, size, start, header["offsets"], np.dtype("<i8"))

        values = _map(path, size, start, header["values"], _TYPES[header["values"]["dtype"]])

    check_record(Path(path), record)

    if len(offsets) != record["num_utterances"] + 1 or offsets[0] != 0 or offsets[-1] != len(values):
        raise LabelError(
            f"The labels '{path}' are damaged: {record['num_utterances']:,} utterances with {len(values):,} labels do "
            f"not go with {len(offsets):,} offsets up to {offsets[-1]:,}. Label again."
        )

    return BinaryLabels(record, offsets, values)


def read_binary_record(path: Path) -> dict[str, Any]:
    """Return the record in ``path``, also where the labels behind it are damaged.

    :raises LabelError: There is none.
    """
    with _explaining(path):
        header, _, _ = _read_header(path)

        record = json.loads(header["__metadata__"][FORMAT])

    check_record(Path(path), record)

    return dict(record)


def verify_binary_labels(path: Path) -> None:
    """Read all labels in ``path`` and compare them with the digest in the record.

    :raises LabelError: They were changed, or the file cannot be opened.
    """
    labels = open_binary_labels(path)

    digest = hashlib.sha256()

    for part in (labels.offsets, labels.values):
        for start in range(0, len(part), _CHUNK):
            digest.update(part[start : start + _CHUNK].tobytes())

    if digest.hexdigest()[:16] != labels.record["digest"]:
        raise LabelError(
            f"The labels '{path}' are not those that their record tells of: the digest of the data is "
            f"{digest.hexdigest()[:16]}, but was {labels.record['digest']}. Label again, or copy them again."
        )


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as ex:
        reason = ex.strerror if isinstance(ex, OSError) else ex

        raise LabelError(
            f"The labels '{path}' cannot be opened; they may have been cut off, or are no labels ({reason}). Label "
            "again, or copy them again."
        ) from ex


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header of a safetensors file, where the data behind it starts, and the size of the file."""
    with Path(path).open("rb") as fp:
        start = 8 + int.from_bytes(fp.read(8), "little")

        size = os.fstat(fp.fileno()).st_size

        if start > size:
            raise ValueError(f"its header should have {start:,} bytes")

        return json.loads(fp.read(start - 8)), start, size


def _map(path: Path, size: int, start: int, entry: Mapping[str, Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]

    (length,) = entry["shape"]

    if end - begin != length * dtype.itemsize or start + end > size:
        raise ValueError(f"{size:,} bytes, where data should end at {start + end:,}")

    if length == 0:
        return np.empty(0, dtype)

    return np.memmap(path, dtype, "r", offset=start + begin, shape=(length,))


@final
class BinarySink:
    """Writes the labels of a writer (:mod:`hubert_plugin.data.label_writer`) in binary form."""

    def __init__(self, path: Path, spec: LabelSetSpec, num_utterances: int, provenance: Mapping[str, object]) -> None:
        self._path = path
        self._num_utterances = num_utterances
        self._name = "U8" if spec.size <= 1 << 8 else "I16" if spec.size <= 1 << 15 else "I32"
        self._type = _TYPES[self._name]
        self._counts = array("q")

        draft = self._header({**provenance, "label_set": {"name": spec.name}}, 0)

        self._start = -(-(8 + len(draft) + _HEADER_SLACK) // _ALIGNMENT) * _ALIGNMENT

    def open(self, stack: ExitStack) -> None:
        self._file: IO[bytes] = stack.enter_context(
            stack.enter_context(atomic_path(self._path)).open("wb+", buffering=1 << 20)
        )

        self._file.seek(self._start + 8 * (self._num_utterances + 1))

    def write(self, units: NDArray[Any]) -> None:
        self._file.write(units.astype(self._type).tobytes())

        self._counts.append(len(units))

    def finish(self, record: dict[str, object]) -> None:
        num_labels = sum(self._counts)

        offsets = np.zeros(self._num_utterances + 1, "<i8")

        np.cumsum(np.array(self._counts, np.int64), out=offsets[1:])

        self._file.seek(self._start)
        self._file.write(offsets.tobytes())

        self._file.flush()
        self._file.seek(self._start)

        digest = hashlib.sha256()

        while chunk := self._file.read(_CHUNK):
            digest.update(chunk)

        record["num_bytes"] = num_labels * self._type.itemsize
        record["digest"] = digest.hexdigest()[:16]

        header = self._header(record, num_labels)

        self._file.seek(0)
        self._file.write((self._start - 8).to_bytes(8, "little") + header.ljust(self._start - 8))

        self._file.flush()

        os.fsync(self._file.fileno())

    def _header(self, record: Mapping[str, object], num_labels: int) -> bytes:
        end = 8 * (self._num_utterances + 1)

        header = {
            "__metadata__": {FORMAT: json.dumps(record, sort_keys=True)},
            "offsets": {"dtype": "I64", "shape": [self._num_utterances + 1], "data_offsets": [0, end]},
            "values": {
                "dtype": self._name,
                "shape": [num_labels],
                "data_offsets": [end, end + num_labels * self._type.itemsize],
            },
        }

        return json.dumps(header, ensure_ascii=True).encode()
