"""The ABX error: how often a token is closer to one of another phone than to one of its own.

In a cell, the error is the share of triples (a, b, x) with d(a, x) > d(b, x), equal distances counting half. Cells are
averaged over contexts (across speakers: over contexts and the speakers of X together), then over the speakers of A and
B, then over ordered pairs of phones, as libri-light's ``eval_ABX.py`` and fastabx do it for ZeroSpeech.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin.analysis.abx.dtw import normalize_frames, token_distances
from hubert_plugin.analysis.abx.items import Items
from hubert_plugin.analysis.abx.task import AbxTask
from hubert_plugin.analysis.spaces import scale_for_angles
from hubert_plugin.errors import LabelError
from hubert_plugin.registry import Features

_MAX_TRIPLES = 1 << 22


@dataclass(frozen=True)
class AbxScore:
    """The result of one task on one feature space."""

    error: float
    """Between 0 and 1; 0.5 by chance."""

    num_cells: int

    num_phone_pairs: int
    """The number of ordered pairs of phones."""

    num_distances: int
    """The number of pairs of tokens that were compared."""


@final
class AbxCollector:
    """Keeps the features of the utterances that have items, and scores tasks on them."""

    def __init__(self, items: Sequence[Items], ids: Sequence[str]) -> None:
        """
        :param items: All item files that will be scored.
        :param ids: The ids of the manifest that the items were read for.
        """
        self._ids = {ids[i] for each in items for i in np.unique(each.utterances).tolist()}

        self._positions = {id_: i for i, id_ in enumerate(ids)}

        self._features: dict[str, list[Features]] = {}

        self._starts: dict[str, dict[int, int]] = defaultdict(dict)

        self._num_frames: dict[str, int] = defaultdict(int)

    def add(self, id_: str, features: Mapping[str, Features]) -> None:
        """Keep the features of an utterance (``sweep.Collector``); MFCC are scaled (``spaces.scale_for_angles``)."""
        if id_ not in self._ids:
            return

        for space, f in features.items():
            self._features.setdefault(space, []).append(scale_for_angles(space, f))

            self._starts[space][self._positions[id_]] = self._num_frames[space]

            self._num_frames[space] += len(f)

    @property
    def spaces(self) -> list[str]:
        """The spaces that were seen."""
        return list(self._features)

    def score(
        self, space: str, tasks: Mapping[str, AbxTask], device: torch.device | None = None
    ) -> dict[str, AbxScore]:
        """Return the scores of the tasks on a space, and forget its features.

        :raises LabelError: Features of an utterance were not seen.
        """
        frames = normalize_frames(torch.from_numpy(np.concatenate(self._features.pop(space))).to(device))

        starts = self._starts[space]

        result = {}

        for name, task in tasks.items():
            utterances = task.items.utterances.tolist()

            if missing := len(set(utterances) - starts.keys()):
                raise LabelError(
                    f"The items in '{task.items.path}' are of {missing:,} utterances more than were analysed; analyse "
                    "the whole split."
                )

            offsets = np.array([starts[u] for u in utterances], np.int64)

            result[name] = abx_score(task, frames, offsets + task.items.starts, task.items.lengths)

        return result


def abx_score(task: AbxTask, frames: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> AbxScore:
    """Score a task.

    :param frames: Of length 1 each. *Shape:* (F, D).
    :param starts: Where the frames of each item begin in ``frames``. *Shape:* (I,).
    :param lengths: How many frames each item has. *Shape:* (I,).
    """
    distances = token_distances(frames, starts, lengths, task.pairs)

    errors = _cell_errors(task, distances)

    keys = np.array([(c.phone_a, c.phone_b, c.speaker) for c in task.cells])

    for columns in (3, 2):  # over contexts and speakers of X; over speakers of A and B
        keys, groups = np.unique(keys[:, :columns], axis=0, return_inverse=True)

        groups = groups.ravel()

        errors = np.bincount(groups, errors) / np.bincount(groups)

    return AbxScore(float(errors.mean()), len(task.cells), len(errors), len(task.codes))


def _cell_errors(task: AbxTask, distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the error of each cell; cells of one shape are computed together."""
    by_shape: dict[tuple[int, int, int], list[int]] = defaultdict(list)

    for idx, cell in enumerate(task.cells):
        by_shape[len(cell.a), len(cell.b), len(cell.x)].append(idx)

    errors = np.empty(len(task.cells))

    for (num_a, num_b, num_x), indices in by_shape.items():
        step = max(_MAX_TRIPLES // (num_a * num_b * num_x), 1)

        for start in range(0, len(indices), step):
            chosen = indices[start : start + step]

            a = np.stack([task.cells[i].a for i in chosen])
            b = np.stack([task.cells[i].b for i in chosen])
            x = np.stack([task.cells[i].x for i in chosen])

            to_a = distances[task.find_pairs(x, a)]  # (cells, X, A)
            to_b = distances[task.find_pairs(x, b)]  # (cells, X, B)

            wrong = 0.5 * (1.0 + np.sign(to_a[:, :, :, None] - to_b[:, :, None, :])).sum(axis=3)  # (cells, X, A)

            is_other = x[:, :, None] != a[:, None, :]

            errors[chosen] = np.where(is_other, wrong, 0.0).sum(axis=(1, 2)) / (is_other.sum(axis=(1, 2)) * num_b)

    return errors
