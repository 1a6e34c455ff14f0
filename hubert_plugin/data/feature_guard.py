"""Features in files that are there already: whether others may take their place.

Features of the same making may, as they come out the same. Others, and somebody's own, of which nothing tells how they
were made, would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hubert_plugin.data.feature_files import FeatureFormat, feature_paths, read_feature_record
from hubert_plugin.data.provenance import comparable
from hubert_plugin.data.shards import has_leftovers
from hubert_plugin.errors import UnitModelError

_MAKING: Final = ("features", "data")
"""What a record says of the making; another number of shards is another cut of the same."""


def feature_replacing_problems(
    kind: FeatureFormat, folder: Path, split: str, num_shards: int, provenance: Mapping[str, object]
) -> list[str]:
    """Return why features of a split must not take the place of those in ``folder``; nothing if they may.

    :param folder: The output folder.
    :param num_shards: In how many shards the split is cut.
    :param provenance: What the records of the new features say of their making.
    """
    whole = feature_paths(kind, folder, split) if kind == "kaldi" or num_shards == 1 else None

    shards = [feature_paths(kind, folder, split, (i, num_shards)) for i in range(num_shards)] if num_shards > 1 else []

    # Where shards are ours, so is what joins them.
    if whole is not None and not any(s["record"].exists() for s in shards):
        shards.append(whole)

    return [problem for paths in shards if (problem := _replacing_problem(paths, folder, provenance)) is not None]


def _replacing_problem(paths: Mapping[str, Path], folder: Path, provenance: Mapping[str, object]) -> str | None:
    present = [p for role, p in paths.items() if role != "record" and p.exists()]

    if not present:
        return None

    name, record_name = present[0].relative_to(folder), paths["record"].name

    try:
        record = read_feature_record(paths["record"])
    except UnitModelError as ex:
        return f"{name}: {str(ex).removesuffix('.')}"

    if record is None:
        # The record is renamed last: a process that was killed just then left it aside.
        return None if has_leftovers(paths["record"]) else f"{name}: there is no record '{record_name}' of what made it"

    other = [key for key in _MAKING if comparable(record.get(key)) != comparable(provenance.get(key))]

    return f"{name}: it was made with other {' and '.join(other)}, by its record '{record_name}'" if other else None
