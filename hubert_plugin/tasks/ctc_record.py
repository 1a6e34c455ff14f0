"""The transcripts that a run was started with: kept in its folder, and compared when the run goes on."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from hubert_plugin.errors import OutputDirError, format_problems
from hubert_plugin.files import write_text_atomic
from hubert_plugin.tasks.output_dir import TEXT_RECORD
from hubert_plugin.text.counts import count

_TEXT_KEYS: Final = ("digest", "checksums")

_NUM_DIGITS: Final = 8
"""The hexadecimal digits of the checksum of a line."""


@final
@dataclass(frozen=True)
class UsedTexts:
    """The transcripts of a split that are used."""

    path: Path
    """The file they were read from."""

    texts: Sequence[str]
    """Normalised, in the manifest's order."""

    lines: Sequence[int]
    """The line of each."""


def keep_or_check_texts(output_dir: Path, splits: Mapping[str, UsedTexts], *, resumed: bool, is_first: bool) -> None:
    """Check that a run goes on with the transcripts it was started with; keep them where it begins.

    Runs from before there was a record go on, and have one from then on.

    :param resumed: Whether the run goes on from a checkpoint.
    :param is_first: Whether this is rank 0, which writes.
    :raises OutputDirError: Other transcripts are used now, or the record is damaged.
    """
    file = output_dir / TEXT_RECORD

    record = {name: _describe(used.texts) for name, used in splits.items()}

    if not resumed or not file.is_file():
        if is_first:
            write_text_atomic(file, json.dumps({"splits": record}) + "\n")

        return

    changes = [
        f"the split '{name}' ('{used.path}'): {change}"
        for name, used in splits.items()
        if (change := _compare(_read(file, name), record[name], used)) is not None
    ]

    if changes:
        raise OutputDirError(
            format_problems(
                f"The run in '{output_dir}' was started with other transcripts. Bring the old ones back to go on with "
                "it, or choose a new output folder. What differs:",
                changes,
            )
        )


def _describe(texts: Sequence[str]) -> dict[str, Any]:
    encoded = [text.encode() for text in texts]

    return {
        "num_transcripts": len(encoded),
        "digest": hashlib.sha256(b"\n".join(encoded)).hexdigest()[:16],
        # A string for all: hours of speech have many lines.
        "checksums": "".join(f"{zlib.crc32(text):0{_NUM_DIGITS}x}" for text in encoded),
    }


def _read(file: Path, split: str) -> dict[str, Any] | None:
    """Return what was kept of a split; ``None``: nothing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["splits"].get(split)

        if found is not None:
            found = {"num_transcripts": int(found["num_transcripts"]), **{k: str(found[k]) for k in _TEXT_KEYS}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as ex:
        raise OutputDirError(
            f"'{file}', which says what transcripts the run was started with, cannot be used ({type(ex).__name__}). "
            "Restore it, or delete it to go on with the transcripts of now."
        ) from ex

    return found


def _compare(old: Mapping[str, Any] | None, new: Mapping[str, Any], used: UsedTexts) -> str | None:
    """Say what changed; ``None``: nothing."""
    if old is None or old["digest"] == new["digest"]:
        return None

    if old["num_transcripts"] != new["num_transcripts"]:
        return f"{count(old['num_transcripts'], 'transcript')} took part, but {new['num_transcripts']:,} now"

    starts = range(0, len(new["checksums"]), _NUM_DIGITS)

    differing = [
        i
        for i, s in enumerate(starts)
        if old["checksums"][s : s + _NUM_DIGITS] != new["checksums"][s : s + _NUM_DIGITS]
    ]

    if not differing:
        return f"the digest was {old['digest']}, but is {new['digest']} now"

    return (
        f"{len(differing):,} of {count(len(starts), 'transcript')} "
        f"{'differs' if len(differing) == 1 else 'differ'}, the first in line {used.lines[differing[0]]:,}"
    )
