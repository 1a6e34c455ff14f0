"""The data reader: resumable at every batch, disjoint over ranks, repeatable in validation, plain in its errors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from builders import NUM_UNITS, one_thread  # noqa: F401 - a fixture
from fairseq2.gang import FakeGang, Gangs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.data.loader import BatchLoader, LabelReader
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig, max_frames
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.errors import AudioError

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")

NUM_UTTERANCES = 30

LENGTHS = np.random.default_rng(0).integers(3_000, 30_000, NUM_UTTERANCES)


def read_noise(idx: int) -> NDArray[np.float32]:
    return np.random.default_rng(idx).standard_normal(LENGTHS[idx]).astype(np.float32)


def read_all_but(*bad: int) -> Callable[[int], NDArray[np.float32]]:
    def read(idx: int) -> NDArray[np.float32]:
        if idx in bad:
            raise AudioError(f"'speaker/utt{idx}.wav' is truncated.")

        return read_noise(idx)

    return read


def gangs_of(rank: int, world_size: int) -> Gangs:
    one, all_ = FakeGang(CPU), FakeGang(CPU, rank=rank, size=world_size)

    return Gangs(root=all_, dp=all_, rdp=all_, sdp=one, tp=one, pp=one)


def create_reader(
    *,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
    read: Callable[[int], NDArray[np.float32]] = read_noise,
    on_bad_audio: Any = "raise",
    length: Any = "bucket",
    batch_seconds: float = 3.0,
    **kwargs: Any,
) -> HubertDataReader:
    batching = BatchConfig(batch_seconds=batch_seconds, max_seconds=1.5, min_seconds=0.1, length=length)

    num_frames = np.asarray([frames.num_frames(int(n)) for n in LENGTHS])

    loader = BatchLoader(
        [f"utt{i}" for i in range(NUM_UTTERANCES)],
        num_frames,
        read,
        [LabelReader(lambda i: np.random.default_rng(i).integers(0, NUM_UNITS, 200).astype(np.int32), 50)],
        mask=MaskConfig(),
        max_frames=max_frames(batching),
        seed=1,
        on_bad_audio=on_bad_audio,
    )

    return HubertDataReader(
        loader,
        num_frames,
        np.arange(NUM_UTTERANCES),
        batching,
        gangs_of(rank, world_size),
        seed=1,
        shuffle=shuffle,
        **{"num_workers": 2, **kwargs},
    )


@dataclass(frozen=True)
class Seen:
    """All that a batch is, in comparable form."""

    ids: tuple[str, ...]
    content: bytes

    @staticmethod
    def of(batch: HubertBatch) -> Seen:
        tensors = [batch.waveforms, batch.temporal_mask, *batch.masked_targets, *batch.unmasked_targets]

        return Seen(tuple(batch.ids), b"".join(t.numpy().tobytes() for t in tensors))


def read_epochs(reader: HubertDataReader, num_epochs: int) -> list[list[Seen]]:
    """Return the updates of the next epochs, as the trainer asks for them."""
    updates = []

    for _ in range(num_epochs):
        updates += [[Seen.of(b) for b in batches] for batches in reader]

        reader.reset()

    return updates


@settings(max_examples=12, deadline=None)
@given(
    position=st.integers(0, 24),
    num_accumulate=st.integers(1, 3),
    num_prefetch=st.integers(0, 6),
    length=st.sampled_from(["bucket", "shortest", "pad"]),
)
def test_state_brings_a_new_reader_to_the_same_place(
    position: int, num_accumulate: int, num_prefetch: int, length: str
) -> None:
    """However many batches were read ahead, and also across the end of an epoch."""

    def create() -> HubertDataReader:
        return create_reader(num_accumulate=num_accumulate, num_prefetch=num_prefetch, length=length)

    expected = read_epochs(create(), 3)

    reader, seen = create(), 0

    while seen < min(position, len(expected)):
        try:
            next(reader)

            seen += 1
        except StopIteration:
            reader.reset()

    state = reader.state_dict()

    # The checkpoint is a file: what is in it has to be plain.
    assert json.loads(json.dumps(state)) == state

    resumed = create()

    resumed.load_state_dict(state)

    assert read_epochs(resumed, 3)[: len(expected) - seen] == expected[seen:]


def test_what_is_left_of_an_epoch_is_read_once_by_ranks_with_other_batches() -> None:
    """2 ranks x 3 s, then 1 x 6 s, then 3 x 2 s: what a global batch of 6 s makes of these numbers of ranks."""
    ids: list[str] = []

    state: dict[str, object] | None = None

    def create(rank: int, world_size: int) -> HubertDataReader:
        reader = create_reader(rank=rank, world_size=world_size, batch_seconds=6.0 / world_size)

        if state is not None:
            reader.load_state_dict(state)

        return reader

    for world_size, num_updates in ((2, 2), (1, 2), (3, 1), (3, None)):
        readers = [create(rank, world_size) for rank in range(world_size)]

        for reader in readers:
            ids += [name for batches in itertools.islice(reader, num_updates) for b in batches for name in b.ids]

        state = readers[0].state_dict()

    # An incomplete last round over the ranks is left out, as in any epoch.
    assert len(ids) == len(set(ids)) > NUM_UTTERANCES - 3 * 2

    readers[0].reset()

    fresh = create_reader(world_size=3, batch_seconds=2.0)

    fresh.reset()

    assert read_epochs(readers[0], 1) == read_epochs(fresh, 1)


def test_reader_can_be_sent_back() -> None:
    reader = create_reader()

    next(reader)

    state = reader.state_dict()

    first = [Seen.of(b) for b in next(reader)]

    for _ in range(3):
        next(reader)

    reader.load_state_dict(state)

    assert [Seen.of(b) for b in next(reader)] == first


def test_epochs_differ_in_order_crops_and_masks() -> None:
    reader = create_reader()

    one, two = read_epochs(reader, 1), read_epochs(reader, 1)

    assert sorted(i for u in one for b in u for i in b.ids) == sorted(f"utt{i}" for i in range(NUM_UTTERANCES))
    assert [b.ids for u in one for b in u] != [b.ids for u in two for b in u]

    first, second = ({b.content for u in epoch for b in u} for epoch in (one, two))

    # A short utterance that is alone in its bucket has few masks to choose from.
    assert len(first & second) <= len(first) // 4


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_what_one_rank_sees(world_size: int) -> None:
    """Rank r of W reads what one rank that accumulates W batches reads at place r: all of it, nothing twice."""
    whole = create_reader(num_accumulate=world_size).plan()

    shards = [create_reader(rank=r, world_size=world_size).plan() for r in range(world_size)]

    assert len({len(s) for s in shards}) == 1, "ranks that have more batches than others would wait for ever"

    for i, batches in enumerate(zip(*shards, strict=True)):
        for r, batch in enumerate(batches):
            np.testing.assert_array_equal(batch.indices, whole[i * world_size + r].indices)

    seen = np.concatenate([b.indices for s in shards for b in s])

    assert len(set(seen.tolist())) == len(seen)

    assert len(whole) - sum(map(len, shards)) < world_size, "more than the incomplete last round was left out"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_sees_everything_once_and_the_same_each_time(world_size: int) -> None:
    reader = create_reader(shuffle=False)

    first, second = read_epochs(reader, 1), read_epochs(reader, 1)

    assert first == second

    shards = [create_reader(shuffle=False, rank=r, world_size=world_size).plan() for r in range(world_size)]

    seen = np.concatenate([b.indices for s in shards for b in s])

    assert sorted(seen.tolist()) == list(range(NUM_UTTERANCES))


def test_validation_can_be_limited() -> None:
    assert len(read_epochs(create_reader(shuffle=False, max_num_batches=3), 1)) == 3


@pytest.mark.parametrize("num_workers", [1, 3])
def test_unreadable_audio_comes_out_of_the_pipeline_as_what_it_is(num_workers: int) -> None:
    reader = create_reader(read=read_all_but(7), num_workers=num_workers)

    with pytest.raises(AudioError, match=r"'speaker/utt7\.wav' is truncated") as info:
        for _ in reader:
            pass

    assert info.value.__cause__ is None, "the user sees the sentence, not the pipeline around it"


def test_skipped_utterances_are_counted_and_the_others_stay() -> None:
    bad = {3, 7, 8}

    good = read_epochs(create_reader(), 1)

    reader = create_reader(read=read_all_but(*bad), on_bad_audio="skip")

    batches = [b for update in reader for b in update]

    assert sum(b.num_skipped for b in batches) == 3

    assert {i for b in batches for i in b.ids} == {f"utt{i}" for i in range(NUM_UTTERANCES)} - {f"utt{i}" for i in bad}

    # Batches without a bad one are untouched.
    untouched = {s for u in good for s in u if not {f"utt{i}" for i in bad} & set(s.ids)}

    assert untouched <= {Seen.of(b) for b in batches}


def test_a_batch_that_cannot_be_read_at_all_is_passed_over() -> None:
    plan = create_reader().plan()

    reader = create_reader(read=read_all_but(*plan[1].indices.tolist()), on_bad_audio="skip")

    ids = [tuple(b.ids) for update in reader for b in update]

    assert ids == [tuple(f"utt{i}" for i in b.indices) for n, b in enumerate(plan) if n != 1]


def test_audio_that_is_all_unreadable_ends_the_epoch_instead_of_hanging() -> None:
    reader = create_reader(read=read_all_but(*range(NUM_UTTERANCES)), on_bad_audio="skip")

    with pytest.raises(StopIteration):
        next(reader)


def test_incomplete_accumulation_is_dropped_in_training() -> None:
    num_batches = len(create_reader().plan())

    updates = read_epochs(create_reader(num_accumulate=4), 1)

    assert [len(u) for u in updates] == [4] * (num_batches // 4)


def test_time_spent_waiting_is_told_once() -> None:
    reader = create_reader()

    next(reader)

    assert reader.pop_wait_seconds() > 0.0
    assert reader.pop_wait_seconds() == 0.0
