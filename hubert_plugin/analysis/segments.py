"""Segments of speech: the mean features of words or phones, taken from many spaces in one reading."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import final

import numpy as np

from hubert_plugin.analysis.alignments import Alignment
from hubert_plugin.analysis.cca import CcaScore, cca_with_labels
from hubert_plugin.analysis.spaces import RATE
from hubert_plugin.errors import LabelError
from hubert_plugin.frames import frame_center_seconds
from hubert_plugin.registry import Features

MIN_TOKENS = 10
"""How often a word or phone must occur to take part."""


@final
class SegmentCollector:
    """Takes the mean features of chosen segments (``sweep.Collector``)."""

    def __init__(
        self,
        alignment: Alignment,
        ids: Sequence[str],
        *,
        exclude: Collection[str] = (),
        max_labels: int = 500,
        max_segments: int = 7000,
        seed: int = 0,
    ) -> None:
        """
        :param ids: The utterances that take part.
        :param exclude: Names of segments that do not take part, such as silence.
        :param max_labels: How many different words or phones take part at most: the most frequent ones.
        :param max_segments: How many segments take part at most; each label gives up the same share.
        :raises LabelError: There are fewer than two labels that occur :data:`MIN_TOKENS` times.
        """
        tokens = [
            (id_, segment) for id_ in ids for segment in alignment[id_] if segment[2] not in exclude and _span(segment)
        ]

        counts = Counter(segment[2] for _, segment in tokens)

        # By name among equals: the order of the file decides nothing.
        labels = {
            name for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:max_labels] if n >= MIN_TOKENS
        }

        if len(labels) < 2:
            raise LabelError(
                f"The correlation with '{alignment.path}' needs at least two names that occur {MIN_TOKENS} times, but "
                f"there {'is' if len(labels) == 1 else 'are'} {len(labels)} of {len(counts):,} (in {len(ids):,} "
                "utterances). Analyse more audio, or leave it out."
            )

        tokens = [t for t in tokens if t[1][2] in labels]

        if len(tokens) > max_segments:
            chosen = np.random.default_rng(seed).choice(len(tokens), max_segments, replace=False)

            tokens = [tokens[i] for i in np.sort(chosen).tolist()]

        self._segments: dict[str, list[tuple[float, float, str]]] = defaultdict(list)

        for id_, segment in tokens:
            self._segments[id_].append(segment)

        self._seed = seed

        self._means: dict[str, list[Features]] = defaultdict(list)

        self._labels: dict[str, list[str]] = defaultdict(list)

    def add(self, id_: str, features: Mapping[str, Features]) -> None:
        """Take the mean features of the chosen segments of an utterance."""
        for segment in self._segments.get(id_, ()):
            first, end = _span(segment) or (0, 0)

            for space, f in features.items():
                if len(part := f[first:end]):
                    self._means[space].append(part.mean(axis=0))

                    self._labels[space].append(segment[2])

    @property
    def spaces(self) -> list[str]:
        """The spaces that were seen."""
        return list(self._means)

    def score(self, space: str, *, num_trials: int = 3) -> CcaScore:
        """Return the projection-weighted correlation of a space with the names of the segments."""
        return cca_with_labels(
            np.stack(self._means[space]), self._labels[space], num_trials=num_trials, seed=self._seed
        )


def _span(segment: tuple[float, float, str]) -> tuple[int, int] | None:
    """Return the first frame whose window's centre is in a segment, and the one after the last; ``None`` without."""
    first_center = frame_center_seconds(0, RATE)

    first, end = (max(int(np.ceil((time - first_center) * RATE - 1e-6)), 0) for time in segment[:2])

    return (first, end) if end > first else None
