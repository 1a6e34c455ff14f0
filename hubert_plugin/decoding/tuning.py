"""The search for w1 and w2 on a validation set, with optuna."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from hubert_plugin.decoding.distance import EditCounts
from hubert_plugin.decoding.options import Options, not_finite
from hubert_plugin.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from optuna import Trial


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Options):
    """Configures the search for the weights of a language model. Ranges: fairseq's ``config/decode/ax_sweep``."""

    trials: int = 0
    """How many pairs of weights are tried; 0: no search. fairseq tries 60."""

    input: str = ""
    """The validation set: a manifest (``FOLDER/SPLIT.tsv``). Empty: what is transcribed, which flatters the error rate
    that is then measured on it."""

    references: Path | None = None
    """Its transcripts. ``null``: those that lie beside the manifest."""

    lm_weight: tuple[float, float] = (0.0, 8.0)
    """The range of w1."""

    word_score: tuple[float, float] = (-5.0, 5.0)
    """The range of w2."""

    seed: int = 0
    """The seed of the search."""

    @override
    def problems(self) -> list[str]:
        problems = [
            f"`{name}` must be a smaller and a larger number, but is {list(value)} instead."
            for name in ("lm_weight", "word_score")
            if not (len(value := getattr(self, name)) == 2 and value[0] < value[1])
        ]

        problems += not_finite(self, "lm_weight", "word_score")

        if self.trials < 0:
            problems.append(f"`trials` must be 0 or greater, but is {self.trials} instead.")

        return problems


@dataclass(frozen=True)
class TuningResult:
    """What a search found."""

    lm_weight: float
    word_score: float

    counts: EditCounts
    """The word errors with these weights."""

    history: list[tuple[float, float, float]]
    """w1, w2 and word error rate of each trial."""


def require_optuna() -> None:
    """:raises MissingDependencyError: optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as ex:
        raise MissingDependencyError(
            "The search for weights needs the package `optuna`, which is not installed. Install it with `pip install "
            "'fairseq2-hubert[tune]'` (in a checkout: `pip install '.[tune]'`), or set `tune.trials=0`."
        ) from ex


def tune_weights(
    measure: Callable[[float, float], EditCounts],
    config: TuningConfig,
    *,
    start: tuple[float, float],
    on_trial: Callable[[], None] | None = None,
) -> TuningResult:
    """Search for the weights with the lowest word error rate (tree-structured Parzen estimator; Bergstra et al., 2011).

    :param measure: Decodes the validation set with w1 and w2, and counts the word errors.
    :param start: The pair that is tried first, so that the result is never worse on this set.
    :raises ConfigError: There is nothing to try.
    :raises MissingDependencyError: optuna is not installed.
    """
    if config.trials < 1:
        raise ConfigError(f"`tune.trials` must be 1 or greater to search, but is {config.trials}.")

    require_optuna()

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=config.seed))

    study.enqueue_trial(
        {"lm_weight": _clip(start[0], config.lm_weight), "word_score": _clip(start[1], config.word_score)}
    )

    found: dict[int, EditCounts] = {}

    def objective(trial: Trial) -> float:
        w1 = trial.suggest_float("lm_weight", *config.lm_weight)
        w2 = trial.suggest_float("word_score", *config.word_score)

        found[trial.number] = measure(w1, w2)

        if on_trial is not None:
            on_trial()

        return found[trial.number].rate

    study.optimize(objective, n_trials=config.trials)

    # Of equals the first, which may be the pair that the user had.
    best = min(study.trials, key=lambda t: (t.value, t.number))

    return TuningResult(
        best.params["lm_weight"],
        best.params["word_score"],
        found[best.number],
        [(t.params["lm_weight"], t.params["word_score"], float(t.value or 0.0)) for t in study.trials],
    )


def _clip(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])
