"""Early stopping, and the score that picks the best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import make_corpus, merge, pretrain_config, read_metrics, write_config
from fairseq2.recipe.config import RegimeSection
from fairseq2.task import TaskStopException
from processes import assert_answer, command_server, start_pretrain_ranks, wait_for_all

import hubert_plugin
from hubert_plugin.errors import ConfigError
from hubert_plugin.tasks.early_stopping import (
    EarlyStoppingSection,
    PatienceStopper,
    Score,
    create_early_stopper,
    validations_without_improvement,
)
from hubert_plugin.tasks.training import TrainingTask

GANGS: Any = SimpleNamespace(root=SimpleNamespace(rank=0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("health"))


@pytest.mark.parametrize(
    ("values", "min_improvement", "expected"),
    [
        ([], 0.0, 0),
        ([0.1], 0.0, 0),
        ([0.1, 0.1, 0.1], 0.0, 2),  # a tie is no improvement
        ([0.1, 0.3, 0.2, 0.3, 0.31], 0.0, 0),
        ([0.1, 0.3, 0.2, 0.3], 0.0, 2),
        ([0.1, 0.15, 0.2, 0.25], 0.06, 1),  # 0.2 beats 0.1 by enough, 0.25 does not beat 0.2
        ([-5.0, -4.0, -4.5], 0.0, 1),  # a loss: fairseq2 turns its sign
        ([float("nan"), float("nan")], 0.0, 2),
        ([0.1, float("nan"), 0.2], 0.0, 0),
    ],
)
def test_validations_without_improvement_are_counted(
    values: list[float], min_improvement: float, expected: int
) -> None:
    scores = [Score(10 * i, value) for i, value in enumerate(values)]

    assert validations_without_improvement(scores, min_improvement) == expected


def early_config(corpus: Path, **sections: Any) -> dict[str, Any]:
    """A model that never learns: its score never improves."""
    config = pretrain_config(
        corpus,
        optimizer={"config": {"lr": 1e-30, "conv_lr": 1e-30}},
        regime={"num_steps": 40, "validate_every_n_steps": 4, "checkpoint_every_n_steps": 4},
        early_stopping={"patience": 2},
    )

    return merge(config, sections)


def test_run_stops_early_reports_and_stays_stopped(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", early_config(corpus))

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 0, run.raw[-3000:]
    assert "training stops early" in run.text

    # The first validation sets the mark; two more do not beat it.
    assert [r["Step"] for r in read_metrics(tmp_path / "out", "valid")] == [4, 8, 12]

    assert "Checkpoints:" in run.text and (tmp_path / "out/report.json").is_file()
    assert "Task stopped" not in run.text

    again = command_server().pretrain(tmp_path / "out", config)

    assert again.poll() == 0, again.raw[-3000:]
    assert "has stopped early at step 12" in again.text
    assert [r["Step"] for r in read_metrics(tmp_path / "out", "valid")] == [4, 8, 12]

    # With more patience it goes on, and counts what it had.
    more = command_server().pretrain(tmp_path / "out", config, "early_stopping.patience=3")

    assert more.poll() == 0, more.raw[-3000:]
    assert [r["Step"] for r in read_metrics(tmp_path / "out", "valid")] == [4, 8, 12, 16]


def test_two_ranks_stop_early_together(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", early_config(corpus, early_stopping={"patience": 1}))

    wait_for_all(start_pretrain_ranks(tmp_path / "out", config, 2))

    assert [r["Step"] for r in read_metrics(tmp_path / "out", "valid")] == [4, 8]


def test_scores_after_the_checkpoint_are_forgotten_when_a_run_goes_on(tmp_path: Path) -> None:
    section = EarlyStoppingSection(patience=2)

    stopper = PatienceStopper(section, tmp_path, None)

    assert [stopper.should_stop(step, 0.5) for step in (4, 8)] == [False, False]

    # Killed after the validation of step 8; its checkpoint was not complete.
    assert PatienceStopper(section, tmp_path, 4).should_stop(8, 0.5) is False
    assert PatienceStopper(section, tmp_path, 8).should_stop(12, 0.5) is True
    assert PatienceStopper(section, tmp_path, 12).stopped_at == 12

    # Another run in the same folder begins anew, and so does one whose record is damaged.
    assert PatienceStopper(section, tmp_path, None).stopped_at is None

    (tmp_path / "early_stopping.json").write_text(json.dumps([1]))

    assert PatienceStopper(section, tmp_path, 12).stopped_at is None


@pytest.mark.parametrize(
    ("score_metric", "has_validation", "missing"), [(None, True, "regime.score_metric"), ("loss", False, "valid_split")]
)
def test_early_stopping_needs_a_score(
    score_metric: str | None, has_validation: bool, missing: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=missing):
        create_early_stopper(
            EarlyStoppingSection(patience=2), RegimeSection(score_metric=score_metric), tmp_path, last_step_nr=None,
            has_validation=has_validation,
        )  # fmt: skip


def test_stop_that_was_asked_for_is_none_of_the_early_kind() -> None:
    class Stopped:
        def run(self) -> None:
            raise TaskStopException()

        def request_stop(self) -> None:
            pass

    reported: list[int] = []

    def report() -> None:
        reported.append(1)

    asked: Any = TrainingTask(Stopped(), GANGS, report)  # type: ignore[arg-type]

    asked.request_stop()

    with pytest.raises(TaskStopException):
        asked.run()

    assert reported == []

    TrainingTask(Stopped(), GANGS, report).run()  # type: ignore[arg-type]

    assert reported == [1]


# The score that picks the best checkpoint


def test_score_of_any_head_picks_the_best_checkpoint(tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", label_sets={"coarse": 3, "fine": 8})

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            folder, dataset={"labels": ["coarse", "fine"]},
            regime={"score_metric": "masked_loss/fine", "keep_last_n_checkpoints": 1, "keep_best_n_checkpoints": 1},
        ),
    )  # fmt: skip

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 0, run.raw[-3000:]

    losses = {r["Step"]: r["Masked Loss (bits) fine"] for r in read_metrics(tmp_path / "out", "valid")}

    best = min(losses, key=lambda step: losses[step])

    assert "Score - Metric: Masked Loss (bits) fine" in run.text

    kept = {int(p.name[5:]) for p in (tmp_path / "out/checkpoints").glob("step_*")}

    assert kept == {best, 12}

    assert hubert_plugin.load_hubert(tmp_path / "out", step="best").config.heads[1].label_set == "fine"


def test_unknown_score_is_answered_with_a_sentence(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus))

    for name, hint in (
        ("masked_acuracy", "Did you mean 'masked_accuracy' or "),
        ("qqq", "). Known names: "),
    ):
        run = command_server().pretrain(tmp_path / "out", config, f"regime.score_metric={name}")

        assert_answer(run, [f"'{name}' is not a known metric (`regime.score_metric`", hint])
