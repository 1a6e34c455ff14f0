"""A run that dies at any moment goes on, with the same command, as if nothing had happened.

CPU and float32, so equal means equal to the last bit. Dropout and layer drop are on: their random numbers have to go on
where they were, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import load_weights, make_corpus, pretrain_config, read_metrics, write_config
from processes import Run, command_server, pretrain_args, wait_until

NUM_STEPS = 60

COMPARED = ("Loss", "Masked Loss (bits)", "Unmasked Loss (bits)", "Gradient Norm", "Learning Rate", "Masked Frames")


@dataclass
class Reference:
    """An uninterrupted run."""

    config: Path
    output_dir: Path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("resume")

    regime = {
        "num_steps": NUM_STEPS,
        "validate_every_n_steps": 10,
        "checkpoint_every_n_steps": 10,
        "keep_last_n_checkpoints": 2,
    }

    config = write_config(folder / "config.yaml", pretrain_config(make_corpus(folder / "corpus"), regime=regime))

    run = command_server().pretrain(folder / "out", config)

    assert run.wait() == 0, run.raw

    return Reference(config, folder / "out")


def by_step(output_dir: Path, kind: str = "train") -> dict[int, list[tuple[Any, ...]]]:
    """The compared values of each step; a step that ran twice, before and after the kill, has two entries."""
    values: dict[int, list[tuple[Any, ...]]] = {}

    for record in read_metrics(output_dir, kind):
        # There is a learning rate for each group of parameters.
        compared = [record.get(key) for key in COMPARED]

        values.setdefault(record["Step"], []).append(tuple(tuple(v) if isinstance(v, list) else v for v in compared))

    return values


def kill_at_step(output_dir: Path, config: Path, step: int) -> Run:
    """Start a run and kill it as soon as the metrics of ``step`` are on the disk."""
    run = command_server().start(*pretrain_args(output_dir, config))

    def reached() -> bool:
        try:
            return run.poll() is not None or any(r["Step"] >= step for r in read_metrics(output_dir))
        except ValueError:  # a line is half-written
            return False

    wait_until(reached, run=run)

    assert run.poll() is None, f"the run ended before it could be killed:\n{run.raw[-3000:]}"

    run.kill()

    return run


def test_killed_run_goes_on_to_the_same_losses_and_weights(reference: Reference, tmp_path: Path) -> None:
    """Killed twice: first before any checkpoint stands, then in the middle of an epoch between two checkpoints."""
    out = tmp_path / "out"

    kill_at_step(out, reference.config, 3)

    kill_at_step(out, reference.config, 26)

    last = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step_*[0-9]"))

    seen = max(by_step(out))

    assert last < seen, "the kill hit a checkpoint, not the steps between"

    run = command_server().pretrain(out, reference.config)

    assert run.wait() == 0, run.raw

    assert f"Resuming from step {last}." in run.raw

    for kind in ("train", "valid"):
        expected, values = by_step(reference.output_dir, kind), by_step(out, kind)

        assert values.keys() == expected.keys()

        for step, entries in values.items():
            assert set(entries) == set(expected[step]), f"{kind}, step {step}"

    # The steps after the checkpoint really ran twice, and the second epoch began.
    assert len(by_step(out)[last + 1]) >= 2
    assert {r["Data Epoch"] for r in read_metrics(out)} >= {1, 2}

    ours, theirs = (load_weights(o / "checkpoints" / f"step_{NUM_STEPS}") for o in (out, reference.output_dir))

    assert ours.keys() == theirs.keys()

    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_finished_run_is_not_trained_again(reference: Reference) -> None:
    before = (reference.output_dir / "metrics/train.jsonl").read_bytes()

    run = command_server().pretrain(reference.output_dir, reference.config)

    assert run.wait() == 0, run.raw

    assert (reference.output_dir / "metrics/train.jsonl").read_bytes() == before


def test_what_a_kill_left_of_a_checkpoint_is_cleared_away(reference: Reference, tmp_path: Path) -> None:
    """A kill during the writing of a checkpoint leaves ``step_N.tmp``; it is neither used nor kept."""
    out = tmp_path / "out"

    kill_at_step(out, reference.config, 14)

    leftover = out / "checkpoints/step_57.tmp/model"

    leftover.mkdir(parents=True)

    (leftover / "rank.pt").write_bytes(b"half")

    run = command_server().pretrain(out, reference.config)

    assert run.wait() == 0, run.raw

    assert not leftover.exists()
    assert by_step(out).keys() == by_step(reference.output_dir).keys()


@pytest.mark.parametrize(
    "first",
    [
        ["regime.num_data_epochs=1"],
        # In the middle of the last epoch, and where an epoch and the distance of checkpoints end together.
        ["regime.num_steps=11"],
        ["regime.num_steps=8"],
    ],
    ids=["epoch", "last", "both"],
)
def test_epochs_are_counted_once_wherever_the_run_goes_on(tmp_path: Path, first: Sequence[str]) -> None:
    """Twelve batches of one utterance, three to an update: an epoch has four updates, three epochs have twelve."""
    corpus = make_corpus(tmp_path / "corpus", num_train=12, num_valid=1, seconds=(1.0, 1.01))

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus,
            dataset={"valid_split": None},
            task={"config": {"batching": {"max_examples": 1}}},
            trainer={"grad_accumulation": {"num_batches": 3}},
            regime={
                "num_steps": 40,
                "num_data_epochs": 3,
                "score_metric": None,
                "keep_best_n_checkpoints": None,
                "validate_every_n_steps": None,
                "checkpoint_every_n_steps": 8,
                "checkpoint_every_n_data_epochs": 1,
            },
        ),
    )

    out = tmp_path / "out"

    for overrides in (first, [], []):
        run = command_server().pretrain(out, config, *overrides)

        assert run.wait() == 0, run.raw

    # The third run had nothing left to do.
    records = read_metrics(out)

    assert [(r["Step"], r["Data Epoch"]) for r in records if "Loss" in r] == [
        (nr, (nr + 3) // 4) for nr in range(1, 13)
    ]
