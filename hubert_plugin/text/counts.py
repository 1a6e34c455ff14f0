"""Counts in sentences."""

from __future__ import annotations


def count(number: int, one: str, many: str | None = None) -> str:
    """Return ``number`` with its noun: ``1 transcript``, ``2,000 transcripts``.

    :param one: The singular.
    :param many: The plural, where it is not the singular with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
