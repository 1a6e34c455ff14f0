"""Which utterance of a manifest is meant by the name that another file gives it.

In manifests an utterance is named by its path (FACTS, trap T37: base names may repeat). Alignments and item files of
other tools name it by its path without suffix or by its base name alone; these are understood where they are unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import final


@final
class UtteranceIndex:
    """Finds utterances of a manifest by name."""

    def __init__(self, ids: Sequence[str]) -> None:
        """:param ids: The ids in the manifest."""
        self._ids = set(ids)

        self._by_path: dict[str, str] = {}

        for id_ in ids:
            path = _without_suffix(id_)

            # Two files that differ in the suffix only: neither is meant.
            self._by_path[path] = "" if path in self._by_path else id_

        counts = Counter(_base_name(id_) for id_ in ids)

        self._by_base_name = {name: id_ for id_ in ids if counts[name := _base_name(id_)] == 1}

    def find(self, name: str) -> str | None:
        """Return the id of the utterance that ``name`` means: an id, an id without suffix, or, whatever folders stand
        before it, a base name that is unique in the manifest; ``None`` if there is none."""
        if name in self._ids:
            return name

        for path in (name, _without_suffix(name)):
            if found := self._by_path.get(path) or self._by_base_name.get(PurePosixPath(path).name):
                return found

        return None


def _without_suffix(id_: str) -> str:
    # A slice of an archive (`archive.zip:offset:length`) has no name beside its id, and `utt.1` ends in no suffix.
    path = PurePosixPath(id_)

    return str(path.with_suffix("")) if path.suffix[1:].isalnum() and path.suffix[1:2].isalpha() else id_


def _base_name(id_: str) -> str:
    return PurePosixPath(_without_suffix(id_)).name
