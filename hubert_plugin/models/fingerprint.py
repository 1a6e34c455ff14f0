"""Fingerprints of checkpoints in folders: what provenance records say of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from hubert_plugin.errors import CheckpointError
from hubert_plugin.files import file_digest
from hubert_plugin.models.interop.sources import find_checkpoint

_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".json", ".yaml")


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hexadecimal digits that stand for the checkpoint in ``folder``.

    Of a training run, the model of the last checkpoint and its description count; of any other folder, such as one of
    Hugging Face, the weights and configurations that lie in it. The folder's own name and place do not count.

    :raises CheckpointError: There is nothing in the folder that could be a checkpoint.
    """
    try:
        step = find_checkpoint(folder)

        files = [step.parent / "model.yaml", *(step / "model").rglob("*.pt")]

        root = step.parent
    except CheckpointError:
        files = [f for f in folder.iterdir() if f.suffix in _SUFFIXES]

        root = folder

    # The number of a step says nothing of its weights.
    names = {
        "/".join(p for p in f.relative_to(root).parts if not p.startswith("step_")): f for f in files if f.is_file()
    }

    if not names:
        raise CheckpointError(
            f"'{folder}' holds no checkpoint: neither 'checkpoints/step_N' folders nor files with one of the endings "
            f"{', '.join(_SUFFIXES)} were found in it."
        )

    digest = hashlib.sha256()

    for name, file in sorted(names.items()):
        digest.update(f"{name} {file_digest(file)}\n".encode())

    return digest.hexdigest()[:16]
