"""What trainings ended with, read from what they left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hubert_plugin.analysis.page.data import Result

_RESULTS: Final = (
    ("Masked accuracy", "masked_accuracy", "%"),
    ("Unmasked accuracy", "unmasked_accuracy", "%"),
    ("Share of the most frequent unit", "most_frequent_unit_share", "%"),
    # Not the cross-entropies of the charts: α times that of masked frames plus 1 - α times that of the others plus the
    # penalty on features, divided by the number of frames that are predicted.
    ("Objective (α-weighted, with penalty)", "loss_bits", "bits"),
)
"""What a training's ``report.json`` tells."""


_ERROR_RATES: Final = (("WER", "Word Error Rate (WER)"), ("CER", "Character Error Rate (CER)"))
"""What a recogniser's validation records, in percent."""


def training_results(run: Path, split: str) -> list[Result]:
    """Return what a pretraining told at its end."""
    report = read_json(run / "report.json")

    found = [(name, report.get(key), unit) for name, key, unit in _RESULTS]

    return [Result(name=n, value=float(v), unit=u, on=split) for n, v, u in found if v is not None and is_number(v)]


def recognition_results(run: Path, split: str) -> list[Result]:
    """Return the error rates of the last validation of a recogniser."""
    try:
        lines = (run / "metrics/valid.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:  # cut by a kill
            continue

        return [
            Result(name=name, value=float(record[metric]) / 100, unit="%", on=split)
            for name, metric in _ERROR_RATES
            if is_number(record.get(metric))
        ]

    return []


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}

    return content if isinstance(content, dict) else {}


def is_number(value: object) -> bool:
    """Return whether a value from JSON is a number that says something."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
