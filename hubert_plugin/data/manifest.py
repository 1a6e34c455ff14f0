"""Manifests: which utterances there are, in which order, and how long they are.

The format is fairseq's TSV (``examples/wav2vec/wav2vec_manifest.py``): the first line is the root folder, each further
line ``path<TAB>num_samples`` with a path relative to the root (or ``archive.zip:offset:length``) and the number of
samples at 16 kHz. The path is the utterance's id: base names may repeat (FACTS, trap T37).

A manifest folder holds one such file a split, ``train.tsv`` and ``valid.tsv``, and labels beside them.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.audio.source import split_ref
from hubert_plugin.errors import ManifestError, format_problems
from hubert_plugin.files import atomic_path
from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE

SKIPPED_NAME: Final = "skipped.tsv"
"""The list of files that a scan left out; lies beside the manifests but is none."""

ALIGNMENT_SUFFIXES: Final = (".align.tsv", ".words.tsv")
"""How the phone and word times of a split are named; they lie beside the manifests but are none."""

_MAX_NUM_SAMPLES: Final = 1 << 40  # two years of speech in one file: surely a mistake
_CHUNK: Final = 1 << 14


@dataclass(frozen=True)
class Manifest:
    """One split of a corpus. Utterance i has the id ``ids[i]`` and ``sizes[i]`` samples at 16 kHz."""

    path: Path
    """The file it was read from."""

    split: str

    root: Path
    """The folder to which ids are relative."""

    ids: list[str]

    sizes: NDArray[np.int64]
    """*Shape:* (N,)"""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def num_samples(self) -> int:
        """The number of samples of all utterances together."""
        return int(self.sizes.sum())

    @property
    def hours(self) -> float:
        return self.num_samples / SAMPLE_RATE / 3600

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for ids, order and sizes; not for the root, since data may be moved."""
        digest = hashlib.sha256()

        ids = iter(self.ids)

        while chunk := list(islice(ids, _CHUNK)):
            digest.update("".join(f"{i}\n" for i in chunk).encode("utf-8", "surrogateescape"))

        digest.update(self.sizes.astype("<i8", copy=False).tobytes())

        return digest.hexdigest()[:16]


def read_manifest(manifest_dir: Path, split: str, *, check_files: bool = True) -> Manifest:
    """Read ``manifest_dir/split.tsv``. A relative root is taken relative to the manifest's folder.

    Windows line ends, a byte-order mark and empty lines at the end are tolerated.

    :param check_files: If ``True``, the root and every file (archives once) have to exist; a folder is listed once
        rather than each file asked for. If ``False``, no audio needs to be there.
    :raises ManifestError: The file is missing, empty or malformed; names all problems at once with their lines.
    """
    path = _find_manifest(Path(manifest_dir), split)

    try:
        root_line, ids, sizes, problems = _parse(path)
    except OSError as ex:
        raise ManifestError(f"'{path}' cannot be read: {ex.strerror or ex}.") from ex

    root = path.parent / root_line

    if check_files and not problems:
        problems = _check_files(path, root, ids)

    if problems:
        raise ManifestError(format_problems(f"Manifest '{path}' cannot be used:", problems))

    return Manifest(path, split, root, ids, sizes)


def write_manifest(path: Path, root: Path | str, rows: Iterable[tuple[str, int]]) -> None:
    """Write a manifest atomically.

    :param root: The first line, as it is: an absolute folder, or one relative to the manifest's.
    :param rows: Path relative to the root, and number of samples at 16 kHz.
    :raises ManifestError: A path cannot be written in this format (tab or line break in it), is repeated or too short
        to be read again.
    :raises StorageError: The file system refuses; what stood at ``path`` before is untouched.
    """
    with manifest_aside(path, root, rows):
        pass


@contextmanager
def manifest_aside(path: Path, root: Path | str, rows: Iterable[tuple[str, int]]) -> Iterator[Path]:
    """Write a manifest aside, as :func:`write_manifest` does, and yield where; it takes its place when the block ends
    well."""
    seen: set[str] = set()

    with atomic_path(path) as tmp:
        with tmp.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as fp:
            _check_field(path, str(root))

            fp.write(f"{root}\n")

            for ref, num_samples in rows:
                _check_field(path, ref)

                if ref in seen:
                    raise ManifestError(f"'{path}' cannot be written: '{ref}' is listed twice, ids must be unique.")

                if num_samples < RECEPTIVE_FIELD:
                    raise ManifestError(
                        f"'{path}' cannot be written: '{ref}' has {num_samples} samples, expected at least "
                        f"{RECEPTIVE_FIELD} (one frame)."
                    )

                seen.add(ref)

                fp.write(f"{ref}\t{num_samples}\n")

        yield tmp


def field_problem(field: str) -> str | None:
    """Return why a manifest cannot hold a path or root folder; ``None`` if it can."""
    if not field or "\t" in field or "\n" in field or field.endswith("\r"):
        return f"{field!r} is empty or holds a tab or a line break, which a manifest cannot express. Rename it."

    return None


def list_splits(manifest_dir: Path) -> list[str]:
    """Return the names of the splits in ``manifest_dir``, sorted; none if the folder does not exist."""
    try:
        names = os.listdir(manifest_dir)
    except OSError:
        return []

    def is_manifest(name: str) -> bool:
        return (
            name.endswith(".tsv") and not name.endswith(ALIGNMENT_SUFFIXES) and name[0] != "." and name != SKIPPED_NAME
        )

    return sorted(n[:-4] for n in names if is_manifest(n))


