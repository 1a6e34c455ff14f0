"""C sources of this package, compiled on first use by the C compiler of the machine, if it has one.

What is compiled is made for the processor at hand and kept in the user's cache folder, under a name that tells source,
options and processor: machines that share a home folder do not share what they cannot run. Everything works without,
only slower; ``HUBERT_COMPILED=0`` in the environment says to do without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from hubert_plugin.errors import StorageError
from hubert_plugin.files import atomic_path, user_cache_dir

SWITCH: Final = "HUBERT_COMPILED"
"""The environment variable that says, by ``0``, that nothing is to be compiled."""

OPTIONS: Final = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")

_TIMEOUT: Final = 120.0
"""Seconds."""


class CompileError(Exception):
    """There is no compiled form; the message says why."""


def compile_library(source: Path, *, target: str = "native", folder: Path | None = None) -> ctypes.CDLL:
    """Compile ``source``, unless that was done before, and load it. Safe to be called by many processes at once.

    :param target: The processor to compile for (``-march``).
    :param folder: Where to keep it; ``None`` is ``fairseq2-hubert/compiled`` in the user's cache folder.
    :raises CompileError: It is switched off, there is no compiler, or it fails; no folder can be written to.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        raise CompileError(f"{SWITCH}=0 is set")

    if sys.platform == "win32" or platform.machine().lower() not in ("x86_64", "amd64"):
        raise CompileError(f"there is none for {sys.platform} on {platform.machine()}")

    # It may include what is beside it.
    text = b"\0".join(path.read_bytes() for path in [source, *sorted(source.parent.glob("*.h"))])

    command = [*find_compiler(), *OPTIONS, f"-march={target}"]

    key = b"\0".join([text, *map(os.fsencode, command), _processor().encode()])

    try:
        folder = folder or user_cache_dir() / "compiled"

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

        library = folder / f"{source.stem}-{hashlib.sha256(key).hexdigest()[:16]}.so"

        if not _is_whole(library):
            with atomic_path(library) as tmp:
                _run(command, source, tmp)

                # Loading a file that lacks a part ends the process: it has to be told before.
                with tmp.open("ab") as fp:
                    fp.write(hashlib.sha256(tmp.read_bytes()).digest())

            library.chmod(0o600)

        # What others can write to is not run.
        if _is_ours(folder) and _is_ours(library):
            return ctypes.CDLL(str(library))

        return _compile_aside(command, source)
    except (OSError, StorageError):
        # No home, a full disk, or a folder that nothing may be run from.
        return _compile_aside(command, source)


def _is_whole(library: Path) -> bool:
    """Return whether the file is there and ends with the checksum of what is before."""
    try:
        data = library.read_bytes()
    except FileNotFoundError:
        return False

    return hashlib.sha256(data[:-32]).digest() == data[-32:]


def _is_ours(path: Path) -> bool:
    status = path.stat()

    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def find_compiler() -> list[str]:
    """Return the C compiler, with options: what ``CC`` names, else ``gcc``, ``cc`` or ``clang``.

    :raises CompileError: There is none.
    """
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as ex:
        raise CompileError(f"CC={os.environ['CC']} is not a command ({ex})") from ex

    commands = [named] if named else [["gcc"], ["cc"], ["clang"]]

    for name, *options in commands:
        if path := shutil.which(name):
            return [path, *options]

    raise CompileError(f"no C compiler was found ({', '.join(c[0] for c in commands)})")


def _compile_aside(command: list[str], source: Path) -> ctypes.CDLL:
    """Compile for this process alone."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, f"{source.stem}.so")

            _run(command, source, library)

            return ctypes.CDLL(str(library))  # it stays loaded when the file is gone
    except OSError as ex:
        raise CompileError(f"what was compiled could not be kept or loaded ({ex})") from ex


def _run(command: list[str], source: Path, library: Path) -> None:
    """:raises CompileError: The compiler fails."""
    compiler = command[0]

    try:
        run = subprocess.run(
            [*command, "-o", library, "-x", "c", source, "-lm"],
            capture_output=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as ex:
        raise CompileError(f"'{compiler}' could not be run ({ex})") from ex

    if run.returncode != 0:
        lines = run.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {run.returncode}"]

        reason = next((line for line in lines if "error" in line), lines[0])

        raise CompileError(f"'{compiler}' failed: {reason.strip()}")


def _processor() -> str:
    """Return what tells processors that run different instructions apart."""
    flags = ""

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as fp:
            flags = next((line for line in fp if line.startswith("flags")), "")
    except OSError:
        pass  # not Linux

    return f"{sys.platform} {platform.machine()} {platform.processor()} {flags}"
