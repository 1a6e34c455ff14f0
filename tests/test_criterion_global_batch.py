"""The batch of the whole job, shared out among ranks and accumulated batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import NO_DROPOUT, make_corpus, pretrain_config, read_metrics, write_config
from fairseq2.utils.validation import Validatable
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_answer, command_server, pretrain_args, start_pretrain_ranks, wait_for_all

from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.errors import ConfigError
from hubert_plugin.tasks.early_stopping import EarlyStoppingSection
from hubert_plugin.tasks.global_batch import split_global_batch
from hubert_plugin.tasks.hubert_pretrain import HubertPretrainTaskConfig
from hubert_plugin.tasks.init_model import InitSection
from hubert_plugin.tasks.nonfinite import NonFiniteSection


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("health"))


@settings(max_examples=200, deadline=None)
@given(
    total=st.floats(5.0, 10_000.0),
    world_size=st.integers(1, 512),
    batch=st.floats(15.625, 400.0),
    longest=st.floats(1.0, 15.625),
)
def test_global_batch_is_shared_out_exactly_or_refused(
    total: float, world_size: int, batch: float, longest: float
) -> None:
    def possible(n: int) -> bool:
        return longest <= total / (world_size * n) <= batch * (1 + 1e-9)

    fewest = next((n for n in range(1, int(total / world_size / longest) + 2) if possible(n)), None)

    if fewest is None:
        with pytest.raises(ConfigError, match="global_batch_seconds"):
            split_global_batch(total, world_size, batch_seconds=batch, max_seconds=longest)

        return

    split = split_global_batch(total, world_size, batch_seconds=batch, max_seconds=longest)

    assert split.num_accumulate == fewest
    assert split.batch_seconds * split.num_accumulate * world_size == pytest.approx(total)


@pytest.mark.parametrize(
    ("world_size", "batch", "expected"),
    [(32, 87.5, (87.5, 1)), (8, 87.5, (87.5, 4)), (1, 87.5, (87.5, 32)), (3, 87.5, (84.848485, 11)),
     (8, 350.0, (350.0, 1)), (64, 87.5, (43.75, 1))],
)  # fmt: skip
def test_batch_of_the_paper_holds_on_any_number_of_ranks(
    world_size: int, batch: float, expected: tuple[float, int]
) -> None:
    split = split_global_batch(2800.0, world_size, batch_seconds=batch, max_seconds=15.625)

    assert (pytest.approx(split.batch_seconds), split.num_accumulate) == expected


@pytest.mark.parametrize(
    ("args", "phrases"),
    [
        ((2800.0, 256, 87.5, 15.625), ["at most 179 ranks", "10.94 s"]),
        ((100.0, 1, 60.0, 55.0), ["2 x 50 s", "`task.config.batching.batch_seconds` to 100"]),
        ((10.0, 1, 60.0, 15.0), ["1 x 10 s", "Lower `max_seconds`"]),
    ],
)
def test_batch_that_cannot_be_shared_out_is_refused_with_advice(args: tuple[Any, ...], phrases: Sequence[str]) -> None:
    total, world_size, batch, longest = args

    with pytest.raises(ConfigError) as info:
        split_global_batch(total, world_size, batch_seconds=batch, max_seconds=longest)

    for phrase in phrases:
        assert phrase in str(info.value)


def test_global_batch_gives_equal_training_on_one_rank_and_two(corpus: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus, model={"config_overrides": NO_DROPOUT}, optimizer={"name": "adamw"},
            task={"config": {"global_batch_seconds": 12.0}},
            regime={"num_steps": 6, "validate_every_n_steps": 6, "checkpoint_every_n_steps": 6},
        ),
    )  # fmt: skip

    one, two = (
        command_server().start(*pretrain_args(tmp_path / "one", config)),
        start_pretrain_ranks(tmp_path / "two", config, 2),
    )

    wait_for_all([one, *two])

    assert "12 s of audio = 1 rank(s) x 2 batch(es) x 6 s" in one.text
    assert "12 s of audio = 2 rank(s) x 1 batch(es) x 6 s" in two[0].text

    ours, theirs = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")

    assert [r["Masked Frames"] for r in ours] == [r["Masked Frames"] for r in theirs]
    assert [r["Loss"] for r in ours] == pytest.approx([r["Loss"] for r in theirs], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "phrases"),
    [
        (["task.config.global_batch_seconds=2"], ["1 x 2 s", "too little for an utterance", "max_seconds"]),
        (
            ["task.config.global_batch_seconds=12", "trainer.grad_accumulation.num_batches=2"],
            ["num_batches` is 2", "Leave one of them out"],
        ),
        (["task.config.global_batch_seconds=3000"], ["global_batch_seconds", "an update needs 500"]),
    ],
)
def test_batch_that_cannot_be_is_answered_with_a_sentence(
    overrides: Sequence[str], phrases: Sequence[str], corpus: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus))

    assert_answer(command_server().pretrain(tmp_path / "out", config, *overrides), phrases)


@pytest.mark.parametrize(
    ("section", "phrase"),
    [
        (BatchConfig(batch_seconds=2.0, max_seconds=2.5, min_seconds=1.0), "must not be smaller than `max_seconds`"),
        (BatchConfig(batch_seconds=math.inf), "`batch_seconds` must be a finite number, but is inf"),
        (HubertPretrainTaskConfig(global_batch_seconds=-1.0), "`global_batch_seconds` must be greater than 0"),
        (HubertPretrainTaskConfig(global_batch_seconds=math.inf), "greater than 0 and finite, but is inf"),
        (HubertPretrainTaskConfig(valid_batch_seconds=-5.0), "`valid_batch_seconds` must be greater than 0"),
        (HubertPretrainTaskConfig(valid_batch_seconds=math.inf), "greater than 0 and finite, but is inf"),
        (EarlyStoppingSection(patience=0), "`patience` must be greater than or equal to 1"),
        (EarlyStoppingSection(min_improvement=-0.1), "`min_improvement` must not be negative"),
        (NonFiniteSection(max_in_a_row=0), "`max_in_a_row` must be greater than or equal to 1"),
        (InitSection(step="first"), "`step` must be 'last', 'best' or a number"),
    ],
)
def test_setting_out_of_range_is_refused(section: Validatable, phrase: str) -> None:
    (error,) = section.validate().errors

    assert phrase in error
