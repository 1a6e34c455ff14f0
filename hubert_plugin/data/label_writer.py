"""Writing label stores, utterance by utterance, so that nothing half-written is ever left."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias, final

from numpy.typing import NDArray
from typing_extensions import Self

from hubert_plugin.data.label_binary import BinarySink, binary_path
from hubert_plugin.data.label_check import LENGTH_TOLERANCE, expected_counts
from hubert_plugin.data.label_meta import FORMAT, FORMAT_VERSION, dict_text, sidecar_path
from hubert_plugin.data.shards import remove_leftovers
from hubert_plugin.errors import LabelError, StorageError
from hubert_plugin.files import atomic_path
from hubert_plugin.registry import LabelSetSpec

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

LabelForm: TypeAlias = Literal["km", "binary"]
"""How labels are kept: ``km``, fairseq's text with a dictionary and a record; ``binary``, a mapped file."""


def write_labels(
    label_dir: Path,
    split: str,
    spec: LabelSetSpec,
    units: Iterable[NDArray[Any]],
    manifest: Manifest,
    provenance: Mapping[str, object],
    *,
    form: LabelForm = "km",
    exact: bool = True,
) -> None:
    """Write the labels of all utterances, in manifest order, as they come from ``units``.

    All files are written aside and renamed at the end, the sidecar last: whatever happens before leaves the previous
    labels as they were. A kill between two renames leaves labels that the sidecar does not fit, which
    :func:`open_labels` refuses. Labels of the other form are removed at the very end: a label set has one form.

    :param provenance: What the sidecar records besides; the key ``unit_model_fingerprint`` is the one that is checked.
    :param exact: Whether there must be a label for each frame. If not, up to 20 ms may be missing, as when labels are
        read, and what is beyond the audio is cut off.
    :raises LabelError: The units do not fit the manifest or the label set.
    :raises StorageError: A file cannot be written, for example because the disk is full.
    """
    with LabelWriter(label_dir, split, spec, manifest, provenance, form=form, exact=exact) as writer:
        for u in units:
            writer.write(u)


def label_files(label_dir: Path, split: str, name: str, form: LabelForm) -> list[Path]:
    """Return the files of the labels ``<split>.<name>`` that no other split shares, the labels themselves first."""
    if form == "binary":
        return [binary_path(label_dir, split, name)]

    path = Path(label_dir) / f"{split}.{name}"

    return [path, sidecar_path(path)]


def remove_other_form(label_dir: Path, split: str, name: str, form: LabelForm) -> None:
    """Remove the labels ``<split>.<name>`` of the other form than ``form``; the sidecar last, so that it can be seen.

    :raises StorageError: They cannot be removed.
    """
    for path in label_files(label_dir, split, name, "km" if form == "binary" else "binary"):
        if not path.exists():  # a read-only folder that needs no change is fine
            continue

        try:
            path.unlink(missing_ok=True)
        except OSError as ex:
            raise StorageError(f"'{path}', which is no longer valid, cannot be removed: {ex.strerror or ex}.") from ex


