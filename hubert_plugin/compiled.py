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

    text = source.read_bytes()

    command = [*find_compiler(), *OPTIONS, f"-march={target}"]

    digest = hashlib.sha256(b"\0".join([text, " ".join(command).encode(), _processor().encode()])).hexdigest()[:16]

    try:
        library = (folder or user_cache_dir() / "compiled") / f"{source.stem}-{digest}.so"

        if library.exists():
            try:
                return ctypes.CDLL(str(library))
            except OSError:
                pass  # damaged; it is made anew

        with atomic_path(library) as tmp:
            _run(command, source, tmp)

        return ctypes.CDLL(str(library))
    except (OSError, StorageError):
        # No home, a full disk, or a folder that nothing may be run from.
        return _compile_aside(command, source)


def find_compiler() -> list[str]:
    """Return the C compiler, with options: what ``CC`` names, else ``gcc``, ``cc`` or ``clang``.

    :raises CompileError: There is none.
    """
    commands = [shlex.split(named)] if (named := os.environ.get("CC", "").strip()) else [["gcc"], ["cc"], ["clang"]]

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
