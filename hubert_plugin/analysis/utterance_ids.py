"""Which utterance of a manifest is meant by the name that another file gives it.

In manifests an utterance is named by its path (FACTS, trap T37: base names may repeat), and by kaldi's id where it
comes from there. Alignments and item files of other tools name it by its path without suffix, from another folder, or
by its base name alone; these are understood where they are unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, final

from typing_extensions import Self

from hubert_plugin.data.utterance_ids import read_utterance_ids

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest


@final
class UtteranceIndex:
    """Finds utterances of a manifest by name."""

    def __init__(self, ids: Sequence[str], other_ids: Sequence[str] = ()) -> None:
        """
        :param ids: The ids in the manifest.
        :param other_ids: Other ids of the same utterances, such as kaldi's.
        """
        self._ids = dict(zip(other_ids, ids, strict=True)) if other_ids else {}

        self._ids |= {id_: id_ for id_ in ids}

        self._by_path: dict[str, str] = {}

        for id_ in ids:
            path = _without_suffix(id_)

            # Two files that differ in the suffix only: neither is meant.
            self._by_path[path] = "" if path in self._by_path else id_

        counts = Counter(_base_name(id_) for id_ in ids)

        self._by_base_name = {name: id_ for id_ in ids if counts[name := _base_name(id_)] == 1}

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return that of a manifest, with kaldi's ids if it has any.

        :raises ManifestError: The file of these ids does not fit the manifest.
        """
        return cls(manifest.ids, read_utterance_ids(manifest))

    def find(self, name: str) -> str | None:
        """Return the id of the utterance that ``name`` means: an id; an id without suffix; or a base name that is
        unique in the manifest, before which no other folders stand than in the manifest, as far as both have some.
        ``None`` if there is none."""
        if (id_ := self._ids.get(name)) is not None:
            return id_

        for path in (name, _without_suffix(name)):
            if found := self._by_path.get(path):
                return found

            found = self._by_base_name.get(PurePosixPath(path).name)

            # Another speaker's or recording's file of the same name is another utterance.
            if found is not None and _same_end(path, _without_suffix(found)):
                return found

        return None


def _same_end(path: str, other: str) -> bool:
    """Return whether two paths end alike, as far as the shorter one goes."""
    parts, other_parts = (PurePosixPath(p).parts[::-1] for p in (path, other))

    return all(a == b for a, b in zip(parts, other_parts, strict=False))


def _without_suffix(id_: str) -> str:
    # A slice of an archive (`archive.zip:offset:length`) has no name beside its id, and `utt.1` ends in no suffix.
    path = PurePosixPath(id_)

    return str(path.with_suffix("")) if path.suffix[1:].isalnum() and path.suffix[1:2].isalpha() else id_


def _base_name(id_: str) -> str:
    return PurePosixPath(_without_suffix(id_)).name
