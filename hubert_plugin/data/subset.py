"""A part of a split of some minutes, drawn from a seed, spread evenly over speakers.

What tells speakers apart is the folder of an utterance: in the demo corpus, and in most others, a speaker's (or a
chapter's, or a session's).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.manifest import Manifest


def draw_minutes(manifest: Manifest, candidates: NDArray[np.int64], minutes: float, seed: int) -> NDArray[np.int64]:
    """Return positions of utterances of ``minutes`` in all, ascending; the last one may go a little beyond.

    Folders take turns, in an order that is drawn, and give an utterance each, drawn too, until there is enough. More
    minutes of the same seed hold the fewer ones. All candidates are returned where they are not enough.

    :param candidates: The positions to draw from.
    """
    rng = np.random.default_rng(seed)

    folders: dict[str, list[int]] = defaultdict(list)

    for idx in candidates.tolist():
        folders[str(PurePosixPath(manifest.ids[idx]).parent)].append(idx)

    names = sorted(folders)

    queues = [folders[names[i]] for i in rng.permutation(len(names))]

    queues = [[queue[i] for i in rng.permutation(len(queue))] for queue in queues]

    wanted = minutes * 60 * frames.SAMPLE_RATE

    drawn: list[int] = []

    total = 0

    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue) and total < wanted:
                drawn.append(queue[turn])

                total += int(manifest.sizes[queue[turn]])

    return np.asarray(sorted(drawn), dtype=np.int64)
