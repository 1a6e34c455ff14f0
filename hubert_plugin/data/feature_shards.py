"""The shards of features in files: which are done, which belong together, and joining them.

Shards of another *cut* (the same split in another number of shards) are taken away once the new ones are whole: who
reads the files could not tell which to take. Only what lies beside a record of this package's is ever removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hubert_plugin.data.feature_files import FeatureFormat, feature_paths, read_feature_record
from hubert_plugin.data.provenance import comparable
from hubert_plugin.data.shards import Shard
from hubert_plugin.errors import OutputDirError, StorageError, UnitModelError, format_problems
from hubert_plugin.files import write_text_atomic

_COUNTS: Final = ("num_utterances", "num_frames")
"""What the records of shards that belong together may differ in."""


def is_feature_shard_done(
    kind: FeatureFormat, folder: Path, split: str, shard: Shard | None, provenance: Mapping[str, object]
) -> bool:
    """Tell whether a shard (``None``: the split) has been written whole, with this provenance."""
    paths = feature_paths(kind, folder, split, shard)

    try:
        record = read_feature_record(paths["record"])
    except UnitModelError:
        return False

    if record is None or not all(p.is_file() for p in paths.values()):
        return False

    return _is_made_so(record, provenance)


def _is_made_so(record: Mapping[str, Any], provenance: Mapping[str, object]) -> bool:
    found, wanted = comparable(record), comparable(dict(provenance))

    return all(found.get(key) == value for key, value in wanted.items())


def are_of_one_making(records: Sequence[Mapping[str, Any] | None]) -> bool:
    """Tell whether the records of shards, or their absence, differ in nothing but what each shard holds."""
    plain = [r if r is None else {k: v for k, v in comparable(r).items() if k not in _COUNTS} for r in records]

    return all(p == plain[0] for p in plain)


def withdraw_merged(kind: FeatureFormat, folder: Path, split: str, provenance: Mapping[str, object]) -> None:
    """Remove what joins kaldi's shards if it was made with another provenance: shards of it are about to be replaced.

    :raises StorageError: It cannot be removed.
    """
    if kind == "fairseq":
        return

    paths = feature_paths(kind, folder, split)

    try:
        record = read_feature_record(paths["record"])

        if record is None or _is_made_so(record, provenance):
            return
    except UnitModelError:
        pass  # a record that says nothing vouches for nothing

    # The record goes last: killed in between, the next run finds it and removes the rest. Of features in one piece it
    # stays until they are replaced: it says whose the archive is.
    for role in ("scp",) if _is_one_piece(paths) else ("scp", "record"):
        try:
            paths[role].unlink(missing_ok=True)
        except OSError as ex:
            raise StorageError(
                f"'{paths[role]}' belongs to features that were made in another way and cannot be removed: "
                f"{ex.strerror or ex}. Remove it, or choose another folder."
            ) from ex


def merge_feature_shards(kind: FeatureFormat, folder: Path, split: str, num_shards: int) -> bool:
    """Join finished shards: kaldi's get one ``feats.scp`` and ``utt2num_frames``; fairseq's are read as they are.

    Whoever finishes a shard calls it; it does nothing until all are there, made in the same way.

    :returns: Whether all shards are there.
    :raises UnitModelError: A record cannot be understood.
    """
    shards = [feature_paths(kind, folder, split, (i, num_shards)) for i in range(num_shards)]

    if not all(p["record"].is_file() for p in shards):
        return False

    records = [read_feature_record(p["record"]) for p in shards]

    # Some may be of an earlier run, of other features or another manifest; whoever replaces them comes here again.
    if not are_of_one_making(records):
        return False

    if kind == "fairseq":
        return True

    whole = feature_paths(kind, folder, split)

    record = dict(records[0] or {})

    for key in _COUNTS:
        record[key] = sum(r[key] for r in records if r is not None)

    for role in ("scp", "counts"):
        texts = [p[role].read_text(encoding="utf-8", errors="surrogateescape") for p in shards]

        write_text_atomic(whole[role], "".join(texts))

    write_text_atomic(whole["record"], json.dumps(record, indent=2, sort_keys=True) + "\n")

    return True


def check_other_cuts(kind: FeatureFormat, folder: Path, split: str, num_shards: int) -> None:
    """Refuse a folder in which a cut into ``num_shards`` would lie beside shards of another cut that are not ours.

    :raises OutputDirError: fairseq's dump of the split is there in other shards, without a record.
    """
    if kind != "fairseq":
        return  # one `feats.scp` says which arks are read

    foreign = []

    for shard in _find_shards(folder, split, ".npy"):
        if shard[1] != num_shards and not _is_ours(kind, folder, split, shard):
            foreign.append(feature_paths(kind, folder, split, shard)["data"].name)

    if foreign:
        raise OutputDirError(
            format_problems(
                f"'{folder}' holds a dump of '{split}' in other than {num_shards} shards, of whose making there is no "
                "record: beside new ones it could not be read. Remove it, or choose another folder:",
                foreign,
            )
        )


def find_other_cuts(kind: FeatureFormat, folder: Path, split: str, num_shards: int) -> list[Path]:
    """Return the files, by their records ours, of a split's shards of other cuts than ``num_shards``; records last."""
    files: list[Path] = []

    parent, stem = (folder, split) if kind == "fairseq" else (folder / split, "feats")

    for shard in _find_shards(parent, stem, ".json", "_" if kind == "fairseq" else "."):
        if shard[1] != num_shards and _is_ours(kind, folder, split, shard):
            paths = feature_paths(kind, folder, split, shard)

            files += [paths[role] for role in ("data", "scp", "counts", "record") if role in paths]

    # Of kaldi's features in one piece, all but the archive is replaced by what joins the shards.
    if kind == "kaldi" and num_shards > 1 and _is_one_piece(paths := feature_paths(kind, folder, split)):
        files.append(paths["data"])

    return files


def remove_files(paths: Sequence[Path]) -> None:
    """Remove files, of which others may remove some at the same time.

    :raises StorageError: One cannot be removed.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as ex:
            raise StorageError(
                f"'{path}' is of features in another number of shards and cannot be removed: {ex.strerror or ex}. "
                "Remove it, or choose another folder."
            ) from ex


def _find_shards(folder: Path, stem: str, ending: str, separator: str = "_") -> list[Shard]:
    """Return the shards that have a file ``<stem><separator><i>_<n><ending>``."""
    pattern = re.compile(rf"{re.escape(stem + separator)}([0-9]{{1,9}})_([0-9]{{1,9}}){re.escape(ending)}")

    try:
        return sorted((int(m[1]), int(m[2])) for p in folder.iterdir() if (m := pattern.fullmatch(p.name)))
    except FileNotFoundError:
        return []
    except OSError as ex:
        raise StorageError(f"The folder '{folder}' cannot be listed: {ex.strerror or ex}.") from ex


def _is_ours(kind: FeatureFormat, folder: Path, split: str, shard: Shard) -> bool:
    try:
        record = read_feature_record(feature_paths(kind, folder, split, shard)["record"])
    except UnitModelError:
        return False

    return record is not None and record.get("kind") == kind


def _is_one_piece(paths: Mapping[str, Path]) -> bool:
    """Tell whether kaldi's features of a split, by their record ours, were written in one piece."""
    try:
        record = read_feature_record(paths["record"])
    except UnitModelError:
        return False

    return record is not None and record.get("num_shards") == 1 and paths["data"].is_file()
