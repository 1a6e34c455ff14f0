"""Label stores: fairseq's label files or a mapped binary form, with a record of where the labels come from.

A label set ``km`` of a split ``train`` is three files in a folder:

- ``train.km``: one line of space-separated units for each line of the manifest, in its order (fairseq's);
- ``dict.km.txt``: the units, one ``symbol count`` a line (fairseq's), shared by the splits;
- ``train.km.json``: the sidecar: size, rate, and the fingerprints of the manifest, of the unit model and of the labels
  themselves. Labels without one (made by fairseq) are read all the same; labels whose sidecar tells of another
  manifest, of another unit model or of other labels are refused;

or it is one file, ``train.km.safetensors``, with the same record in it (:mod:`hubert_plugin.data.label_binary`). A
folder may hold several label sets, each with a size and a rate of its own, in either form. Whoever opens labels need
not know which.

Text labels are in memory as one array of 16-bit units and an array of offsets: 2 bytes a label, 16 an utterance.
Binary labels are mapped: they take what is used.
"""

from __future__ import annotations

import hashlib
import operator
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.label_binary import SUFFIX, BinaryLabels, binary_path, open_binary_labels
from hubert_plugin.data.label_check import check_labels, expected_counts, parse_labels, usable_counts
from hubert_plugin.data.label_meta import check_label_set_name, sidecar_problems, symbol_table
from hubert_plugin.data.label_meta import read_dict as read_dict
from hubert_plugin.data.label_meta import read_sidecar as read_sidecar
from hubert_plugin.data.label_writer import LabelForm as LabelForm
from hubert_plugin.data.label_writer import LabelWriter as LabelWriter
from hubert_plugin.data.label_writer import write_labels as write_labels
from hubert_plugin.errors import LabelError, format_problems
from hubert_plugin.frames import labels_per_frame
from hubert_plugin.registry import LabelSetSpec

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

NO_LABEL_SETS: Final = frozenset(
    (
        *("tsv", "json", "txt", "yaml", "md", "log", "lock", "tmp", "safetensors", "joblib"),
        *("ark", "scp", "npy", "len", "wrd", "ltr", "phn", "item", "pieces"),
    )
)
"""Endings of files that lie beside manifests and labels but are no units: tables, records, features, transcripts. A
label set of such a name is opened all the same if it is named."""


