"""Records of provenance: whether two things were made in the same way, and refusing to replace what was not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubert_plugin.errors import OutputDirError, format_problems


def comparable(value: object) -> Any:
    """Return ``value`` as it comes back from a JSON file, without what does not tell two things apart.

    Where a model's fingerprint is recorded, its name (``model``) is left out: the same model may lie in another folder
    or be found through a card.
    """
    return _without_names(json.loads(json.dumps(value)))


def raise_if_lost(folder: Path, what: str, problems: Sequence[str]) -> None:
    """Refuse to replace what is in ``folder``, if there are ``problems``.

    :param what: What there is of another making: ``labels``, ``features``.
    :raises OutputDirError: There are.
    """
    if problems:
        raise OutputDirError(
            format_problems(
                f"'{folder}' already holds {what} of another making, which would be lost. Choose another output "
                "folder, or set `overwrite=true` to replace them:",
                list(problems),
            )
        )


def _without_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        named_only = value.get("model_fingerprint") is None

        return {k: _without_names(v) for k, v in value.items() if named_only or k != "model"}

    if isinstance(value, list):
        return [_without_names(v) for v in value]

    return value