@final
class LabelWriter:
    """Writes a label store utterance by utterance (see :func:`write_labels`); it stands when the block ends well."""

    def __init__(
        self,
        label_dir: Path,
        split: str,
        spec: LabelSetSpec,
        manifest: Manifest,
        provenance: Mapping[str, object],
        *,
        form: LabelForm = "km",
        exact: bool = True,
    ) -> None:
        self._dir, self._split, self._form = Path(label_dir), split, form
        self._path = label_files(label_dir, split, spec.name, form)[0]
        self._spec, self._manifest, self._provenance = spec, manifest, dict(provenance)

        self._expected = expected_counts(manifest.sizes, spec.rate)
        self._tolerance = 0 if exact else LENGTH_TOLERANCE[spec.rate]

        self._sink: _TextSink | BinarySink

        if form == "km":
            self._sink = _TextSink(self._path, spec)
        else:
            self._sink = BinarySink(self._path, spec, len(manifest.ids), self._provenance)

        self._stack = ExitStack()
        self._num_utterances = self._num_labels = 0
        self._write_failed = False

    def __enter__(self) -> Self:
        for path in label_files(self._dir, self._split, self._spec.name, self._form):
            remove_leftovers(path)

        remove_leftovers(self._dir / f"dict.{self._spec.name}.txt")

        with ExitStack() as stack:
            self._sink.open(stack)

            self._stack = stack.pop_all()

        return self

    def __exit__(
        self, kls: type[BaseException] | None, ex: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if ex is None:
                self._finish()
            elif isinstance(ex, OSError) and not self._write_failed:
                # The block's own trouble: `atomic_path` would take it for a disk that cannot be written.
                raise LabelError(f"The labels for '{self._path}' could not be made: {ex}") from ex
            else:
                raise ex

        remove_other_form(self._dir, self._split, self._spec.name, self._form)

    def write(self, units: NDArray[Any]) -> None:
        """Append the labels of the next utterance. *Shape:* (L,)."""
        idx = self._num_utterances

        if idx >= len(self._manifest.ids):
            raise LabelError(
                f"'{self._path}' was given labels of more utterances than the {len(self._manifest.ids)} that "
                f"'{self._manifest.path}' has."
            )

        if abs(len(units) - self._expected[idx]) > self._tolerance:
            raise LabelError(
                f"'{self._path}' must have {self._expected[idx]} labels for '{self._manifest.ids[idx]}' "
                f"({self._manifest.sizes[idx]} samples, {self._spec.rate} Hz), but was given {len(units)}."
            )

        units = units[: self._expected[idx]]

        if len(units) and not (units.min() >= 0 and units.max() < self._spec.size):
            raise LabelError(
                f"'{self._path}' takes the units 0 … {self._spec.size - 1}, but was given {units.min()} … "
                f"{units.max()} for '{self._manifest.ids[idx]}'."
            )

        self._write_failed = True

        self._sink.write(units)

        self._write_failed = False

        self._num_utterances += 1
        self._num_labels += len(units)

    def _finish(self) -> None:
        if self._num_utterances != len(self._manifest.ids):
            raise LabelError(
                f"'{self._path}' was given labels of {self._num_utterances} utterances, but '{self._manifest.path}' "
                f"has {len(self._manifest.ids)}."
            )

        self._sink.finish(
            {
                **self._provenance,
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "label_set": {"name": self._spec.name, "size": self._spec.size, "rate": self._spec.rate},
                "manifest_fingerprint": self._manifest.fingerprint,
                "num_utterances": self._num_utterances,
                "num_labels": self._num_labels,
            }
        )


@final
class _TextSink:
    """Writes ``SPLIT.NAME``, ``dict.NAME.txt`` and the sidecar ``SPLIT.NAME.json``."""

    def __init__(self, path: Path, spec: LabelSetSpec) -> None:
        self._path, self._spec = path, spec

        self._symbols = [str(u) for u in range(spec.size)]
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def open(self, stack: ExitStack) -> None:
        # Left in reverse: the labels are renamed first and the sidecar last.
        self._sidecar_tmp = stack.enter_context(atomic_path(sidecar_path(self._path)))

        self._dict_tmp = stack.enter_context(atomic_path(self._path.parent / f"dict.{self._spec.name}.txt"))

        self._labels_tmp = stack.enter_context(atomic_path(self._path))

        self._file: IO[bytes] = stack.enter_context(self._labels_tmp.open("wb", buffering=1 << 20))

    def write(self, units: NDArray[Any]) -> None:
        symbols = self._symbols

        line = (" ".join([symbols[u] for u in units.tolist()]) + "\n").encode()

        self._file.write(line)

        self._digest.update(line)

        self._num_bytes += len(line)

    def finish(self, record: dict[str, object]) -> None:
        record["num_bytes"], record["digest"] = self._num_bytes, self._digest.hexdigest()[:16]

        # Everything is on the disk before the first rename, so that a full disk changes nothing at all.
        self._file.flush()

        os.fsync(self._file.fileno())

        _write_synced(self._dict_tmp, dict_text(self._spec.size))
        _write_synced(self._sidecar_tmp, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as fp:
        fp.write(text)

        fp.flush()

        os.fsync(fp.fileno())
