"""Brings a libsndfile into the process before fairseq2's native part asks for one.

``fairseq2n`` opens ``libsndfile.so.1`` when it is imported and refuses to start without it. The ``soundfile`` wheel
carries that very library under the same soname; loading it first satisfies ``fairseq2n``, so that ``pip`` alone sets
everything up. A library of the system, where there is one, is left in charge.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

_loaded = False


def preload_libsndfile() -> None:
    """Load libsndfile if the system has none. Does nothing when called again, or where no library is found."""
    global _loaded

    if _loaded or sys.platform == "win32":
        return

    _loaded = True

    soname = "libsndfile.dylib" if sys.platform == "darwin" else "libsndfile.so.1"

    try:
        ctypes.CDLL(soname)
    except OSError:
        pass
    else:
        return

    spec = find_spec("_soundfile_data")
    if spec is None or not spec.submodule_search_locations:
        return

    machine = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"

    for location in spec.submodule_search_locations:
        for library in sorted(Path(location).glob(f"libsndfile*{machine}*")):
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue

            return