@final
class LabelSet:
    """The labels of one label set for all utterances of a manifest."""

    spec: LabelSetSpec
    """Name, size and rate."""

    provenance: Mapping[str, Any] | None
    """The content of the sidecar; ``None`` if there is none."""

    form: LabelForm
    """How they are stored: as text (``km``) or ``binary``."""

    digest: str
    """16 hexadecimal digits that stand for the labels as they are stored, so those of two forms cannot be compared;
    empty for labels of neither form."""

    def __init__(
        self,
        spec: LabelSetSpec,
        values: NDArray[Any],
        offsets: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
        provenance: Mapping[str, Any] | None = None,
        *,
        digest: str = "",
    ) -> None:
        """
        :param values: The labels of all utterances, one after another.
        :param offsets: Where each utterance begins in ``values``. *Shape:* (N,), or (N + 1,) without ``counts``.
        :param counts: How many labels of each utterance are used (*Shape:* (N,)); ``None``: all up to the next one, and
            ``values`` were not looked at yet, so each utterance is checked when it is asked for.
        """
        self.spec, self.provenance = spec, provenance

        self.form, self.digest = ("binary" if counts is None else "km"), digest

        self._values, self._offsets, self._counts = values, offsets, counts

    def __len__(self) -> int:
        return len(self._offsets) - (self._counts is None)

    def __getitem__(self, idx: SupportsIndex) -> NDArray[np.int32]:
        """Return the labels of utterance ``idx``: one for each frame, cut to its audio. *Shape:* (L,).

        :param idx: Counted from 0, or from the end if it is negative.
        :raises IndexError: There is no such utterance.
        :raises LabelError: They are no units (binary labels that were damaged after they were made).
        """
        idx = self._utterance(idx)

        start = int(self._offsets[idx])

        labels: NDArray[np.int32] = self._values[start : start + self.num_labels(idx)].astype(np.int32)

        if self._counts is None and len(labels) and not 0 <= labels.min() <= labels.max() < self.spec.size:
            raise LabelError(
                f"The binary labels '{self.spec.name}' are damaged: utterance {idx} (counted from 0) has the labels "
                f"{labels.min()} … {labels.max()}, but the units are 0 … {self.spec.size - 1}. Label again."
            )

        return labels

    def num_labels(self, idx: SupportsIndex) -> int:
        """Return how many labels utterance ``idx`` has: as many as frames, or up to 20 ms less (``label_check``).

        :raises IndexError: There is no such utterance.
        """
        idx = self._utterance(idx)

        if self._counts is None:
            return int(self._offsets[idx + 1] - self._offsets[idx])

        return int(self._counts[idx])

    def _utterance(self, idx: SupportsIndex) -> int:
        # Not left to NumPy: without counts there is one offset more than utterances.
        number, num_utterances = operator.index(idx), len(self)

        if not -num_utterances <= number < num_utterances:
            raise IndexError(
                f"There is no utterance {number} in the labels '{self.spec.name}' of {num_utterances:,} utterances, "
                "which are counted from 0, or backwards from -1."
            )

        return number % num_utterances

    def num_frames(self) -> NDArray[np.int64]:
        """Return how many frames (50 Hz) of each utterance have a label. *Shape:* (N,)."""
        counts = np.diff(self._offsets) if self._counts is None else self._counts

        return -(-counts // labels_per_frame(self.spec.rate))

    def unit_counts(self) -> NDArray[np.int64]:
        """Return how often each unit occurs, labels beyond the audio included. *Shape:* (K,)."""
        counts = np.zeros(self.spec.size, np.int64)

        for start in range(0, len(self._values), 1 << 24):
            counts += np.bincount(self._values[start : start + (1 << 24)], minlength=self.spec.size)

        return counts


def open_labels(
    label_dir: Path,
    split: str,
    name: str,
    manifest: Manifest,
    *,
    rate: int | None = None,
    size: int | None = None,
    unit_model_fingerprint: str | None = None,
) -> LabelSet:
    """Open the labels ``<split>.<name>`` of a manifest. Text is read and checked; the binary form was when it was made.

    :param rate: Labels per second, 50 or 100; ``None`` takes it from the sidecar, or infers it from the lengths.
    :param size: The number of units; ``None`` takes it from ``dict.<name>.txt``, which is optional otherwise.
    :param unit_model_fingerprint: The unit model that the labels must come from, if it matters.
    :raises LabelError: The labels are missing, or do not fit the manifest, the audio, the dictionary or the unit model;
        with all problems of the file.
    """
    check_label_set_name(name)

    path = Path(label_dir) / f"{split}.{name}"

    binary = binary_path(label_dir, split, name)

    if binary.exists():
        if path.exists():
            raise LabelError(
                f"There are two forms of the same labels, '{path}' and '{binary.name}', which may differ. Remove one, "
                "or label again."
            )

        return _open_binary(binary, name, manifest, rate, size, unit_model_fingerprint)

    try:
        data = path.read_bytes()
    except OSError as ex:
        raise _unreadable(path, ex) from ex

    sidecar = read_sidecar(path)

    if sidecar is not None:
        if problems := sidecar_problems(sidecar, path, data, manifest, unit_model_fingerprint):
            raise LabelError(format_problems(f"The labels in '{path}' cannot be used:", problems))

        rate, size = _agree(path, sidecar["label_set"], rate=rate, size=size)
    elif unit_model_fingerprint is not None:
        raise LabelError(
            f"The labels in '{path}' must come from the unit model {unit_model_fingerprint}, but there is no record "
            f"'{path.name}.json' of the unit model that made them. Label again with `fairseq2 recipe hubert label`."
        )

    dict_path = path.parent / f"dict.{name}.txt"

    table = None

    if size is None or dict_path.exists():
        symbols = read_dict(dict_path)

        if size is not None and len(symbols) != size:
            raise LabelError(f"'{dict_path}' has {len(symbols)} units, but '{path}' was to have {size}.")

        size, table = len(symbols), symbol_table(dict_path, symbols)

    # Editors of other systems put a mark at the start, which is not a part of the text.
    parsed = parse_labels(data.removeprefix(BOM_UTF8), size, table)

    # With a sidecar it was compared above.
    digest = sidecar["digest"] if sidecar is not None else hashlib.sha256(data).hexdigest()[:16]

    del data

    rate = check_labels(path, parsed, manifest, rate)

    return LabelSet(
        LabelSetSpec(name, size, rate),
        parsed.values,
        np.cumsum(parsed.counts) - parsed.counts,
        usable_counts(parsed.counts, expected_counts(manifest.sizes, rate)),
        sidecar,
        digest=digest,
    )


def _open_binary(
    path: Path, name: str, manifest: Manifest, rate: int | None, size: int | None, unit_model_fingerprint: str | None
) -> LabelSet:
    labels: BinaryLabels = open_binary_labels(path)

    if problems := sidecar_problems(labels.record, path, None, manifest, unit_model_fingerprint):
        raise LabelError(format_problems(f"The labels in '{path}' cannot be used:", problems))

    rate, size = _agree(path, labels.record["label_set"], rate=rate, size=size)

    return LabelSet(
        LabelSetSpec(name, size, rate),
        labels.values,
        labels.offsets,
        provenance=labels.record,
        digest=str(labels.record["digest"]),
    )


def _agree(path: Path, label_set: Mapping[str, Any], *, rate: int | None, size: int | None) -> tuple[int, int]:
    for what, asked, unit in (("rate", rate, " Hz"), ("size", size, " units")):
        if asked is not None and asked != label_set[what]:
            raise LabelError(
                f"The labels in '{path}' have the {what} {label_set[what]}{unit} by their record, but {asked}{unit} "
                "were asked for."
            )

    return int(label_set["rate"]), int(label_set["size"])


def _unreadable(path: Path, ex: OSError) -> LabelError:
    if not isinstance(ex, FileNotFoundError):
        return LabelError(f"The labels '{path}' cannot be read: {ex.strerror or ex}.")

    folder = path.parent

    if not folder.is_dir():
        return LabelError(f"There are no labels '{path}': the folder does not exist.")

    others = sorted(_label_files(folder))

    return LabelError(
        f"There are no labels '{path}'. Label files in '{folder}': "
        f"{', '.join(others[:20]) if others else 'none'}{' …' if len(others) > 20 else ''}. Name the folder that has "
        "them, or make them with the verbs `cluster` and `label`."
    )


def label_set_names(folder: Path) -> list[str]:
    """Return the names of the label sets in a folder, of whatever splits."""
    return sorted({name.rpartition(".")[2] for name in _label_files(folder)})


def _label_files(folder: Path) -> Iterator[str]:
    for p in folder.iterdir():
        if p.suffix == SUFFIX and "." in p.stem[1:] and not p.name.startswith("."):
            yield p.stem
        elif p.is_file() and "." in p.name[1:] and p.suffix.removeprefix(".") not in NO_LABEL_SETS:
            yield p.name
