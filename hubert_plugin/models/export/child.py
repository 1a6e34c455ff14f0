"""Lets the process start in which fairseq2 exports to Hugging Face during training.

fairseq2 0.8 starts it with an *empty* environment. That loses what the run was given (caches, proxies, thread limits),
and where the system has no libsndfile, fairseq2 cannot be imported there: in its own processes this package loads the
one of the ``soundfile`` wheel first (``_native.py``), but here fairseq2 is the first to be imported.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.process import ProcessRunner
from typing_extensions import override


@final
class InheritingProcessRunner(ProcessRunner):
    """Gives child processes this process's environment, where they would get an empty one."""

    @override
    def run(self, args: Sequence[str], *rest: Any, env: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        return self._run(args, *rest, env=env, **kwargs)

    @override
    def run_text(self, args: Sequence[str], *rest: Any, env: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        return self._run(args, *rest, env=env, text=True, **kwargs)

    def _run(
        self,
        args: Sequence[str],
        stdout: Any = None,
        stderr: Any = None,
        capture_output: bool = False,
        cwd: Path | None = None,
        *,
        env: Mapping[str, str] | None,
        text: bool = False,
    ) -> Any:
        if env is not None and not env:
            env = child_environment()

        return subprocess.run(
            args, stdout=stdout, stderr=stderr, capture_output=capture_output, cwd=cwd, env=env, text=text
        )


def child_environment() -> dict[str, str]:
    """Return the environment of a process in which fairseq2 is imported before this package."""
    env = dict(os.environ)

    if sys.platform == "linux" and find_library("sndfile") is None and (library := _bundled_libsndfile()) is not None:
        env["LD_PRELOAD"] = " ".join(filter(None, (str(library), env.get("LD_PRELOAD"))))

    return env


def _bundled_libsndfile() -> Path | None:
    spec = find_spec("_soundfile_data")

    machine = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"

    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        for library in sorted(Path(location).glob(f"libsndfile*{machine}*.so*")):
            return library

    return None


def register_process_runner(container: DependencyContainer) -> None:
    """Put :class:`InheritingProcessRunner` in the place of fairseq2's own runner, if that is registered already."""
    # fairseq2's container refuses a second provider, so the first is taken out.
    if container._registrations.pop((ProcessRunner, None), None) is not None:
        container.register_type(ProcessRunner, InheritingProcessRunner)
