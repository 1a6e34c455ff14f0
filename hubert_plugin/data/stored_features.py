"""Reading features from files: kaldi tables and fairseq's dumps, in the order of a manifest.

Letters: *N* utterances, *M* frames of an utterance, *D* features of a frame. The writing counterpart and the file names
are in :mod:`hubert_plugin.data.feature_files`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.data.fairseq_dumps import DumpError, count_shards, parse_count, read_shard
from hubert_plugin.data.feature_files import FeatureFormat, feature_paths, read_feature_record
from hubert_plugin.data.feature_shards import are_of_one_making
from hubert_plugin.data.kaldi import open_table, read_matrix
from hubert_plugin.data.kaldi_scp import KaldiFormatError, ScpEntry, read_lines
from hubert_plugin.data.label_check import LENGTH_TOLERANCE, expected_counts, infer_rate
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import UnitModelError, format_problems
from hubert_plugin.files import file_stamp
from hubert_plugin.frames import SUPPORTED_LABEL_RATES, seconds

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest


_PIPE_ADVICE: Final = "set `allow_pipes: true` in the `config` of the features if you trust this file"


class StoredFeatures(ABC):
    """The features of a manifest's utterances, in files."""

    kind: FeatureFormat

    record: Mapping[str, Any] | None
    """What our own writer recorded of them (rate, dimension, provenance); ``None`` for files of other tools."""

    dim: int
    """D."""

    counts: NDArray[np.int64]
    """M of each utterance, as the files beside the features say. *Shape:* (N,)."""

    files: Sequence[Path]
    """The files that hold the features; what a command writes is in none."""

    @property
    def stamp(self) -> str | None:
        """What tells files of other tools from those that take their place: their sizes and times of change. ``None``
        where our own writer recorded how they were made."""
        return None if self.record is not None else file_stamp(self.files)

    @abstractmethod
    def read(self, idx: int) -> NDArray[np.float32]:
        """Return the features of utterance ``idx`` of the manifest. *Shape:* (M, D).

        :raises UnitModelError: They cannot be read, are of another dimension or length than announced, or not finite.
        """

    def __len__(self) -> int:
        return len(self.counts)


def open_stored_features(
    kind: FeatureFormat, path: Path, manifest: Manifest, *, allow_pipes: bool = False
) -> StoredFeatures:
    """Open the features of a manifest. Little is read: tables, counts, and the first matrix.

    :param path: A folder (``FOLDER/SPLIT/feats.scp`` or ``FOLDER/feats.scp``, ``FOLDER/SPLIT_<i>_<n>.npy``), or a kaldi
        script file or archive.
    :param allow_pipes: Whether a kaldi script file may hold commands, which are run to read features.
    :raises UnitModelError: The files are missing, damaged, or hold other utterances than the manifest.
    """
    path = Path(path).expanduser()

    if kind == "kaldi":
        return _KaldiFeatures(_find_kaldi(path, manifest.split), manifest, allow_pipes=allow_pipes)

    return _FairseqFeatures(path, manifest)


def check_feature_rate(features: StoredFeatures, manifest: Manifest, rate: int | None) -> int:
    """Check the numbers of frames against the audio and return their rate (``None``: infer it).

    An utterance may have up to 20 ms more or less than its audio calls for (:mod:`hubert_plugin.data.label_check`).

    :raises UnitModelError: Features are at another rate, or of other audio: all such utterances at once.
    """
    if rate is not None and rate not in SUPPORTED_LABEL_RATES:
        raise UnitModelError(f"The rate of features must be 50 or 100 frames per second, but is {rate} instead.")

    recorded = None if features.record is None else int(features.record["rate"])

    if rate is not None and recorded is not None and rate != recorded:
        raise UnitModelError(
            f"The features of '{manifest.split}' have {recorded} frames per second by their record, but {rate} were "
            "asked for."
        )

    rate = rate if rate is not None else recorded

    likely = infer_rate(features.counts, manifest.sizes)

    if rate is None:
        if likely is None:
            per_second = features.counts.sum() / max(seconds(manifest.num_samples), 1e-9)

            raise UnitModelError(
                f"The features of '{manifest.split}' have {per_second:.1f} frames per second on the average, for few "
                f"utterances {' or '.join(map(str, SUPPORTED_LABEL_RATES))}: units are made at these rates. Were they "
                f"made from this audio?{_hint_at_exchange(features, manifest)}"
            )

        rate = likely

    expected = expected_counts(manifest.sizes, rate)

    wrong = np.flatnonzero(np.abs(features.counts - expected) > LENGTH_TOLERANCE[rate]).tolist()

    if wrong:
        head = f"The features of '{manifest.split}' do not fit the audio of '{manifest.path}' at {rate} Hz."

        if likely is not None and likely != rate:
            head += f" They look like {likely} frames per second."

        head += _hint_at_exchange(features, manifest)

        raise UnitModelError(
            format_problems(
                head,
                [
                    f"'{manifest.ids[i]}' ({manifest.sizes[i]} samples) has {expected[i]} frames, but features of "
                    f"{features.counts[i]}"
                    for i in wrong
                ],
            )
        )

    return rate


