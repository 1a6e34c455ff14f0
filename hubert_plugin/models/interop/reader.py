"""Reads checkpoints of strangers without running anything in them.

``torch.load`` in its restricted mode builds tensors and plain data only. fairseq checkpoints also hold instances of its
``Dictionary``; an inert stand-in takes their place. Every other class is refused.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hubert_plugin.errors import CheckpointError


class InertRecord:
    """Stands in for an instance of a class that is not imported; holds its attributes."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a PyTorch checkpoint file, tensors on the CPU.

    :raises CheckpointError: The file is missing, damaged, or asks for classes that are not allowed.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file at '{path}'.")

    dictionary = type("Dictionary", (InertRecord,), {"__module__": "fairseq.data.dictionary"})

    try:
        with torch.serialization.safe_globals([(dictionary, "fairseq.data.dictionary.Dictionary")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as ex:
        reason = str(ex).splitlines()[0]

        raise CheckpointError(
            f"The checkpoint '{path}' cannot be read safely: it is damaged, or it holds objects that are "
            f"neither tensors "
            f"nor plain data ({reason})."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as ex:
        reason = str(ex).splitlines()[0] if str(ex) else type(ex).__name__

        raise CheckpointError(
            f"The checkpoint '{path}' ({path.stat().st_size:,} bytes) cannot be read: it is cut off or damaged "
            f"({reason}). "
            "Copy it again, or use another one."
        ) from None

    if not isinstance(content, dict):
        raise CheckpointError(f"The checkpoint '{path}' must hold a dictionary, but holds a {type(content).__name__}.")

    return content
