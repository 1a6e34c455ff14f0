"""One run in a folder at a time.

The lock is the operating system's (``flock``), which lets go of it when its holder dies, so a lock is never stale. The
file's content only says who holds it. Steps inherit the lock: if they should outlive a run that was killed, the folder
stays locked until they are gone.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hubert_plugin.errors import OutputDirError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PATIENCE: Final = 10.0
"""Seconds to wait for the steps of a run that is dead; they end when they see that it is."""


@contextmanager
def lock_folder(path: Path, folder: Path) -> Iterator[int | None]:
    """Hold the lock file ``path``; yield its file descriptor, for steps to inherit, or ``None`` if there are no locks
    here.

    :param folder: The folder that it stands for.
    :raises OutputDirError: Somebody else holds it.
    """
    if fcntl is None:
        yield None

        return

    path.parent.mkdir(parents=True, exist_ok=True)

    with path.open("a+b") as fp:
        if not _acquire(fp.fileno(), path, folder):
            yield None

            return

        fp.truncate(0)
        fp.write(json.dumps({"pid": os.getpid(), "host": platform.node()}).encode() + b"\n")
        fp.flush()

        # Closing the file releases the lock. The file stays: to remove it is to remove a lock that somebody may hold.
        yield fp.fileno()


def _acquire(fd: int, path: Path, folder: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE

    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

            return True
        except BlockingIOError:
            holder = _read_holder(path)

            if _is_dead(holder) and time.monotonic() < deadline:
                time.sleep(0.05)

                continue

            raise OutputDirError(_describe(folder, holder)) from None
        except OSError:
            # This file system has no locks.
            return False


def _describe(folder: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid', 'of unknown number')} on host '{holder.get('host', 'unknown')}'"

    if _is_dead(holder):
        return (
            f"The folder '{folder}' is locked: {who} has ended, but a step that it started still runs. Wait for it, or "
            "end it; then run the same command again."
        )

    return (
        f"The folder '{folder}' is being worked on by {who}. Wait until it has ended, or stop it; two runs cannot "
        "share a folder."
    )


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

    return holder if isinstance(holder, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")

    if holder.get("host") != platform.node() or not isinstance(pid, int):
        return False

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False

    # A process that was killed and not yet waited for.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