def _hint_at_exchange(features: StoredFeatures, manifest: Manifest) -> str:
    """Return a sentence if matrices seem to have a column for each frame: then all have the same number of rows, and
    the first has as many columns as its audio has frames."""
    if len(set(features.counts.tolist())) != 1:
        return ""

    for rate in SUPPORTED_LABEL_RATES:
        if abs(features.dim - int(expected_counts(manifest.sizes[:1], rate)[0])) <= LENGTH_TOLERANCE[rate]:
            return " Rows and columns seem to be exchanged: a matrix must have a row for each frame."

    return ""


@final
class _KaldiFeatures(StoredFeatures):
    def __init__(self, path: Path, manifest: Manifest, *, allow_pipes: bool) -> None:
        self.kind = "kaldi"

        try:
            table = {e.key: e for e in open_table(path, allow_pipes=allow_pipes, pipe_advice=_PIPE_ADVICE)}
        except KaldiFormatError as ex:
            raise UnitModelError(str(ex)) from ex

        self._entries = _select(path, table, manifest)

        self.files = [path, *sorted({Path(e.path) for e in self._entries if not e.is_command})]

        self.record = read_feature_record(path.with_suffix(".json"))

        self.dim = int(self.record["dim"]) if self.record is not None else _measure_dim(self._entries[0])

        self.counts = self._read_counts(path.with_name("utt2num_frames"))

    def _read_counts(self, path: Path) -> NDArray[np.int64]:
        if not path.is_file():
            return self._measure()

        counts: dict[str, int] = {}
        problems = []

        try:
            lines = list(read_lines(path))
        except KaldiFormatError as ex:
            raise UnitModelError(str(ex)) from ex

        for nr, key, value in lines:
            if (count := parse_count(value)) is not None:
                counts[key] = count
            else:
                problems.append(f"{path}:{nr}: must be 'utterance frames', but the frames are {value!r}")

        problems += [f"{path}: has no line for '{e.key}'" for e in self._entries if e.key not in counts]

        if problems:
            raise UnitModelError(
                format_problems(f"'{path}' cannot be used; delete it, to count the frames anew.", problems)
            )

        return np.array([counts[e.key] for e in self._entries], np.int64)

    def _measure(self) -> NDArray[np.int64]:
        counts, problems = [], []

        for entry in self._entries:
            try:
                counts.append(len(read_matrix(entry)))
            except KaldiFormatError as ex:
                problems.append(str(ex))

        if problems:
            raise UnitModelError(format_problems("Features cannot be read.", problems))

        return np.array(counts, np.int64)

    @override
    def read(self, idx: int) -> NDArray[np.float32]:
        entry = self._entries[idx]

        return _check(_read(entry), f"'{entry.key}' ({entry.place})", self.dim, int(self.counts[idx]))


def _read(entry: ScpEntry) -> NDArray[np.float32]:
    try:
        return read_matrix(entry)
    except KaldiFormatError as ex:
        raise UnitModelError(str(ex)) from ex


def _measure_dim(entry: ScpEntry) -> int:
    shape = _read(entry).shape

    if shape[1] == 0:
        raise UnitModelError(
            f"The features of '{entry.key}' ({entry.place}) must have one number a frame or more, but have the shape "
            f"{shape}."
        )

    return shape[1]


