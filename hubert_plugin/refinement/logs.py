"""What is not kept of the output of steps: the line in which fairseq2 logs all environment variables, among which may
be passwords."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_ENVIRONMENT: Final = re.compile(rb"fairseq2 - Environment Variables\b")

_RECORD: Final = re.compile(rb"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+[\w.]+ - |^(?:fairseq2: |Traceback |\$ )")
"""How lines begin that are no part of the one before: of fairseq2's log, of a terminal's log, of an error."""


def without_environment(data: bytes) -> bytes:
    """Return the output of steps without the environment, which may take several lines: where a value has some, and on
    terminals, where lines are wrapped."""
    if _ENVIRONMENT.search(data) is None:
        return data

    kept, inside = [], False

    for line in data.splitlines(keepends=True):
        inside = _ENVIRONMENT.search(line) is not None or (inside and _RECORD.search(line) is None)

        if not inside:
            kept.append(line)

    return b"".join(kept)


def clean_log(log: Path) -> None:
    """Remove the environment from a log that nobody writes to."""
    try:
        data = log.read_bytes()

        kept = without_environment(data)

        if len(kept) != len(data):
            log.write_bytes(kept)
    except OSError:  # not there yet; or a full disk, of which others will tell
        return
