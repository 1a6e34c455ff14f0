"""Writing files so that nothing half-written is ever left: write aside, flush to disk, then rename."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubert_plugin.errors import StorageError


def user_cache_dir() -> Path:
    """Return ``fairseq2-hubert`` in the user's cache folder: ``$XDG_CACHE_HOME``, or ``~/.cache``.

    :raises OSError: The user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")

    # The XDG specification has relative paths ignored.
    if not os.path.isabs(base):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError as ex:
            raise OSError("the user has no home folder") from ex

    return Path(base, "fairseq2-hubert")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block ends well, delete it otherwise.

    The file that stood at ``path`` before stays valid until the rename, which is atomic within a file system.

    :raises StorageError: The file system refuses to write (no space, no permission).
    """
    path = Path(path)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)

        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as ex:
        raise _storage_error(path, ex) from ex

    os.close(fd)

    tmp = Path(name)

    try:
        try:
            yield tmp

            # `mkstemp` makes files private; give the file the permissions that an ordinary `open` would have given.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(tmp, 0o666 & ~umask)

            with tmp.open("rb+") as fp:
                os.fsync(fp.fileno())

            os.replace(tmp, path)
        except OSError as ex:
            raise _storage_error(path, ex) from ex
    finally:
        with suppress(FileNotFoundError):
            tmp.unlink()


def is_torch_write_error(ex: RuntimeError) -> bool:
    """Return whether this is what ``torch.save`` makes of a file system that refused, when the disk is full for
    example: it knows no ``OSError``."""
    return "PytorchStreamWriter failed" in str(ex) or "unexpected pos" in str(ex)


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8; file names that are no UTF-8, as they are) to ``path`` through :func:`atomic_path`."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8", errors="surrogateescape")


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file's bytes: its fingerprint in provenance
    records."""
    digest = hashlib.sha256()

    with Path(path).open("rb") as fp:
        while chunk := fp.read(1 << 20):
            digest.update(chunk)

    return digest.hexdigest()[:16]


def file_stamp(paths: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the sizes and times of change of files, which are not read. Where
    the files lie makes no difference."""
    stamps = []

    for path in paths:
        try:
            status = os.stat(path)

            stamps.append((path.name, status.st_size, status.st_mtime_ns))
        except OSError:  # whoever reads the file says why it cannot be read
            stamps.append((path.name, -1, -1))

    return hashlib.sha256(repr(stamps).encode(errors="surrogateescape")).hexdigest()[:16]


def _storage_error(path: Path, ex: OSError) -> StorageError:
    reason = ex.strerror or str(ex)

    return StorageError(
        f"'{path}' cannot be written: {reason}. An earlier file of that name is untouched; free space or choose "
        "another folder, then run the same command again."
    )
