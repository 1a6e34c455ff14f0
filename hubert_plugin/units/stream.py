"""Streams of features: one utterance after another, never a corpus at once.

Letters: *M* frames of an utterance, *D* features of a frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.errors import UnitModelError
from hubert_plugin.frames import SAMPLE_RATE, num_labels
from hubert_plugin.registry import Features, FeatureSource, Waveform
from hubert_plugin.units.threads import num_usable_cores

if TYPE_CHECKING:
    from hubert_plugin.audio.policy import AudioPolicy
    from hubert_plugin.data.manifest import Manifest

A = TypeVar("A")

B = TypeVar("B")

CHUNK_SECONDS: Final = 120.0
"""How much audio a worker takes at a time, if that is more than one utterance: enough that handing it over costs
nothing, and a bound of what is read ahead. A source may ask for another measure: its attribute ``chunk_seconds``."""


class FeatureStream(ABC):
    """The features of a set of utterances that can be read several times, in any order."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of features of a frame, D."""

    @property
    @abstractmethod
    def rate(self) -> int:
        """The number of frames per second: 50 or 100."""

    @abstractmethod
    def num_frames(self) -> NDArray[np.int64]:
        """Return the number of frames of every utterance, as far as is known before reading. *Shape:* (N,)."""

    @abstractmethod
    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, Features]]:
        """Yield ``(utterance index, features)`` in the given order (all utterances in manifest order, if ``None``)."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return what the features are, for provenance records: two streams of equal description can share units."""

    @abstractmethod
    def describe_data(self) -> dict[str, object]:
        """Return what the features were computed on, for provenance records."""


@final
class AudioFeatureStream(FeatureStream):
    """Computes features from the audio of a manifest on the way, with a pool of threads and a bounded look-ahead."""

    def __init__(
        self,
        manifest: Manifest,
        source: FeatureSource,
        policy: AudioPolicy | None = None,
        *,
        num_workers: int | None = None,
    ) -> None:
        """
        :param policy: What to do about other sample rates, and whether to normalise; ``None`` is the default policy.
        :param num_workers: Threads that read audio and, for sources that are ``parallel``, compute features; ``None``
            is one for each core this process may use. The features do not depend on it.
        """
        if policy is None:
            from hubert_plugin.audio.policy import AudioPolicy

            policy = AudioPolicy()

        self.manifest = manifest
        self.source = source
        self.policy = policy
        self.num_workers = num_workers or num_usable_cores()

    @property
    @override
    def dim(self) -> int:
        return self.source.dim

    @property
    @override
    def rate(self) -> int:
        return self.source.rate

    @override
    def num_frames(self) -> NDArray[np.int64]:
        rate = self.rate

        return np.fromiter((num_labels(n, rate) for n in self.manifest.sizes.tolist()), np.int64)

    @override
    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, Features]]:
        """
        :raises AudioError: An audio file cannot be used.
        :raises UnitModelError: Features are not finite or of another dimension than the source promises.
        """
        indices = range(len(self.manifest.ids)) if order is None else order

        in_workers = getattr(self.source, "parallel", False)

        def load(chunk: Sequence[int]) -> tuple[Sequence[int], list[Waveform] | list[Features]]:
            waveforms = [self._read_waveform(i) for i in chunk]

            return chunk, self.source.extract(waveforms) if in_workers else waveforms

        chunk_seconds = getattr(self.source, "chunk_seconds", CHUNK_SECONDS)

        chunks = _cut_chunks(indices, self.manifest.sizes, int(chunk_seconds * SAMPLE_RATE))

        for chunk, items in _map_ordered(load, chunks, self.num_workers):
            for idx, features in zip(chunk, items if in_workers else self.source.extract(items), strict=True):
                self._check(idx, features)

                yield idx, features

    def _read_waveform(self, idx: int) -> Waveform:
        from hubert_plugin.audio import read_waveform

        m = self.manifest

        return read_waveform(m.root, m.ids[idx], self.policy, expected_samples=int(m.sizes[idx]))

    def _check(self, idx: int, features: Features) -> None:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise UnitModelError(
                f"The features of '{self.manifest.ids[idx]}' must have the shape (frames, {self.dim}), but have the "
                f"shape {features.shape}."
            )

        if not np.isfinite(features).all():
            raise UnitModelError(
                f"The features of '{self.manifest.ids[idx]}' hold NaN or infinite values "
                f"(source {self.source.describe()}). Remove the utterance or mend its audio."
            )

    @override
    def describe(self) -> dict[str, object]:
        # How a file came to 16 kHz does not tell features apart; whether its level was normalised does.
        return {**self.source.describe(), "normalize": self.policy.normalize}

    @override
    def describe_data(self) -> dict[str, object]:
        return describe_manifest(self.manifest)


@final
class ArrayFeatureStream(FeatureStream):
    """Features that are in memory already, or in memory-mapped files such as fairseq's ``.npy`` dumps."""

    def __init__(self, items: Sequence[Features], *, rate: int, description: Mapping[str, object]) -> None:
        self._items, self._rate, self._description = items, rate, dict(description)

        self._dim = int(items[0].shape[1]) if len(items) else 0

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @property
    @override
    def rate(self) -> int:
        return self._rate

    @override
    def num_frames(self) -> NDArray[np.int64]:
        return np.fromiter((len(f) for f in self._items), np.int64)

    @override
    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, Features]]:
        for idx in range(len(self._items)) if order is None else order:
            yield idx, self._items[idx]

    @override
    def describe(self) -> dict[str, object]:
        return {"dim": self._dim, "rate": self._rate, **self._description}

    @override
    def describe_data(self) -> dict[str, object]:
        return {"num_utterances": len(self._items)}


def describe_manifest(manifest: Manifest) -> dict[str, object]:
    """Return what provenance records say of a manifest."""
    return {"split": manifest.split, "fingerprint": manifest.fingerprint, "num_utterances": len(manifest.ids)}


def _cut_chunks(indices: Sequence[int], sizes: NDArray[np.int64], max_samples: int) -> Iterator[Sequence[int]]:
    """Cut ``indices`` into what a worker takes at a time.

    :param sizes: The samples of every utterance of the manifest. *Shape:* (N,).
    :param max_samples: The most samples of a chunk; a longer utterance is one by itself.
    """
    start, num_samples = 0, 0

    for i, idx in enumerate(indices):
        size = int(sizes[idx])

        if i > start and num_samples + size > max_samples:
            yield indices[start:i]

            start, num_samples = i, 0

        num_samples += size

    if start < len(indices):
        yield indices[start:]


def _map_ordered(fn: Callable[[A], B], items: Iterable[A], num_workers: int) -> Iterator[B]:
    """Yield ``fn(item)`` in order, computed ahead by ``num_workers`` threads, at most two items each."""
    pending: deque[Future[B]] = deque()

    # Frames are many and small: one thread each beats torch's own threads, and keeps the values independent of how
    # many there are. torch hands the setting of any thread on to threads born later, hence the restoring at the end.
    num_torch_threads = torch.get_num_threads()

    pool = ThreadPoolExecutor(num_workers, "features", initializer=torch.set_num_threads, initargs=(1,))

    try:
        for item in items:
            pending.append(pool.submit(fn, item))

            if len(pending) >= 2 * num_workers:
                yield pending.popleft().result()

        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

        torch.set_num_threads(num_torch_threads)
