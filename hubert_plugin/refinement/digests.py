"""Digests of files and folders, remembered as long as the file system says that nothing was written.

A file that was read once is known by size, inode, and the times of its last change (of content and of inode, to the
nanosecond). These are only compared for equality: no clock is trusted to tell what came first. A copied or moved folder
is read again, once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from hubert_plugin.data.kaldi_scp import KaldiFormatError, read_scp
from hubert_plugin.files import file_stamp, write_text_atomic

_CHUNK: Final = 1 << 20

_VERSION: Final = 1


@final
class Digests:
    """Digests of files below ``root`` and elsewhere, kept in a file."""

    def __init__(self, root: Path, cache: Path) -> None:
        """
        :param root: The folder that may be moved: what lies in it is known by its place relative to it.
        :param cache: Where digests are remembered.
        """
        self._root = root
        self._cache = cache
        self._known = _read_cache(cache)
        self._changed = False

    def of_file(self, path: Path) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of a file's bytes.

        :raises OSError: It cannot be read.
        """
        stat = path.stat()

        state = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]

        key = self._key(path)

        match self._known.get(key):
            case [found, str(digest)] if found == state:
                return digest

        digest = _sha256(path)

        # Files that are written while they are read are not remembered.
        after = path.stat()

        if [after.st_size, after.st_ino, after.st_mtime_ns, after.st_ctime_ns] == state:
            self._known[key] = [state, digest]

            self._changed = True

        return digest

    def of_path(self, path: Path) -> str:
        """Return the digest of a file, or of the names and contents of a folder; the folder's own name and place do not
        count.

        :raises OSError: There is nothing, or it cannot be read.
        """
        if not path.is_dir():
            return self.of_file(path)

        return self.of_files(path, (p for p in path.rglob("*") if p.is_file()))

    def of_files(self, folder: Path, files: Iterable[Path]) -> str:
        """Return the digest of names and contents of files in a folder."""
        digest = hashlib.sha256()

        for name, file in sorted((f.relative_to(folder).as_posix(), f) for f in files):
            digest.update(f"{name} {self.of_file(file)}\n".encode("utf-8", "surrogateescape"))

        return digest.hexdigest()[:16]

    def of_features(self, path: Path) -> str:
        """Return what tells features in files from those that take their place. They are not read, being large: the
        records of ``features`` vouch for its files, sizes and times of change for those of others.

        :param path: A folder or a file, such as a script file of kaldi's.
        """
        files = [path, path.with_suffix(".json")]

        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())

        records = [p for p in files if p.suffix == ".json" and p.is_file()]

        vouched = {p.with_suffix("") for p in records}

        others = [p for p in files if p.with_suffix("") not in vouched]

        # Archives often lie elsewhere.
        for script in [p for p in others if p.suffix == ".scp"]:
            with suppress(KaldiFormatError):  # whoever reads the features says what is wrong
                others += sorted({Path(e.path) for e in read_scp(script, allow_pipes=True) if not e.is_command})

        return self.of_files(path if path.is_dir() else path.parent, records)[:8] + file_stamp(others)[:8]

    def of_manifest(self, path: Path) -> str:
        """Return the digest of a manifest without its first line, the folder of the audio: data may be moved.

        :raises OSError: It cannot be read.
        """
        digest = hashlib.sha256()

        with path.open("rb") as fp:
            fp.readline()

            while chunk := fp.read(_CHUNK):
                digest.update(chunk)

        return digest.hexdigest()[:16]

    def of_model(self, name: str) -> str:
        """Return what tells two models apart: of a run, the digest of its last checkpoint; of a file or another folder,
        that of its content; of an asset card, its name.

        :raises OSError: A file cannot be read.
        """
        path = Path(name).expanduser()

        if not path.is_absolute():
            path = self._root / path

        if not path.exists():
            return name

        step = last_checkpoint(path)

        if step is None:
            return self.of_path(path)

        description = step.parent / "model.yaml"

        files = [f for f in (step / "model").rglob("*") if f.is_file()]

        digest = self.of_files(step, files)

        if description.is_file():
            digest = hashlib.sha256(f"{digest} {self.of_file(description)}".encode()).hexdigest()[:16]

        return digest

    def save(self) -> None:
        """Write what is remembered, if it changed."""
        if self._changed:
            # What is no longer there would stay for ever.
            known = {k: v for k, v in self._known.items() if (self._root / k).exists()}

            write_text_atomic(self._cache, json.dumps({"version": _VERSION, "files": known}, indent=0) + "\n")

            self._changed = False

    def _key(self, path: Path) -> str:
        try:
            return path.relative_to(self._root).as_posix()
        except ValueError:
            return str(path)


def digest_of(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def last_checkpoint(run: Path) -> Path | None:
    """Return the folder ``step_N`` of the last checkpoint of a run that holds a model; ``None`` if there is none."""
    steps = checkpoint_steps(run)

    return steps[max(steps)] if steps else None


def checkpoint_steps(run: Path) -> dict[int, Path]:
    """Return the folders ``step_N`` of a run's checkpoints that hold a model, by step."""
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run

    return {
        int(p.name[5:]): p
        for p in folder.glob("step_*")
        if re.fullmatch(r"step_\d+", p.name) and (p / "model").is_dir()
    }


def size_on_disk(path: Path) -> int:
    """Return how many bytes the files of a folder take; links are not followed."""
    total = 0

    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # removed meanwhile
                continue

    return total


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()

    with path.open("rb") as fp:
        while chunk := fp.read(_CHUNK):
            digest.update(chunk)

    return digest.hexdigest()[:16]


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))

        if content["version"] == _VERSION and isinstance(content["files"], dict):
            return dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # everything is read again

    return {}
