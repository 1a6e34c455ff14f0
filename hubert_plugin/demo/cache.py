"""The cache folder: corpora made aside and renamed, one maker at a time, leftovers of dead makers cleaned up.

A folder is made as ``.<name>.<host>.<random>.tmp`` and renamed to ``<name>`` when it is complete. Makers of one name
take turns by a lock on ``.<name>.lock``, which the operating system releases when its holder dies. Where a file system
has no locks, two makers may work at once: the first to rename wins, the other discards its own.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hubert_plugin.files import user_cache_dir

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SUFFIX: Final = ".tmp"

_MAX_AGE: Final = 24 * 3600.0
"""Seconds after which a folder is a leftover, even if its maker may live elsewhere: none takes as long."""

_POLL_INTERVAL: Final = 0.2
"""Seconds between two attempts to get the lock."""


def default_cache_dir() -> Path:
    """Return the folder ``demo`` of :func:`~hubert_plugin.files.user_cache_dir`.

    :raises OSError: The user has no home.
    """
    return user_cache_dir() / "demo"


def make_once(folder: Path, is_complete: Callable[[], bool], make: Callable[[Path], None]) -> None:
    """Make ``folder``, unless it is complete, by having ``make`` fill a new folder that then takes its place.

    Safe to be killed at any moment and to be called by several processes at once.

    :param is_complete: Says whether ``folder`` holds all that it should.
    :raises OSError: The file system refuses.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)

    with _lock(folder, wait=True) as is_locked:
        if is_complete():
            return

        _remove_leftovers(folder, is_locked)

        if folder.exists():
            # Damaged. Renamed first, so that not even for a moment half of it stands there.
            doomed = _create_staging(folder)

            os.replace(folder, doomed)

            _remove(doomed)

        staging = _create_staging(folder)

        try:
            make(staging)

            try:
                os.rename(staging, folder)
            except OSError:
                # Without locks, somebody else may have been faster.
                if not is_complete():
                    raise
        finally:
            _remove(staging)


def _create_staging(folder: Path) -> Path:
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.{_host()}.", suffix=_SUFFIX, dir=folder.parent))

    # `mkdtemp` makes folders private; a cache may be shared.
    umask = os.umask(0)
    os.umask(umask)
    staging.chmod(0o777 & ~umask)

    return staging


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of ``folder``; yield whether there is one and it is held."""
    if fcntl is None:
        yield False

        return

    with folder.with_name(f".{folder.name}.lock").open("ab") as fp:
        is_locked = False

        while True:
            try:
                fcntl.flock(fp, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    break

                time.sleep(_POLL_INTERVAL)
            except OSError:
                # This file system has no locks.
                break
            else:
                is_locked = True

                break

        # Closing the file releases the lock. The file stays: to remove it is to remove a lock that somebody may hold.
        yield is_locked


def _remove_leftovers(folder: Path, is_locked: bool) -> None:
    """Remove folders of dead makers: of ``folder`` itself, if its lock is held, and of others whose lock is free."""
    for path in folder.parent.glob(f".*{_SUFFIX}"):
        # .<name>.<host>.<random>.tmp; a name may have dots, the rest has none.
        match path.name[1 : -len(_SUFFIX)].rsplit(".", 2):
            case [name, host, _] if path.is_dir():
                pass
            case _:
                continue

        # A lock need not be seen by another host that shares the folder.
        if host != _host() and not _is_old(path):
            continue

        if name == folder.name:
            if is_locked or _is_old(path):
                _remove(path)
        else:
            with _lock(folder.with_name(name), wait=False) as is_free:
                if is_free or _is_old(path):
                    _remove(path)


def _remove(folder: Path) -> None:
    """Remove ``folder``, as far as possible."""
    # A worker whose maker was killed may be writing its last file.
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)

        if not folder.exists():
            break

        time.sleep(_POLL_INTERVAL)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _MAX_AGE
    except FileNotFoundError:
        return False


def _host() -> str:
    return re.sub(r"[^\w-]", "_", platform.node()) or "localhost"
