"""Early stopping: training ends when the validation score has not improved for some validations.

fairseq2's trainer knows early stopping but is always given one that never stops (FACTS 12.6); this one takes its place.
The scores are kept in ``OUT/early_stopping.json``, so that a run that was killed counts on, and one that has stopped
stays stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from fairseq2.early_stopper import EarlyStopper
from fairseq2.logging import log
from fairseq2.recipe.config import RegimeSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic

SCORES_FILE: Final = "early_stopping.json"


@dataclass(kw_only=True)
class EarlyStoppingSection(Validatable):
    """When training ends before ``regime.num_steps``."""

    patience: int | None = None
    """Training ends after this many validations in a row without a better ``regime.score_metric``. ``None``: never."""

    min_improvement: float = 0.0
    """By how much a score must beat the best one to count as better."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.patience is not None and self.patience < 1:
            result.add_error(f"`patience` must be greater than or equal to 1, but is {self.patience} instead.")

        if self.min_improvement < 0.0:
            result.add_error(f"`min_improvement` must not be negative, but is {self.min_improvement} instead.")

        return result


@dataclass(frozen=True)
class Score:
    """The outcome of a validation; higher is better."""

    step_nr: int
    value: float


def validations_without_improvement(scores: Sequence[Score], min_improvement: float) -> int:
    """Return how many of the last validations have not beaten the best one before them."""
    best, since = -float("inf"), 0

    for score in scores:
        # Not a number is no improvement either.
        if score.value > best + min_improvement:
            best, since = score.value, 0
        else:
            since += 1

    return since


@final
class PatienceStopper(EarlyStopper):
    """Stops after ``patience`` validations without improvement. Asked on rank 0 only."""

    def __init__(self, section: EarlyStoppingSection, output_dir: Path, last_step_nr: int | None) -> None:
        """
        :param last_step_nr: The step from which the run goes on; scores of later steps are forgotten, since those steps
            are made again. ``None``: the run starts.
        """
        assert section.patience is not None

        self._patience = section.patience
        self._min_improvement = section.min_improvement
        self._file = output_dir / SCORES_FILE

        self._scores = [s for s in _read_scores(self._file) if s.step_nr <= (last_step_nr or 0)]

    @property
    def stopped_at(self) -> int | None:
        """The step at which the run has stopped before; ``None`` if it has not."""
        if self._scores and self._is_exhausted():
            return self._scores[-1].step_nr

        return None

    @override
    def should_stop(self, step_nr: int, score: float) -> bool:
        self._scores.append(Score(step_nr, score))

        write_text_atomic(self._file, json.dumps({"scores": [[s.step_nr, s.value] for s in self._scores]}) + "\n")

        if not self._is_exhausted():
            return False

        log.info("The score has not improved for {} validation(s): training stops early.", self._patience)

        return True

    def _is_exhausted(self) -> bool:
        return validations_without_improvement(self._scores, self._min_improvement) >= self._patience


def _read_scores(file: Path) -> list[Score]:
    try:
        return [
            Score(int(step), float(value)) for step, value in json.loads(file.read_text(encoding="utf-8"))["scores"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        # Without it, counting starts anew.
        return []


def create_early_stopper(
    section: EarlyStoppingSection,
    regime: RegimeSection,
    output_dir: Path,
    *,
    last_step_nr: int | None,
    has_validation: bool,
) -> PatienceStopper | None:
    """Return the stopper that ``section`` asks for; ``None`` for no early stopping.

    Where the run has stopped early before, the trainer must be told to end at that step (``stopped_at``): ``regime``
    stays, since the schedule of the learning rate follows from it.

    :param last_step_nr: The step from which the run goes on; ``None``: it starts.
    :raises ConfigError: There is no score to go by.
    """
    if section.patience is None:
        return None

    if not has_validation or regime.score_metric is None:
        missing = "`regime.score_metric`" if has_validation else "a validation split (`dataset.valid_split`)"

        raise ConfigError(f"`early_stopping.patience` needs {missing}, by whose score it decides.")

    stopper = PatienceStopper(section, output_dir, last_step_nr)

    if last_step_nr is not None and stopper.stopped_at == last_step_nr:
        log.info(
            "Training has stopped early at step {}. To go on, raise `early_stopping.patience` (now {}).",
            last_step_nr, section.patience,
        )  # fmt: skip

    return stopper
