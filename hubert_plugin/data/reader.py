"""Reads batches for fairseq2's trainer: shuffled by epoch, sharded by rank, loaded ahead, resumable to the batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, Protocol, final

import numpy as np
import torch
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineError, read_sequence
from fairseq2.datasets import DataReader, DataReadError
from fairseq2.gang import Gangs, all_sum
from numpy.typing import NDArray
from typing_extensions import Self, TypeVar, override

from hubert_plugin.data.batch import HubertBatch, SpeechBatch
from hubert_plugin.data.plan import BatchConfig, PlannedBatch, plan_epoch
from hubert_plugin.errors import HubertError

_SHUFFLE_STREAM = 3

_local = threading.local()

NUM_RANKS_KEY = "num_ranks"
"""Where the state of a reader says how many ranks read the data when it was saved."""

_BATCH_SECONDS_KEY = "batch_seconds"

_EARLIER_KEY = "earlier"

BatchT = TypeVar("BatchT", bound=SpeechBatch, default=HubertBatch)

BatchT_co = TypeVar("BatchT_co", bound=SpeechBatch, covariant=True)


class LoadsBatches(Protocol[BatchT_co]):
    """Turns planned batches into tensors."""

    def load(self, batch: PlannedBatch, epoch: int) -> BatchT_co | None:
        """Return the batch, or ``None`` where no utterance of it could be read."""


@final
class HubertDataReader(DataReader[BatchT], Generic[BatchT]):
    """Reads the batches of one split.

    An epoch's batches are planned anew from (seed, epoch), and rank r of W takes batches r, r + W, …; so its whole
    state is the epoch and the number of batches that were delivered. W ranks see what one rank sees that accumulates W
    batches.

    Where a run goes on with batches of other seconds (``global_batch_seconds`` on another number of ranks), what is
    left of the epoch is planned anew: the state then has, for each earlier plan, its seconds and how many batches of it
    were read.
    """

    def __init__(
        self,
        loader: LoadsBatches[BatchT],
        num_frames: NDArray[np.int64],
        usable: NDArray[np.int64],
        batching: BatchConfig,
        gangs: Gangs,
        *,
        seed: int,
        shuffle: bool,
        num_accumulate: int = 1,
        num_workers: int = 1,
        num_prefetch: int = 4,
        max_num_batches: int | None = None,
    ) -> None:
        """
        :param shuffle: If true (training), every epoch has its own order, crops and masks, and an incomplete last round
            over the ranks is dropped. If false (validation), every pass is the same and nothing is dropped.
        """
        self._loader = loader
        self._num_frames = num_frames
        self._usable = usable
        self._batching = batching
        self._gangs = gangs
        self._seed = seed
        self._shuffle = shuffle
        self._num_accumulate = num_accumulate
        self._num_workers = num_workers
        self._num_prefetch = num_prefetch
        self._max_num_batches = max_num_batches

        self._epoch = 1 if shuffle else 0
        self._position = 0
        self._earlier: list[tuple[float, int]] = []
        self._eod = False
        self._iterator: Iterator[tuple[int, BatchT | int]] | None = None
        self._pipeline: DataPipeline | None = None

        self._wait_seconds = 0.0

        self._num_skipped = 0
        """The utterances of batches of which nothing could be read; the next batch tells of them."""

    def pop_wait_seconds(self) -> float:
        """Return the time spent waiting for batches since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0

        return seconds

    def has_batches(self) -> bool:
        """Return whether there is any batch, on any rank."""
        return bool(plan_epoch(self._num_frames, self._usable, self._batching, None))

    def plan(self) -> list[PlannedBatch]:
        """Return this rank's batches of the current epoch, or of what earlier plans have left of it."""
        usable = self._usable

        for batch_seconds, num_read in self._earlier:
            read = self._plan(usable, replace(self._batching, batch_seconds=batch_seconds))[:num_read]

            usable = np.setdiff1d(usable, np.concatenate([usable[:0], *(batch.indices for batch in read)]))

        batches = self._plan(usable, self._batching)

        if self._max_num_batches is not None:
            batches = batches[: self._max_num_batches]

        gang = self._gangs.dp

        if self._shuffle:
            batches = batches[: len(batches) - len(batches) % gang.size]

        return batches[gang.rank :: gang.size]

    def _plan(self, usable: NDArray[np.int64], batching: BatchConfig) -> list[PlannedBatch]:
        """Return the batches of all ranks."""
        rng = np.random.default_rng([self._seed, self._epoch, _SHUFFLE_STREAM]) if self._shuffle else None

        return plan_epoch(self._num_frames, usable, batching, rng)

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[BatchT]:
        if self._eod:
            raise StopIteration()

        start = time.perf_counter()

        batches: list[BatchT] = []

        while len(batches) < self._num_accumulate:
            batch = self._next_batch()
            if batch is None:
                break

            batches.append(batch)

        self._wait_seconds += time.perf_counter() - start

        if self._shuffle:
            # All ranks planned the same number; they differ only where whole batches were skipped as unreadable.
            self._eod = self._any_rank_lacks(len(batches) < self._num_accumulate)

            if self._eod:
                # An update over fewer batches than asked for would be noisier than the others.
                batches = []
        else:
            self._eod = self._all_ranks_lack(not batches)

        if self._eod:
            raise StopIteration()

        return batches

    def _next_batch(self) -> BatchT | None:
        if self._iterator is None:
            self._iterator = self._open()

        while True:
            try:
                position, batch = next(self._iterator)
            except StopIteration:
                return None
            except DataPipelineError as ex:
                raise _find_cause(ex) from None

            self._position = position + 1

            if isinstance(batch, int):
                self._num_skipped += batch

                continue

            batch.num_skipped += self._num_skipped

            self._num_skipped = 0

            return batch

    def _open(self) -> Iterator[tuple[int, BatchT | int]]:
        plan, epoch, loader = self.plan(), self._epoch, self._loader

        def load(position: int) -> tuple[int, BatchT | int]:
            _compute_alone()

            batch = loader.load(plan[position], epoch)

            return position, plan[position].indices.size if batch is None else batch

        builder = read_sequence(list(range(self._position, len(plan))))

        builder.map(load, num_parallel_calls=max(1, self._num_workers))

        if self._num_prefetch > 0:
            builder.prefetch(self._num_prefetch)

        # The iterator does not keep its pipeline alive.
        self._pipeline = builder.and_return()

        return iter(self._pipeline)

    def _any_rank_lacks(self, lacks: bool) -> bool:
        if self._gangs.dp.size == 1:
            return lacks

        return int(all_sum(self._gangs.dp, int(lacks))) > 0

    def _all_ranks_lack(self, lacks: bool) -> bool:
        if self._gangs.dp.size == 1:
            return lacks

        return int(all_sum(self._gangs.dp, int(lacks))) == self._gangs.dp.size

    @override
    def reset(self) -> None:
        if self._shuffle:
            self._epoch += 1

        self._position = 0
        self._earlier = []
        self._eod = False
        self._close()

    def _close(self) -> None:
        self._iterator = None
        self._pipeline = None

    @property
    def epoch(self) -> int:
        """The number of the epoch that is read, from 1 in training."""
        return self._epoch

    @property
    def num_epochs_read(self) -> int:
        """The number of epochs that were read to their last update."""
        is_at_end = len(self.plan()) - self._position < self._num_accumulate

        return self._epoch if is_at_end else self._epoch - 1

    @override
    def state_dict(self) -> dict[str, object]:
        return {
            "epoch": self._epoch,
            "position": self._position,
            NUM_RANKS_KEY: self._gangs.dp.size,
            _BATCH_SECONDS_KEY: self._batching.batch_seconds,
            _EARLIER_KEY: list(self._earlier),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go to the place of ``state_dict``, which another number of ranks may have saved.

        All of them together had read ``num_ranks * position`` batches. Where batches have the same seconds now, and
        this is no multiple of the present number of ranks, up to ``size - 1`` batches of the epoch are left out. Where
        they have not, the utterances that were not read are put into batches anew. None is read twice.
        """
        size = self._gangs.dp.size

        num_read = int(str(state_dict["position"])) * int(str(state_dict.get(NUM_RANKS_KEY, size)))

        batch_seconds = float(str(state_dict.get(_BATCH_SECONDS_KEY, self._batching.batch_seconds)))

        self._epoch = int(str(state_dict["epoch"]))
        self._earlier = list(state_dict.get(_EARLIER_KEY, []))  # type: ignore[call-overload]

        if batch_seconds == self._batching.batch_seconds:
            self._position = -(-num_read // size)
        else:
            self._earlier.append((batch_seconds, num_read))

            self._position = 0

        self._eod = False
        self._close()

    @property
    @override
    def num_accumulate(self) -> int:
        return self._num_accumulate


def _compute_alone() -> None:
    """Let what a loading thread computes with PyTorch (resampling) take this thread only.

    A team of OpenMP threads for each would make more threads than there are cores; OpenMP then puts the threads of the
    training step to sleep between operations, and waking them takes longer than many operations do.
    """
    if threading.current_thread() is threading.main_thread() or getattr(_local, "alone", False):
        return

    # Of this thread, and of threads that are born later; not of those that compute already.
    torch.set_num_threads(1)

    _local.alone = True


def _find_cause(ex: BaseException) -> Exception:
    """Return the user's error at the bottom of a pipeline error, or fairseq2's own error."""
    cause: BaseException | None = ex

    while cause is not None:
        if isinstance(cause, HubertError):
            return cause

        cause = cause.__cause__ or cause.__context__

    error = DataReadError("The data pipeline failed to read the next batch.")

    error.__cause__ = ex

    return error
