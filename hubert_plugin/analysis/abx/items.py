"""Item files: the tokens that ABX compares.

A line is ``file onset offset phone previous-phone next-phone speaker`` with times in seconds, below a head that begins
with ``#file`` (ZeroSpeech). Files at triphone level have the times of all three phones, files at phoneme level those of
the one in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.analysis.utterance_ids import UtteranceIndex
from hubert_plugin.errors import LabelError, format_problems
from hubert_plugin.frames import num_labels, seconds

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

_MAX_BEYOND: Final = 0.1
"""Seconds by which an item may end after its audio."""

_EPSILON: Final = 1e-6
"""Frames: 0.33 s times 50 Hz is meant to be 16.5."""


@dataclass(frozen=True)
class Items:
    """The items of a file that have at least one frame. Letters: I items."""

    path: Path

    utterances: NDArray[np.int64]
    """The position in the manifest of the utterance of each item. *Shape:* (I,)."""

    starts: NDArray[np.int64]
    """The first frame of each item. *Shape:* (I,)."""

    lengths: NDArray[np.int64]
    """The number of frames of each item, 1 or more. *Shape:* (I,)."""

    phones: NDArray[np.int64]
    """The number of the phone of each item. *Shape:* (I,)."""

    contexts: NDArray[np.int64]
    """The number of the pair of neighbouring phones of each item. *Shape:* (I,)."""

    speakers: NDArray[np.int64]
    """The number of the speaker of each item. *Shape:* (I,)."""

    phone_names: Sequence[str]

    speaker_names: Sequence[str]

    num_without_frame: int
    """The number of items that were left out because no frame's time is inside them."""

    def __len__(self) -> int:
        return len(self.utterances)


def frame_span(onset: float, offset: float, rate: int) -> tuple[int, int]:
    """Return the first and the last frame between two times: those with onset <= (t + 1/2) / rate <= offset.

    That is ABXpy's and fastabx's convention, ceil(onset * rate - 1/2) to floor(offset * rate - 1/2). It has the time of
    a frame at 10 ms + t * 20 ms, not at its window's centre, 2.5 ms later: numbers are to be comparable. libri-light
    drops the last one of these frames.

    :returns: The last frame comes before the first one if there is none.
    """
    return ceil(onset * rate - 0.5 - _EPSILON), floor(offset * rate - 0.5 + _EPSILON)


def read_items(path: Path, manifest: Manifest, rate: int = 50) -> Items:
    """Read an item file for the utterances of a manifest.

    :param rate: Frames per second of the features, 50 or 100.
    :raises LabelError: The file cannot be read, or does not fit the manifest; all problems at once.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as ex:
        reason = (ex.strerror or ex) if isinstance(ex, OSError) else ex

        raise LabelError(f"The item file '{path}' cannot be read: {reason}.") from ex

    index = UtteranceIndex.of(manifest)

    positions = {id_: i for i, id_ in enumerate(manifest.ids)}

    found: dict[str, int | None] = {}

    rows: list[tuple[int, int, int, str, str, str]] = []

    problems: list[str] = []

    num_items = num_without_frame = 0

    for nr, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue

        # The name of a file may hold spaces, the other columns not.
        match line.rsplit(maxsplit=6):
            case [name, on, off, phone, before, after, speaker] if (times := _to_times(on, off)) is not None:
                onset, offset = times
            case _:
                problems.append(
                    f"{path}:{nr}: expected `file onset offset phone previous-phone next-phone speaker`, found "
                    f"{line[:100]!r}."
                )

                continue

        num_items += 1

        if name not in found:
            id_ = index.find(name)

            found[name] = None if id_ is None else positions[id_]

            if id_ is None:
                problems.append(f"{path}:{nr}: '{name}' is not in the manifest.")

        if (position := found[name]) is None:
            continue

        num_samples = int(manifest.sizes[position])

        if not 0 <= onset < offset:
            problems.append(f"{path}:{nr}: an item must end after it starts, but goes from {onset:g} to {offset:g} s.")

            continue

        if offset > seconds(num_samples) + _MAX_BEYOND:
            problems.append(
                f"{path}:{nr}: the item ends at {offset:g} s, but '{manifest.ids[position]}' has "
                f"{seconds(num_samples):g} s of audio."
            )

            continue

        first, last = frame_span(onset, offset, rate)

        last = min(last, num_labels(num_samples, rate) - 1)

        if last < first:
            num_without_frame += 1
        else:
            rows.append((position, first, last - first + 1, phone, f"{before}\t{after}", speaker))

    head = f"The item file '{path}' cannot be used for '{manifest.path}':"

    if num_items and not any(p is not None for p in found.values()):
        problems = [
            f"it is of other utterances: none of its {len(found):,} files (such as '{next(iter(found))}') is in the "
            f"manifest (such as '{manifest.ids[0]}')."
        ]
    elif not rows and not problems:
        problems.append("it holds no items." if not num_items else "none of its items is long enough to hold a frame.")

    if problems:
        raise LabelError(format_problems(head, problems))

    phone_names, phones = np.unique([r[3] for r in rows], return_inverse=True)
    _, contexts = np.unique([r[4] for r in rows], return_inverse=True)
    speaker_names, speakers = np.unique([r[5] for r in rows], return_inverse=True)

    utterances, starts, lengths = np.array([r[:3] for r in rows], np.int64).T

    return Items(
        path,
        utterances,
        starts,
        lengths,
        phones.astype(np.int64),
        contexts.astype(np.int64),
        speakers.astype(np.int64),
        phone_names.tolist(),
        speaker_names.tolist(),
        num_without_frame,
    )


def _to_times(onset: str, offset: str) -> tuple[float, float] | None:
    try:
        times = float(onset), float(offset)
    except ValueError:
        return None

    return times if all(isfinite(t) for t in times) else None