def _find_manifest(manifest_dir: Path, split: str) -> Path:
    path = manifest_dir / f"{split}.tsv"

    if path.is_file():
        return path

    if not manifest_dir.is_dir():
        raise ManifestError(
            f"'{manifest_dir}' is not a folder: expected one that holds '{split}.tsv'. `fairseq2 recipe hubert "
            f"manifest {manifest_dir} --config source=FOLDER` makes it from a folder of audio."
        )

    splits = list_splits(manifest_dir)

    if splits:
        raise ManifestError(f"'{path}' does not exist: the splits there are: {', '.join(splits)}.")

    raise ManifestError(
        f"'{path}' does not exist: there is no manifest at all in that folder. If it holds audio, `fairseq2 recipe "
        f"hubert manifest FOLDER --config source={manifest_dir}` makes manifests of it; name FOLDER in its place then."
    )


def _parse(path: Path) -> tuple[str, list[str], NDArray[np.int64], list[str]]:
    """Return root line, ids, sizes and problems of the manifest at ``path``."""
    ids: list[str] = []
    sizes: list[int] = []
    problems: list[str] = []

    # Only "\n" ends a line, as in fairseq; other separators that Python knows may be part of a name.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as fp:
        root_line = fp.readline().rstrip("\r\n")

        if not root_line.strip():
            found = "an empty line" if path.stat().st_size else "an empty file"

            problems.append(f"{path}:1: expected the root folder, found {found}.")
        elif "\t" in root_line:
            problems.append(f"{path}:1: expected the root folder alone, found a tab: {root_line!r}.")

        num_blank = 0

        for line_nr, line in enumerate(fp, start=2):
            ref, tab, field = line.partition("\t")

            field = field.rstrip()

            # The common case costs one test; what fails it is looked at closely.
            if (
                tab
                and ref
                and field.isdecimal()
                and field.isascii()
                and RECEPTIVE_FIELD <= int(field) < _MAX_NUM_SAMPLES
            ):
                ids.append(ref)
                sizes.append(int(field))
            elif not line.strip():
                num_blank += 1
                continue
            else:
                problems.append(f"{path}:{line_nr}: {_explain_line(line)}")

            if num_blank:
                problems.append(f"{path}:{line_nr - num_blank}: expected `path<TAB>num_samples`, found an empty line.")

                num_blank = 0

    if not ids and not problems:
        problems.append(
            f"{path}:2: expected `path<TAB>num_samples`, found the end of the file: there are no utterances."
        )

    if not problems:
        problems = _find_duplicates(path, ids)

    return root_line.strip(), ids, np.array(sizes, dtype=np.int64), problems


def _explain_line(line: str) -> str:
    line = line.rstrip("\r\n")

    expected = "expected `path<TAB>num_samples`"

    fields = line.split("\t")

    if len(fields) == 1:
        return f"{expected}, found no tab: {_shorten(line)}."

    if len(fields) > 2:
        return f"{expected}, found {len(fields)} fields: {_shorten(line)}."

    ref, field = fields

    if not ref:
        return f"{expected}, found an empty path: {_shorten(line)}."

    if not (field.removeprefix("-").isdecimal() and field.isascii()):
        return f"expected a whole number of samples after the tab, found {_shorten(field)}."

    if int(field) >= _MAX_NUM_SAMPLES:
        return f"expected a number of samples, found one beyond all bounds: {field}."

    return f"expected at least {RECEPTIVE_FIELD} samples (25 ms at 16 kHz, one frame), found {field}: {_shorten(ref)}."


def _find_duplicates(path: Path, ids: list[str]) -> list[str]:
    if len(set(ids)) == len(ids):
        return []

    first: dict[str, int] = {}
    problems = []

    # No line was left out before (there were no problems), so the line is two more than the index.
    for line_nr, ref in enumerate(ids, start=2):
        if (first_nr := first.setdefault(ref, line_nr)) != line_nr:
            problems.append(f"{path}:{line_nr}: expected unique paths, found {_shorten(ref)} again (line {first_nr}).")

    return problems


def _check_files(path: Path, root: Path, ids: list[str]) -> list[str]:
    if not root.is_dir():
        return [f"{path}:1: expected the root folder, found no folder at '{root}'. Was the data moved?"]

    refs_by_dir: dict[str, list[int]] = defaultdict(list)

    for idx, ref in enumerate(ids):
        refs_by_dir[os.path.dirname(split_ref(ref)[0])].append(idx)

    missing = []

    for folder, indices in refs_by_dir.items():
        names = _list_files(os.path.join(root, folder))

        missing += [i for i in indices if os.path.basename(split_ref(ids[i])[0]) not in names]

    return [
        f"{path}:{i + 2}: expected an audio file, found none at '{os.path.join(root, split_ref(ids[i])[0])}'."
        for i in sorted(missing)
    ]


def _list_files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.is_file()}
    except OSError:
        return set()


def _check_field(path: Path, field: str) -> None:
    if problem := field_problem(field):
        raise ManifestError(f"'{path}' cannot be written: {problem}")


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:97]}…")
