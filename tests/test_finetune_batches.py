"""Batches of recognition: whole utterances, padded; masks drawn from (seed, epoch, utterance)."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from fairseq2.gang import create_fake_gangs
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.ctc_batch import CtcBatch
from hubert_plugin.data.ctc_loader import CtcLoader, CtcMaskConfig
from hubert_plugin.data.ctc_text import SplitTexts
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig, PlannedBatch, plan_epoch
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.errors import AudioError
from hubert_plugin.tasks.hubert_ctc import HubertCtcTaskConfig

NUM_UTTERANCES = 60

MODEL_DIM = 768

SIZES = np.random.default_rng(0).integers(16_000, 160_000, NUM_UTTERANCES)

NUM_FRAMES = (SIZES - 400) // 320 + 1

IDS = [f"s{i % 5}/u{i:02}.wav" for i in range(NUM_UTTERANCES)]

BROKEN = {7, 23}


def waveform(idx: int) -> NDArray[np.float32]:
    return np.random.default_rng([1, idx]).standard_normal(int(SIZES[idx])).astype(np.float32)


def read(idx: int) -> NDArray[np.float32]:
    return waveform(idx)


def read_or_fail(idx: int) -> NDArray[np.float32]:
    if idx in BROKEN:
        raise AudioError(f"u{idx} is broken.")

    return waveform(idx)


def make_texts() -> SplitTexts:
    tokens = [np.arange(1, 2 + i % 9, dtype=np.int32) for i in range(NUM_UTTERANCES)]

    return SplitTexts([f"text {i}" for i in range(NUM_UTTERANCES)], tokens, np.arange(NUM_UTTERANCES), {})


def make_loader(
    *, mask: CtcMaskConfig | None = None, seed: int = 0, broken: str | None = None, dim: int = MODEL_DIM
) -> CtcLoader:
    return CtcLoader(
        IDS,
        make_texts(),
        read if broken is None else read_or_fail,
        mask=mask,
        model_dim=dim,
        seed=seed,
        on_bad_audio=broken or "raise",  # type: ignore[arg-type]
    )


def load(loader: CtcLoader, indices: list[int], epoch: int = 1) -> CtcBatch:
    batch = loader.load(PlannedBatch(np.array(indices), None), epoch)

    assert batch is not None

    return batch


def batching(**changes: object) -> BatchConfig:
    values = {"batch_seconds": 30.0, "max_seconds": 20.0, "min_seconds": 0.025, "length": "pad_bucket", **changes}

    return BatchConfig(**values)  # type: ignore[arg-type]


def expected_share(length: int, config: MaskConfig) -> float:
    """The expected share of covered places: each start count by its probability, each place by those that cover it."""
    num_starts = length - config.span_len

    exact = config.prob * length / config.span_len

    shares = []

    for count, probability in ((int(exact), 1 - exact % 1), (int(exact) + 1, exact % 1)):
        count = max(config.min_spans, count)

        covering = [min(t, num_starts - 1) - max(0, t - config.span_len + 1) + 1 for t in range(length)]

        missed = [comb(num_starts - c, count) / comb(num_starts, count) for c in covering]

        shares.append(probability * (1 - np.mean(missed)))

    return float(sum(shares))


class TestLoader:
    def test_audio_is_whole_and_padded_with_zeros(self) -> None:
        indices = [3, 40, 12]

        batch = load(make_loader(mask=CtcMaskConfig()), indices)

        assert batch.num_samples == SIZES[indices].tolist()
        assert batch.waveforms.shape == (3, SIZES[indices].max())

        for row, idx in zip(batch.waveforms, indices, strict=True):
            assert torch.equal(row[: SIZES[idx]], torch.from_numpy(waveform(idx)))
            assert not row[SIZES[idx] :].any()

        assert batch.padded
        assert batch.padded_seconds == pytest.approx((3 * SIZES[indices].max() - SIZES[indices].sum()) / 16000)

    def test_symbols_stand_one_after_another(self) -> None:
        batch = load(make_loader(), [0, 4, 2])

        assert batch.target_lengths == [1, 5, 3]
        assert batch.targets.tolist() == [1, 1, 2, 3, 4, 5, 1, 2, 3]
        assert batch.targets.dtype == torch.int64
        assert batch.texts == ["text 0", "text 4", "text 2"]
        assert batch.ids == [IDS[0], IDS[4], IDS[2]]
        assert batch.num_frames == NUM_FRAMES[[0, 4, 2]].tolist()

    def test_nothing_is_masked_in_validation_or_with_probability_zero(self) -> None:
        off = CtcMaskConfig(time=MaskConfig(prob=0.0), channel=MaskConfig(prob=0.0))

        for loader in (make_loader(), make_loader(mask=off)):
            batch = load(loader, [0, 1])

            assert batch.temporal_mask is None and batch.channel_mask is None

    def test_masks_never_cover_padding(self) -> None:
        batch = load(make_loader(mask=CtcMaskConfig()), [3, 40, 12])

        assert batch.temporal_mask is not None and batch.channel_mask is not None
        assert batch.temporal_mask.shape == (3, max(batch.num_frames))
        assert batch.channel_mask.shape == (3, MODEL_DIM)

        for row, num_frames in zip(batch.temporal_mask, batch.num_frames, strict=True):
            assert row[:num_frames].any() and not row[num_frames:].any()

    def test_shares_of_masked_frames_and_channels_are_those_of_fairseqs_draws(self) -> None:
        """fairseq's draws (data_utils.py:476-539), before it trims the rows of a batch to one count: starts without
        replacement, of which the share of covered places follows exactly."""
        config, loader = CtcMaskConfig(), make_loader(mask=CtcMaskConfig())

        time, channel = [], []

        for epoch in range(8):
            for idx in range(NUM_UTTERANCES):
                batch = load(loader, [idx], epoch)

                assert batch.temporal_mask is not None and batch.channel_mask is not None

                time.append(batch.temporal_mask.float().mean().item())
                channel.append(batch.channel_mask.float().mean().item())

        expected = np.mean([expected_share(int(n), config.time) for n in NUM_FRAMES])

        assert np.mean(time) == pytest.approx(expected, abs=0.005)
        assert np.mean(channel) == pytest.approx(expected_share(MODEL_DIM, config.channel), abs=0.005)

    def test_masks_depend_on_seed_epoch_and_utterance_alone(self) -> None:
        def masks(indices: list[int], epoch: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
            batch = load(make_loader(mask=CtcMaskConfig(), seed=seed), indices, epoch)

            assert batch.temporal_mask is not None and batch.channel_mask is not None

            return batch.temporal_mask[-1, : NUM_FRAMES[indices[-1]]], batch.channel_mask[-1]

        alone = masks([5])

        for again in (masks([5]), masks([44, 9, 5])):
            assert all(map(torch.equal, alone, again))

        for other in (masks([5], epoch=2), masks([5], seed=1)):
            assert not torch.equal(alone[0], other[0])
            assert not torch.equal(alone[1], other[1])

    def test_unreadable_audio_follows_the_policy(self) -> None:
        with pytest.raises(AudioError, match="u7 is broken"):
            load(make_loader(broken="raise"), [6, 7, 8])

        batch = load(make_loader(broken="skip"), [6, 7, 8])

        assert (batch.ids, batch.num_skipped, batch.texts) == ([IDS[6], IDS[8]], 1, ["text 6", "text 8"])

        assert make_loader(broken="skip").load(PlannedBatch(np.array([7, 23]), None), 1) is None


class TestPlan:
    def plan(self, seed: int | None = 0, **changes: object) -> list[PlannedBatch]:
        rng = None if seed is None else np.random.default_rng(seed)

        return plan_epoch(NUM_FRAMES, np.arange(NUM_UTTERANCES), batching(**changes), rng)

    def test_every_utterance_comes_once_and_is_not_cut(self) -> None:
        for seed in (None, 0, 1):
            batches = self.plan(seed)

            assert sorted(np.concatenate([b.indices for b in batches]).tolist()) == list(range(NUM_UTTERANCES))
            assert all(b.num_frames is None for b in batches)

    def test_padded_batches_fit_and_hold_neighbours_in_length(self) -> None:
        for batch in self.plan():
            lengths = NUM_FRAMES[batch.indices]

            assert len(lengths) * frames.seconds(frames.num_samples_of(int(lengths.max()))) <= 30.0

        waste = sum(b.indices.size * NUM_FRAMES[b.indices].max() for b in self.plan()) / NUM_FRAMES.sum() - 1

        assert waste < 0.12

    def test_members_change_from_epoch_to_epoch(self) -> None:
        def members(seed: int) -> set[frozenset[int]]:
            return {frozenset(b.indices.tolist()) for b in self.plan(seed, bucket_growth=1.5)}

        assert len(members(0) & members(1)) < len(members(0)) / 2

    def test_at_most_so_many_examples(self) -> None:
        assert max(b.indices.size for b in self.plan(max_examples=2)) == 2


class TestReader:
    def reader(self, **kwargs: object) -> HubertDataReader[CtcBatch]:
        options = {"seed": 3, "shuffle": True, "num_workers": 2, **kwargs}

        return HubertDataReader(
            make_loader(mask=CtcMaskConfig(), dim=32),
            NUM_FRAMES,
            np.arange(NUM_UTTERANCES),
            batching(),
            create_fake_gangs(torch.device("cpu")),
            **options,  # type: ignore[arg-type]
        )

    def test_batches_are_those_of_the_plan_masks_included(self) -> None:
        once, again = ([b for batches in self.reader() for b in batches] for _ in range(2))

        assert sorted(i for b in once for i in b.ids) == sorted(IDS)

        for a, b in zip(once, again, strict=True):
            assert a.ids == b.ids
            assert a.temporal_mask is not None and b.temporal_mask is not None
            assert torch.equal(a.temporal_mask, b.temporal_mask)

    def test_place_is_resumed_exactly(self) -> None:
        reader = self.reader()

        [next(reader) for _ in range(3)]

        state = reader.state_dict()

        expected = [b.ids for batches in reader for b in batches]

        resumed = self.reader()

        resumed.load_state_dict(state)

        assert [b.ids for batches in resumed for b in batches] == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (HubertCtcTaskConfig(batching=batching(length="bucket")), "audio that is cut no longer fits its transcript"),
        (HubertCtcTaskConfig(num_workers=0), "`num_workers` must be"),
        (HubertCtcTaskConfig(num_prefetch=-1), "`num_prefetch` must not"),
        (HubertCtcTaskConfig(global_batch_seconds=0.0), "`global_batch_seconds` must be greater than 0"),
    ],
)
def test_unusable_options_are_named(config: HubertCtcTaskConfig, text: str) -> None:
    assert text in str(config.validate())


def test_masks_are_drawn_utterance_by_utterance() -> None:
    result = CtcMaskConfig(time=MaskConfig(same_count=True)).validate()

    assert "`time.same_count` must be false" in str(result)
