"""Shards of a manifest, and what killed processes leave behind."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from hubert_plugin.errors import ConfigError

Shard: TypeAlias = tuple[int, int]
"""``(i, n)``: shard i of n, from 0."""


def shard_range(num_utterances: int, shard: Shard) -> range:
    """Return the utterances of a shard: fairseq's contiguous ranges from ``round(N / n * i)`` to ``round(N / n * (i +
    1))``, halves to even (``examples/hubert/simple_kmeans/feature_utils.py``). Where fairseq fails because a shard
    would be empty, it is empty here.

    :raises ConfigError: There is no such shard.
    """
    index, num_shards = shard

    if not 0 <= index < num_shards:
        raise ConfigError(
            f"`shard` must be one of the {num_shards} shards from 0 to {num_shards - 1}, but is {index} instead."
        )

    share = num_utterances / num_shards

    end = num_utterances if index == num_shards - 1 else round(share * (index + 1))

    return range(round(share * index), end)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left of writing ``path`` (see :mod:`hubert_plugin.files`).

    Only whoever is about to write ``path`` may call it: another process that writes it now would lose its work.
    """
    with suppress(OSError):
        for other in _leftovers(path):
            other.unlink(missing_ok=True)


def has_leftovers(path: Path) -> bool:
    """Tell whether a killed process left temporary files of writing ``path``, or another one writes it now."""
    try:
        return bool(_leftovers(path))
    except OSError:
        return False


def _leftovers(path: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")

    return [p for p in path.parent.iterdir() if pattern.fullmatch(p.name)]
