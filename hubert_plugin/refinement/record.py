"""The record of a step: what it was made from, and what it left (``OUT/state/ROUND-STEP.json``).

Places are relative to OUT, which may be moved. Times are for readers; nothing is decided by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from hubert_plugin.files import write_text_atomic

STATE_FOLDER: Final = "state"

Status = Literal["clearing", "running", "failed", "done"]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the result of a step depends on."""

    verb: str

    preset: str | None

    settings: Mapping[str, Any]
    """The options that count, by dotted key."""

    inputs: Mapping[str, str]
    """Digests of what it reads, by a name for people."""

    code: Mapping[str, str]
    """Versions, and a digest of this package's modules."""

    def differences(self, other: Fingerprint) -> list[str]:
        """Say how ``self``, which is now, differs from ``other``, which was: everything but the code."""
        if self.verb != other.verb:
            return [f"it is `{self.verb}` now, and was `{other.verb}`"]

        found = []

        if self.preset != other.preset:
            found.append(f"the preset changed from {other.preset or 'none'} to {self.preset or 'none'}")

        for key in sorted({*self.settings, *other.settings}):
            old, new = other.settings.get(key, _ABSENT), self.settings.get(key, _ABSENT)

            if old == new:
                continue

            if old is _ABSENT:
                found.append(f"{key} is {_show(new)} now, and was not given")
            elif new is _ABSENT:
                found.append(f"{key} is not given any more, and was {_show(old)}")
            else:
                found.append(f"{key} changed from {_show(old)} to {_show(new)}")

        for name in [*self.inputs, *(n for n in other.inputs if n not in self.inputs)]:
            if name not in other.inputs:
                found.append(f"it reads {name} now")
            elif name not in self.inputs:
                found.append(f"it does not read {name} any more")
            elif self.inputs[name] != other.inputs[name]:
                found.append(f"{name} changed")

        return found

    def other_versions(self, other: Fingerprint) -> list[str]:
        """Return the versions of the code of ``other`` that are not those of now."""
        return [f"{name} {value}" for name, value in other.code.items() if self.code.get(name) != value]

    def code_differences(self, other: Fingerprint) -> list[str]:
        """Say how the code differs."""
        return [
            f"{name} was {other.code.get(name, 'not there')}, and is {self.code.get(name, 'not there')}"
            for name in [*self.code, *(n for n in other.code if n not in self.code)]
            if self.code.get(name) != other.code.get(name)
        ]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of a step."""

    step: str

    status: Status

    fingerprint: Fingerprint

    command: list[str]
    """Its command line, to be run in OUT."""

    reason: str
    """Why it was run."""

    outputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files that it left, by place relative to OUT."""

    started: str | None = None
    """When it was first started, ISO 8601."""

    seconds: float = 0.0
    """The time that it took, over all attempts that ended or failed."""

    attempts: int = 1
    """How often it was started."""

    size_bytes: int | None = None
    """What it left on disk."""

    num_ranks: int = 1

    host: str | None = None

    exit_code: int | None = None
    """Of the last attempt that ended."""


def record_path(out: Path, step: str) -> Path:
    """Return where the record of a step is kept."""
    return out / STATE_FOLDER / f"{step.replace('/', '-')}.json"


def read_record(out: Path, step: str) -> Record | None:
    """Return the record of a step; ``None`` if there is none that can be read."""
    try:
        values = json.loads(record_path(out, step).read_text(encoding="utf-8"))

        return Record(**{**values, "fingerprint": Fingerprint(**values["fingerprint"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(out: Path, record: Record) -> None:
    """Write a record atomically."""
    write_text_atomic(record_path(out, record.step), json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Return settings as they come back from JSON, to be compared with what was recorded."""
    return json.loads(json.dumps(value, default=str))


_ABSENT: Final = object()


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)

    return text if len(text) <= 60 else f"{text[:59]}…"
