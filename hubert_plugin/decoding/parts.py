"""What a run of ``transcribe`` has finished, so that one that was killed goes on where it was.

The recordings are cut into blocks. A block's transcripts are one file, written whole when it is done, in a folder named
for all that they depend on; another command never takes them for its own. When all blocks are there they are put
together and the folder goes away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, final

from hubert_plugin.decoding.transcriber import Times
from hubert_plugin.files import write_text_atomic

_FOLDER: Final = "parts"


@final
class Parts:
    """The finished blocks of a run."""

    def __init__(self, output_dir: Path, identity: Mapping[str, Any]) -> None:
        """
        :param identity: All that transcripts depend on, as plain data.
        """
        digest = sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]

        self._root = output_dir / _FOLDER

        self._folder = self._root / digest

    def has(self, block: int) -> bool:
        """Return whether a block is done."""
        return self._path(block).is_file()

    def save(self, block: int, records: Sequence[Mapping[str, Any]], times: Times) -> None:
        """Write the transcripts of a block.

        :raises StorageError: The file system refuses.
        """
        content = {"times": vars(times), "records": list(records)}

        write_text_atomic(self._path(block), json.dumps(content))

    def collect(self, num_blocks: int) -> tuple[list[dict[str, Any]], Times]:
        """Return the records of all blocks, in order, and the time that they took."""
        records: list[dict[str, Any]] = []

        total = Times()

        for block in range(num_blocks):
            content = json.loads(self._path(block).read_text(encoding="utf-8"))

            records += content["records"]

            for name, value in content["times"].items():
                setattr(total, name, getattr(total, name) + value)

        return records, total

    def remove(self) -> None:
        """Remove all blocks, also those of other commands: the results are there."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _path(self, block: int) -> Path:
        return self._folder / f"{block:06}.json"
