"""Reading features from files: kaldi tables and fairseq's dumps, in the order of a manifest.

Letters: *N* utterances, *M* frames of an utterance, *D* features of a frame. The writing counterpart and the file names
are in :mod:`hubert_plugin.data.feature_files`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.data.feature_files import FeatureFormat, are_of_one_making, feature_paths, read_feature_record
from hubert_plugin.data.kaldi import open_table, read_matrix
from hubert_plugin.data.kaldi_scp import KaldiFormatError, ScpEntry, read_lines
from hubert_plugin.data.label_check import LENGTH_TOLERANCE, expected_counts, infer_rate
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import UnitModelError, format_problems
from hubert_plugin.files import file_stamp
from hubert_plugin.frames import SUPPORTED_LABEL_RATES, seconds

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest


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
                "made from this audio?"
            )

        rate = likely

    expected = expected_counts(manifest.sizes, rate)

    wrong = np.flatnonzero(np.abs(features.counts - expected) > LENGTH_TOLERANCE[rate]).tolist()

    if wrong:
        head = f"The features of '{manifest.split}' do not fit the audio of '{manifest.path}' at {rate} Hz."

        if likely is not None and likely != rate:
            head += f" They look like {likely} frames per second."

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


@final
class _KaldiFeatures(StoredFeatures):
    def __init__(self, path: Path, manifest: Manifest, *, allow_pipes: bool) -> None:
        self.kind = "kaldi"

        try:
            table = {e.key: e for e in open_table(path, allow_pipes=allow_pipes)}
        except KaldiFormatError as ex:
            raise UnitModelError(str(ex)) from ex

        self._entries = _select(path, table, manifest)

        self.files = [path, *sorted({Path(e.path) for e in self._entries if not e.is_command})]

        self.record = read_feature_record(path.with_suffix(".json"))

        self.dim = int(self.record["dim"]) if self.record is not None else _read(self._entries[0]).shape[1]

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
            if value.isdecimal():
                counts[key] = int(value)
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

        num_shards = _num_shards(folder, manifest.split)

        self._arrays: list[NDArray[Any]] = []

        counts: list[NDArray[np.int64]] = []
        problems: list[str] = []

        for shard in range(num_shards):
            paths = feature_paths("fairseq", folder, manifest.split, (shard, num_shards))

            try:
                array = np.load(paths["data"], mmap_mode="r")  # refuses pickles

                lengths = _read_lengths(paths["counts"])
            except (OSError, ValueError, EOFError) as ex:
                problems.append(f"{paths['data']}: {_explain(ex)}")
                continue

            if array.ndim != 2 or array.dtype.kind != "f":
                problems.append(f"{paths['data']}: must hold (frames, features), but has the shape {array.shape}")
            elif len(array) != lengths.sum():
                problems.append(
                    f"{paths['data']}: has {len(array)} frames, but '{paths['counts'].name}' tells of {lengths.sum()}"
                )
            else:
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

        self._starts = np.concatenate([np.cumsum(c) - c for c in counts])

        self._shard_of = np.repeat(np.arange(len(counts)), [len(c) for c in counts])

        self._ids = manifest.ids

    @override
    def read(self, idx: int) -> NDArray[np.float32]:
        start = int(self._starts[idx])

        features = self._arrays[self._shard_of[idx]][start : start + int(self.counts[idx])]

        return _check(np.array(features, np.float32), f"'{self._ids[idx]}'", self.dim, int(self.counts[idx]))


def _num_shards(folder: Path, split: str) -> int:
    """Return how many shards the dump of a split has; all of them must be there."""
    pattern = re.compile(rf"{re.escape(split)}_(\d+)_(\d+)\.npy")

    try:
        found = {(int(m[1]), int(m[2])) for p in folder.iterdir() if (m := pattern.fullmatch(p.name))}
    except OSError as ex:
        raise UnitModelError(f"The features '{folder}' cannot be read: {ex.strerror or ex}.") from ex

    numbers = sorted({n for _, n in found})

    if not numbers:
        raise UnitModelError(
            f"There are no features of '{split}' in '{folder}': expected '{split}_0_1.npy' and '{split}_0_1.len', or "
            f"all shards '{split}_<i>_<n>'."
        )

    if len(numbers) > 1:
        raise UnitModelError(
            f"'{folder}' holds dumps of '{split}' in {' and in '.join(map(str, numbers))} shards. Keep one of them."
        )

    if missing := [f"{split}_{i}_{numbers[0]}.npy" for i in range(numbers[0]) if (i, numbers[0]) not in found]:
        raise UnitModelError(format_problems(f"Shards of '{split}' are missing in '{folder}':", missing))

    return numbers[0]


def _read_lengths(path: Path) -> NDArray[np.int64]:
    lengths = np.array([int(line) for line in path.read_text().split()], np.int64)

    if (lengths < 0).any():
        raise ValueError(f"'{path.name}' holds negative lengths")

    return lengths


def _explain(ex: Exception) -> str:
    if isinstance(ex, FileNotFoundError):
        return f"there is no '{Path(str(ex.filename)).name}'"

    return f"cannot be read, it may be cut off ({ex})"


def _check(features: NDArray[np.float32], what: str, dim: int, count: int) -> NDArray[np.float32]:
    if features.shape[1] != dim:
        raise UnitModelError(
            f"The features of {what} must have {dim} numbers a frame as the others have, but have {features.shape[1]}."
        )

    if len(features) != count:
        raise UnitModelError(f"The features of {what} have {len(features)} frames, but {count} were announced.")

    if not np.isfinite(features).all():
        frame = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])

        raise UnitModelError(f"The features of {what} hold NaN or infinite values, first in frame {frame}.")

    return features
