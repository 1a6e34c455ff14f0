"""Comparing records of provenance: whether two things were made in the same way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def comparable(value: object) -> Any:
    """Return ``value`` as it comes back from a JSON file, without what does not tell two things apart.

    Where a model's fingerprint is recorded, its name (``model``) is left out: the same model may lie in another folder
    or be found through a card.
    """
    return _without_names(json.loads(json.dumps(value)))


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        named_only = value.get("model_fingerprint") is None

        return {k: _without_names(v) for k, v in value.items() if named_only or k != "model"}

    if isinstance(value, list):
        return [_without_names(v) for v in value]

    return value
