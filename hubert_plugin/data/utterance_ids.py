"""The utterance ids of kaldi beside the paths of a manifest.

A manifest names an utterance by its path. Where it was made from a kaldi data folder, ``SPLIT.ids.txt`` beside it holds
kaldi's utterance id of each line, so that kaldi's features and alignments find their audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubert_plugin.errors import ManifestError
from hubert_plugin.files import write_text_atomic

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest


def utterance_ids_path(manifest_path: Path) -> Path:
    """Return where the ids of the manifest at ``manifest_path`` are, if it has any."""
    return manifest_path.with_name(f"{manifest_path.stem}.ids.txt")


def read_utterance_ids(manifest: Manifest) -> list[str]:
    """Return kaldi's id of each utterance: the lines of ``SPLIT.ids.txt``, or else the manifest's paths.

    :raises ManifestError: There are not as many ids as utterances, or ids are repeated.
    """
    path = utterance_ids_path(manifest.path)

    try:
        ids = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return manifest.ids
    except OSError as ex:
        raise ManifestError(f"'{path}' cannot be read: {ex.strerror or ex}.") from ex

    if len(ids) != len(manifest.ids) or len(set(ids)) != len(ids):
        raise ManifestError(
            f"'{path}' must have one id of its own for each of the {len(manifest.ids):,} utterances of "
            f"'{manifest.path}', but has {len(ids):,} lines, {len(set(ids)):,} of them different. Make the manifest "
            "again."
        )

    return ids


def write_utterance_ids(manifest_path: Path, ids: Sequence[str]) -> None:
    """Write the ids of the manifest at ``manifest_path``.

    :raises StorageError: The file cannot be written.
    """
    write_text_atomic(utterance_ids_path(manifest_path), "".join(f"{i}\n" for i in ids))
