"""Files of features, written and read: kaldi's ``feats.scp`` and fairseq's ``.npy`` with ``.len``.

Letters: *N* utterances, *M* frames of an utterance, *D* features of a frame.

========  ===========================================================================================================
kaldi     ``FOLDER/SPLIT/feats.ark`` and ``feats.scp`` (absolute paths), ``utt2num_frames``, ``frame_shift`` (seconds);
          of shard *i* of *n* (from 0): ``feats.<i>_<n>.ark`` and so on (:mod:`~hubert_plugin.data.feature_shards`)
fairseq   ``FOLDER/SPLIT_<i>_<n>.npy``, float32 (sum of M, D), and ``.len``, the M of each utterance in a line of its
          own, in the order of the manifest (``examples/hubert/simple_kmeans``); not sharded is shard 0 of 1
========  ===========================================================================================================

Beside either lies a record (``….json``) of rate, dimension, counts and provenance. It is written last: where it is,
the shard is whole. Files of other tools have none and are read all the same.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from hubert_plugin.data.kaldi import check_key, write_matrix
from hubert_plugin.data.shards import Shard, remove_leftovers
from hubert_plugin.errors import StorageError, UnitModelError, format_problems
from hubert_plugin.files import atomic_path, write_text_atomic
from hubert_plugin.frames import SUPPORTED_LABEL_RATES

FeatureFormat: TypeAlias = Literal["kaldi", "fairseq"]

RECORD_FORMAT: Final = "hubert_plugin.features"

RECORD_VERSION: Final = 1

_NPY_HEADER_SIZE: Final = 128


def open_feature_writer(
    kind: FeatureFormat,
    folder: Path,
    split: str,
    *,
    dim: int,
    rate: int,
    shard: Shard | None = None,
    provenance: Mapping[str, object] | None = None,
) -> FeatureWriter:
    """Return a context manager whose ``write(utterance_id, features)`` appends an utterance.

    All files appear when the block ends well, the record last; nothing appears, and what stood there before stays, when
    it does not. What a killed process left of the same shard is removed.

    :param shard: ``(i, n)``: shard i of n, from 0; ``None``: all utterances.
    :param provenance: What the record says of the features' making, as plain data.
    :raises UnitModelError: An argument, or features that are written, cannot be used.
    :raises StorageError: A file cannot be written.
    """
    return FeatureWriter(kind, folder, split, dim=dim, rate=rate, shard=shard, provenance=provenance)


@final
class FeatureWriter:
    """Writes the features of a split, or of a shard of it. See :func:`open_feature_writer`."""

    def __init__(
        self,
        kind: FeatureFormat,
        folder: Path,
        split: str,
        *,
        dim: int,
        rate: int,
        shard: Shard | None = None,
        provenance: Mapping[str, object] | None = None,
    ) -> None:
        if kind not in ("kaldi", "fairseq"):
            raise UnitModelError(f"Features are written as 'kaldi' or 'fairseq', not as '{kind}'.")

        if dim < 1 or rate not in SUPPORTED_LABEL_RATES:
            raise UnitModelError(
                f"Features must have one dimension or more and {' or '.join(map(str, SUPPORTED_LABEL_RATES))} frames "
                f"per second, but are to have {dim} and {rate}."
            )

        self._kind = kind
        self._dim, self._rate = dim, rate
        self._provenance = dict(provenance or {})
        self._paths = feature_paths(kind, folder, split, shard)

        self._stack = ExitStack()
        self._scp: list[str] = []
        self._ids: set[str] = set()
        self._counts: list[int] = []

    @property
    def data_path(self) -> Path:
        """The archive, or the ``.npy`` file, that is written."""
        return self._paths["data"]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._tmp: dict[str, Path] = {}

            # Left in reverse: the data are renamed first and the record last.
            for role in ("record", "scp", "counts", "data"):
                if (path := self._paths.get(role)) is not None:
                    remove_leftovers(path)

                    self._tmp[role] = stack.enter_context(atomic_path(path))

            self._file: IO[bytes] = stack.enter_context(self._tmp["data"].open("wb", buffering=1 << 20))

            if self._kind == "fairseq":
                self._file.write(_npy_header(0, self._dim))

            self._stack = stack.pop_all()

        return self

    def __exit__(
        self, kls: type[BaseException] | None, ex: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if ex is None:
            with self._stack:
                self._finish()
        else:
            # The block's own trouble, which `atomic_path` must not take for a disk that cannot be written.
            with suppress(_Abandoned), self._stack:
                with suppress(OSError):
                    self._file.close()

                raise _Abandoned()

    def write(self, utterance_id: str, features: NDArray[Any]) -> None:
        """Append the features of the next utterance. *Shape:* (M, D).

        :raises UnitModelError: The shape is another, values are not finite, or the id is repeated or, for kaldi, holds
            white space.
        :raises StorageError: The disk is full.
        """
        if features.ndim != 2 or features.shape[1] != self._dim:
            raise UnitModelError(
                f"The features of '{utterance_id}' must have the shape (frames, {self._dim}), but have the shape "
                f"{features.shape}."
            )

        features = np.ascontiguousarray(features, np.float32)

        if not np.isfinite(features).all():
            raise UnitModelError(f"The features of '{utterance_id}' hold NaN or infinite values.")

        if utterance_id in self._ids:
            raise UnitModelError(f"The features of '{utterance_id}' were given twice.")

        self._ids.add(utterance_id)

        try:
            if self._kind == "kaldi":
                if problem := check_key(utterance_id):
                    raise UnitModelError(f"The features cannot be written for kaldi: the utterance {problem}.")

                offset = write_matrix(self._file, utterance_id, features)

                self._scp.append(f"{utterance_id} {os.path.abspath(self._paths['data'])}:{offset}\n")
            else:
                self._file.write(features.tobytes())
        except OSError as ex:
            raise _full(self._paths["data"], ex) from ex

        self._counts.append(len(features))

    def _finish(self) -> None:
        num_frames = sum(self._counts)

        if self._kind == "kaldi":
            counts = "".join(f"{line.split(' ', 1)[0]} {n}\n" for line, n in zip(self._scp, self._counts, strict=True))

            _write_synced(self._tmp["scp"], "".join(self._scp))

            write_text_atomic(self._paths["data"].parent / "frame_shift", f"{1 / self._rate:g}\n")
        else:
            counts = "".join(f"{n}\n" for n in self._counts)

            self._file.seek(0)
            self._file.write(_npy_header(num_frames, self._dim))

        self._file.flush()

        os.fsync(self._file.fileno())

        _write_synced(self._tmp["counts"], counts)

        record = {
            **self._provenance,
            "format": RECORD_FORMAT,
            "format_version": RECORD_VERSION,
            "kind": self._kind,
            "dim": self._dim,
            "rate": self._rate,
            "num_utterances": len(self._counts),
            "num_frames": num_frames,
        }

        _write_synced(self._tmp["record"], json.dumps(record, indent=2, sort_keys=True) + "\n")


def feature_paths(kind: FeatureFormat, folder: Path, split: str, shard: Shard | None = None) -> dict[str, Path]:
    """Return the files of a split (of a shard of it): ``data``, ``counts``, ``record`` and, for kaldi, ``scp``."""
    folder = Path(folder)

    if kind == "fairseq":
        index, num_shards = shard or (0, 1)

        stem = folder / f"{split}_{index}_{num_shards}"

        return {role: stem.with_name(stem.name + end) for role, end in _FAIRSEQ_ENDS.items()}

    part = "" if shard is None else f".{shard[0]}_{shard[1]}"

    return {
        "data": folder / split / f"feats{part}.ark",
        "scp": folder / split / f"feats{part}.scp",
        "counts": folder / split / f"utt2num_frames{part}",
        "record": folder / split / f"feats{part}.json",
    }


def read_feature_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a file of features, ``None`` if there is none.

    :raises UnitModelError: It cannot be understood.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as ex:
        raise UnitModelError(f"The record of features '{path}' cannot be read: {ex}") from ex

    keys = {"dim", "rate", "num_utterances", "num_frames"}

    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT or not keys <= record.keys():
        raise UnitModelError(
            f"'{path}' must be a record of features (format '{RECORD_FORMAT}'), but is something else."
        )

    wanted = {
        "dim": ("a number of 1 or greater", record["dim"], lambda n: n >= 1),
        "rate": (" or ".join(map(str, SUPPORTED_LABEL_RATES)), record["rate"], lambda n: n in SUPPORTED_LABEL_RATES),
        "num_utterances": ("a number of 0 or greater", record["num_utterances"], lambda n: n >= 0),
        "num_frames": ("a number of 0 or greater", record["num_frames"], lambda n: n >= 0),
    }

    problems = [
        f"`{key}` must be {expected}, but is {json.dumps(value)}"
        for key, (expected, value, is_right) in wanted.items()
        if type(value) is not int or not is_right(value)
    ]

    if problems:
        raise UnitModelError(format_problems(f"The record of features '{path}' cannot be used:", problems))

    return record


_FAIRSEQ_ENDS: Final = {"data": ".npy", "counts": ".len", "record": ".json"}


class _Abandoned(Exception):
    """Ends the temporary files of a block that failed for reasons of its own."""


def _npy_header(num_rows: int, dim: int) -> bytes:
    """Return the header of a float32 ``.npy`` file (format 1.0), of one size for any number of rows."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({num_rows}, {dim}), }}"

    size = _NPY_HEADER_SIZE - 10

    return b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + text.ljust(size - 1).encode() + b"\n"


def _full(path: Path, ex: OSError) -> StorageError:
    return StorageError(
        f"'{path}' cannot be written: {ex.strerror or ex}. What stood there before is untouched; free space or choose "
        "another folder, then run the same command again."
    )


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape") as fp:
        fp.write(text)

        fp.flush()

        os.fsync(fp.fileno())