def _select(path: Path, table: Mapping[str, ScpEntry], manifest: Manifest) -> list[ScpEntry]:
    """Return the entries of the manifest's utterances, in its order."""
    ids = read_utterance_ids(manifest)

    missing = [i for i in ids if i not in table]

    if missing:
        others = len(table.keys() - set(ids))

        head = (
            f"'{path}' does not have the utterances of '{manifest.path}': {len(missing):,} of {len(ids):,} are missing"
            f"{f', {others:,} others are there' if others else ''}."
        )

        raise UnitModelError(format_problems(head, [f"'{i}' is missing" for i in missing]))

    return [table[i] for i in ids]


def _find_kaldi(path: Path, split: str) -> Path:
    if path.is_file():
        return path

    candidates = [path / split / "feats.scp", path / "feats.scp"]

    for candidate in candidates:
        if candidate.is_file():
            return candidate

    raise UnitModelError(
        f"There are no kaldi features at '{path}': expected a script file or archive, or a folder with "
        f"'{split}/feats.scp' or 'feats.scp'."
    )


@final
class _FairseqFeatures(StoredFeatures):
    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.kind = "fairseq"

        num_shards = count_shards(folder, manifest.split)

        self._arrays: list[NDArray[Any]] = []

        counts: list[NDArray[np.int64]] = []
        problems: list[str] = []

        for shard in range(num_shards):
            paths = feature_paths("fairseq", folder, manifest.split, (shard, num_shards))

            try:
                array, lengths = read_shard(paths)
            except DumpError as ex:
                problems.append(str(ex))
                continue

            self._arrays.append(array)

            counts.append(lengths)

        if len(dims := {a.shape[1] for a in self._arrays}) > 1:
            problems.append(f"the shards have different dimensions: {sorted(dims)}")

        if problems:
            raise UnitModelError(format_problems(f"The features of '{manifest.split}' in '{folder}' fail:", problems))

        self.counts = np.concatenate(counts)

        if len(self.counts) != len(manifest.ids):
            raise UnitModelError(
                f"The features of '{manifest.split}' in '{folder}' are of {len(self.counts):,} utterances, but "
                f"'{manifest.path}' has {len(manifest.ids):,}. Are they all there, and is it the same manifest?"
            )

        self.dim = int(self._arrays[0].shape[1])

        shards = [feature_paths("fairseq", folder, manifest.split, (i, num_shards)) for i in range(num_shards)]

        records = [read_feature_record(paths["record"]) for paths in shards]

        if not are_of_one_making(records):
            raise UnitModelError(
                f"The shards of the features of '{manifest.split}' in '{folder}' were not made in the same way: their "
                f"records ('{shards[0]['record'].name}' and so on) differ. Write those that are old anew, or all to "
                "another folder."
            )

        self.record = records[0]

        self.files = [paths[role] for paths in shards for role in ("data", "counts")]

        self._data = [paths["data"] for paths in shards]

        self._starts = np.concatenate([np.cumsum(c) - c for c in counts])

        self._shard_of = np.repeat(np.arange(len(counts)), [len(c) for c in counts])

        self._ids = manifest.ids

    @override
    def read(self, idx: int) -> NDArray[np.float32]:
        start = int(self._starts[idx])

        shard = int(self._shard_of[idx])

        features = self._arrays[shard][start : start + int(self.counts[idx])]

        what, count = f"'{self._ids[idx]}'", int(self.counts[idx])

        return _check(np.array(features, np.float32), what, self.dim, count, rows=(self._data[shard], start))


def _check(
    features: NDArray[np.float32], what: str, dim: int, count: int, *, rows: tuple[Path, int] | None = None
) -> NDArray[np.float32]:
    """
    :param rows: The file in which the features are rows, and the number of the first, from 0.
    """
    if features.shape[1] != dim:
        raise UnitModelError(
            f"The features of {what} must have {dim} numbers a frame as the others have, but have {features.shape[1]}."
        )

    if len(features) != count:
        raise UnitModelError(f"The features of {what} have {len(features)} frames, but {count} were announced.")

    if not np.isfinite(features).all():
        frame = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])

        place = "" if rows is None else f" (row {rows[1] + frame:,} of '{rows[0]}', counted from 0)"

        raise UnitModelError(f"The features of {what} hold NaN or infinite values, first in frame {frame}{place}.")

    return features
