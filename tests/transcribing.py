"""Runs of ``transcribe``, and what they wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golden import FAIRSEQ
from processes import Run, command_server

MODEL = FAIRSEQ / "tiny_ctc.pt"
"""A recogniser of the letters a to h, not trained."""


def arguments(out: Path, *overrides: object, args: Sequence[str] = ()) -> list[str]:
    return ["recipe", "hubert", "transcribe", str(out), *args, "--no-rich", "--config", *map(str, overrides)]


def transcribe(out: Path, *overrides: object, args: Sequence[str] = (), **kwargs: Any) -> Run:
    return command_server().run(*arguments(out, *overrides, args=args), timeout=600.0, **kwargs)


def done(run: Run) -> Run:
    assert run.poll() == 0, run.raw[-3000:]

    return run


def read_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "transcripts.jsonl").read_text().splitlines()]


def read_summary(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "transcribe.json").read_text())

    return summary
