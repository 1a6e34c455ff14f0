"""The peak memory of a call.

CUDA: the allocator's own count. CPU: the kernel's high-water mark of the process, in a process of its own for each
contender, so that nothing another one left behind is counted or reused.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def _status(field: str) -> int | None:
    path = Path("/proc/self/status")

    if not path.exists():
        return None

    for line in path.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024

    return None


class PeakMemory:
    """Measures the bytes between what is held at :meth:`start` and the highest mark until :meth:`stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

            self._before = torch.cuda.memory_allocated(self._device)

            return

        with suppress(OSError):
            # Linux: 5 sets VmHWM back to the present size (proc(5)).
            Path("/proc/self/clear_refs").write_text("5")

        # Not getrusage: its mark survives fork and exec, so that a child starts with its parent's.
        self._before = _status("VmRSS") or _max_rss()

    def stop(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

            return torch.cuda.max_memory_allocated(self._device) - self._before

        return (_status("VmHWM") or _max_rss()) - self._before


def _max_rss() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_child(module: str, argv: Sequence[str], contender: str) -> dict[str, Any]:
    """Run ``python -m module argv --child contender`` and return what it wrote with ``--json``."""
    env = dict(os.environ)

    # Every block of 64 KiB or more goes back to the kernel when it is freed: the mark is then that of live memory.
    env.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_ARENA_MAX="1")

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file = Path(folder) / "result.json"

        command = [sys.executable, "-m", module, *argv, "--child", contender, "--json", str(file)]

        process = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        if process.returncode != 0 or not file.exists():
            raise SystemExit(f"The memory measurement of '{contender}' has failed:\n{process.stdout[-4000:]}")

        return json.loads(file.read_text())  # type: ignore[no-any-return]
