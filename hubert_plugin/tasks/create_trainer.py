"""fairseq2's trainer with what ours have besides: updates that are not finite are skipped, it stops early,
gradients of shards are summed once an update, and a run that goes on follows its configuration."""

from __future__ import annotations

from typing import Any, Protocol

from fairseq2.metrics.recorders import MetricDescriptorRegistry
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import RegimeSection
from fairseq2.trainer import Trainer
from torch.nn import Module

from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.registry import unknown_name_error
from hubert_plugin.tasks.early_stopping import EarlyStoppingSection, create_early_stopper
from hubert_plugin.tasks.epochs import EpochCountingReader
from hubert_plugin.tasks.fsdp import let_shards_accumulate
from hubert_plugin.tasks.nonfinite import NonFiniteSection, guard_updates
from hubert_plugin.tasks.resumed_rates import keep_configured_rates


class Readers(Protocol):
    """The readers of a training run, by split."""

    train: Any

    valid: Any
    """``None``: no validation."""


def create_trainer(
    context: RecipeContext,
    train_step: TrainStep,
    eval_step: EvalStep,
    readers: Readers,
    *,
    dp_model: Module,
    model: HubertModel | HubertCtcModel,
    nonfinite: NonFiniteSection,
    early_stopping: EarlyStoppingSection,
) -> Trainer:
    """Return the trainer of a run, which goes on from its last checkpoint if there is one.

    :param dp_model: What is trained: ``model``, or its data-parallel wrapper.
    :raises ConfigError: ``regime.score_metric`` names no metric.
    """
    resolver = context.resolver

    regime = resolver.resolve(RegimeSection)

    check_score_metric(regime.score_metric, resolver.resolve(MetricDescriptorRegistry))

    let_shards_accumulate(dp_model)

    guard = guard_updates(nonfinite, dp_model, model, context.gangs, train_step)

    last_step_nr = context.get_checkpoint_manager().maybe_get_last_step_number(exclude_model_only=True)

    stopper = create_early_stopper(
        early_stopping,
        regime,
        context.output_dir,
        last_step_nr=last_step_nr,
        has_validation=readers.valid is not None,
    )

    reader = readers.train

    # A task of another package may have a reader of its own.
    if isinstance(reader, HubertDataReader):
        reader = EpochCountingReader(reader)

    if readers.valid is not None:
        trainer = context.create_trainer(train_step, reader, [eval_step], [readers.valid])
    else:
        trainer = context.create_trainer(train_step, reader)

    if isinstance(reader, EpochCountingReader):
        reader.observe(trainer)

    keep_configured_rates(trainer._optimizer, trainer._lr_scheduler)

    if guard is not None:
        guard.leave_gradients_to(trainer._fp16_loss_scaler)

    if stopper is not None:
        # fairseq2 gives every trainer one that never stops (FACTS 12.6).
        trainer._early_stopper = stopper

        if last_step_nr is not None and stopper.stopped_at == last_step_nr:
            trainer._max_num_steps = last_step_nr

    train_step.observe(trainer)

    return trainer


def check_score_metric(name: str | None, registry: MetricDescriptorRegistry) -> None:
    """Check that there is a metric ``name``: fairseq2 says only that there is none.

    :raises ConfigError: There is none; tells the nearest.
    """
    if name is not None and registry.maybe_get(name) is None:
        raise unknown_name_error("metric (`regime.score_metric`)", name, sorted(registry._descriptors))
