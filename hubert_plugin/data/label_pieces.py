"""Labelling in pieces: what one process, many ranks or the jobs of an array finish stays finished.

A split is cut into pieces of consecutive utterances; the labels of a piece (of all label sets of a unit model) are one
file in the folder ``<split>.<unit model>.pieces``, renamed into place when it is whole. Whoever finds all pieces there
joins them to the label store and removes the folder. A lock keeps others from joining at the same time.

A killed run loses the pieces that it worked on, and nothing else: run again, it goes on with the rest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.label_binary import open_binary_labels
from hubert_plugin.data.label_guard import replacing_problems
from hubert_plugin.data.label_meta import read_sidecar
from hubert_plugin.data.label_writer import LabelForm, LabelWriter, label_files, remove_other_form
from hubert_plugin.data.provenance import comparable
from hubert_plugin.data.shards import remove_leftovers, shard_range
from hubert_plugin.errors import LabelError
from hubert_plugin.files import atomic_path
from hubert_plugin.frames import SAMPLE_RATE
from hubert_plugin.registry import LabelSetSpec, Units

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

MAX_PIECE_HOURS: Final = 10
"""The most audio of a piece: its labels are kept in memory until it is whole (at 100 Hz, 14 MB for each label set)."""

MIN_PIECE_SECONDS: Final = 60
"""The least audio of a piece, where the corpus has so much: each costs two writes to the disk."""

NUM_PIECES: Final = 64
"""How many pieces a split has at least, if that does not make them too short."""

_FORMAT: Final = "hubert_plugin.label_piece"


def cut_pieces(manifest: Manifest, num_shards: int = 1, *, num_ranks: int = 1) -> list[list[range]]:
    """Return the pieces of each shard: consecutive ranges of utterances, cut by the length of the audio.

    Shards are those of fairseq (:func:`~hubert_plugin.data.shards.shard_range`).

    :param num_ranks: How many processes work on a shard; up to 16 do not change the pieces.
    """
    num_samples = manifest.num_samples / max(NUM_PIECES, 4 * num_ranks)

    num_samples = min(max(num_samples, MIN_PIECE_SECONDS * SAMPLE_RATE), MAX_PIECE_HOURS * 3600 * SAMPLE_RATE)

    ends = np.cumsum(manifest.sizes)

    shards = []

    for index in range(num_shards):
        shard = shard_range(len(manifest.ids), (index, num_shards))

        pieces, start = [], shard.start

        while start < shard.stop:
            so_far = int(ends[start - 1]) if start else 0

            # The first utterance whose end is beyond the limit still belongs to the piece.
            stop = min(int(np.searchsorted(ends, so_far + num_samples)) + 1, shard.stop)

            pieces.append(range(start, stop))

            start = stop

        shards.append(pieces)

    return shards


@final
class LabelPieces:
    """The pieces of a split's labels on disk."""

    def __init__(
        self,
        label_dir: Path,
        manifest: Manifest,
        specs: Sequence[LabelSetSpec],
        provenance: Mapping[str, object],
        *,
        form: LabelForm = "km",
        exact: bool = True,
    ) -> None:
        """
        :param provenance: What the records of the labels say besides; its ``unit_model_fingerprint`` names the folder.
        """
        self._label_dir, self._manifest, self._specs = Path(label_dir), manifest, tuple(specs)
        self._form, self._exact = form, exact
        self._provenance: dict[str, Any] = json.loads(json.dumps(dict(provenance)))

        self._folder = self._label_dir / f"{manifest.split}.{provenance.get('unit_model_fingerprint')}.pieces"

        self._key = {
            "format": _FORMAT,
            "provenance": self._provenance,
            "manifest_fingerprint": manifest.fingerprint,
            "label_sets": [asdict(s) for s in self._specs],
        }

    @property
    def folder(self) -> Path:
        """Where the pieces are until they are joined."""
        return self._folder

    def is_joined(self) -> bool:
        """Tell whether the label store is there already, made in the same way from the same manifest."""
        return all(self._is_store_of(spec) for spec in self._specs)

    def _is_store_of(self, spec: LabelSetSpec) -> bool:
        path = label_files(self._label_dir, self._manifest.split, spec.name, self._form)[0]

        try:
            if self._form == "binary":
                record: Mapping[str, Any] = open_binary_labels(path).record
            else:
                sidecar = read_sidecar(path)

                if sidecar is None or path.stat().st_size != sidecar["num_bytes"]:
                    return False

                if not (self._label_dir / f"dict.{spec.name}.txt").is_file():
                    return False

                record = sidecar
        except (LabelError, OSError):
            return False

        return (
            record["manifest_fingerprint"] == self._manifest.fingerprint
            and record["label_set"] == asdict(spec)
            and all(comparable({key: record.get(key)}) == comparable({key: v}) for key, v in self._provenance.items())
        )

    def replacing_problems(self, pieces: Sequence[range]) -> list[str]:
        """Return why the label store must not take the place of labels that are there; nothing if it may.

        :param pieces: The whole split.
        """
        if self.is_joined():
            return []

        def is_half() -> bool:
            # A kill while the pieces were joined left labels without a record, and all pieces; otherwise another
            # process has joined them since they were looked at.
            return all(self.has(p) for p in pieces) or self.is_joined()

        return [
            problem
            for spec in self._specs
            for problem in replacing_problems(self._label_dir, self._manifest, spec, self._provenance, is_half=is_half)
        ]

    def has(self, piece: range) -> bool:
        """Tell whether ``piece`` is there, made in the same way."""
        record = self._read_record(self._path(piece))

        return comparable(record) == comparable({**self._key, "range": [piece.start, piece.stop]})

    def remove_leftovers(self, pieces: Iterable[range]) -> None:
        """Remove what a killed process left of ``pieces``, which no other process may be making."""
        for piece in pieces:
            remove_leftovers(self._path(piece))

    def write(self, piece: range, units: Sequence[Sequence[Units]]) -> None:
        """Write the labels of ``piece``: for each utterance, the units of each label set.

        :raises StorageError: The file cannot be written; the other pieces stay.
        """
        from safetensors.numpy import save

        tensors: dict[str, NDArray[Any]] = {"counts": np.array([len(u[0]) for u in units], np.int64)}

        for i, spec in enumerate(self._specs):
            dtype = np.int16 if spec.size <= 1 << 15 else np.int32

            tensors[f"values.{i}"] = np.concatenate([u[i] for u in units]).astype(dtype)

        record = json.dumps({**self._key, "range": [piece.start, piece.stop]}, sort_keys=True)

        data = save(tensors, {_FORMAT: record})

        with atomic_path(self._path(piece)) as tmp:
            tmp.write_bytes(data)

    def join(self, pieces: Sequence[range]) -> bool:
        """Join ``pieces``, which are the whole split, to the label store, if all are there, and remove them.

        :returns: Whether the label store is there now.
        :raises LabelError: The pieces do not fit the manifest.
        :raises StorageError: The store cannot be written; the pieces stay.
        """
        if not self._folder.is_dir():
            return self.is_joined()

        with lock_labels(self._label_dir):
            # Another process may have joined them while this one waited.
            if not all(self._path(p).is_file() for p in pieces):
                return self.is_joined()

            if not all(self.has(p) for p in pieces):
                return False

            with ExitStack() as stack:
                writers = [
                    stack.enter_context(
                        LabelWriter(
                            self._label_dir,
                            self._manifest.split,
                            spec,
                            self._manifest,
                            self._provenance,
                            form=self._form,
                            exact=self._exact,
                        )
                    )
                    for spec in self._specs
                ]

                for piece in pieces:
                    for units in self._read(piece):
                        for writer, u in zip(writers, units, strict=True):
                            writer.write(u)

            self._remove()

        return True

    def tidy(self) -> None:
        """Remove what a run that was killed when the store was whole has left: pieces, other forms, temporary files."""
        for spec in self._specs:
            for path in label_files(self._label_dir, self._manifest.split, spec.name, self._form):
                remove_leftovers(path)

            remove_other_form(self._label_dir, self._manifest.split, spec.name, self._form)

        if self._folder.is_dir() or _lock_path(self._label_dir).exists():
            with lock_labels(self._label_dir):
                self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, piece: range) -> Path:
        return self._folder / f"{piece.start:08}-{piece.stop:08}.safetensors"

    @staticmethod
    def _read_record(path: Path) -> object:
        """Return the record of a piece, ``None`` if there is none."""
        try:
            with path.open("rb") as fp:
                header = json.loads(fp.read(int.from_bytes(fp.read(8), "little")))

            return json.loads(header["__metadata__"][_FORMAT])
        except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
            return None

    def _read(self, piece: range) -> Iterator[list[Units]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._path(piece)

        try:
            tensors = load(path.read_bytes())

            values = [tensors[f"values.{i}"] for i in range(len(self._specs))]

            counts = tensors["counts"]
        except (SafetensorError, OSError, KeyError) as ex:
            raise LabelError(f"The piece of labels '{path}' is damaged: {ex}. Delete it and label again.") from ex

        ends = np.cumsum(counts)

        for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
            yield [v[start:end].astype(np.int32) for v in values]


@contextmanager
def lock_labels(label_dir: Path) -> Iterator[None]:
    """Hold the lock of joining, and of what is made of joined labels, in a folder. A process that dies lets it go."""
    path = _lock_path(label_dir)

    with ExitStack() as stack:
        while True:
            fp = stack.enter_context(path.open("w"))

            # Where the system or the file system has no locks, two who finish together write the same labels.
            with suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(fp, fcntl.LOCK_EX)

            # Whoever held the lock has removed the file; a file that has no name any more locks nobody out.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fp.fileno()), os.stat(path)):
                    break

        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _lock_path(label_dir: Path) -> Path:
    return Path(label_dir) / "labels.lock"
