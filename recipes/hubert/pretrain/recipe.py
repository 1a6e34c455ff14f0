"""``pretrain``: label sets → target heads → readers → criterion → fairseq2's trainer → report."""

from __future__ import annotations

from functools import partial
from typing import Any, final

from fairseq2.metrics.recorders import MetricDescriptorRegistry
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import DatasetSection, ModelSection, TrainerSection
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.criteria.head_metrics import describe_heads, share_metric_descriptors
from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.ranks import run_together
from hubert_plugin.recipes.hubert.pretrain.config import HubertPretrainConfig
from hubert_plugin.registry import Criterion, HubertTask, create_component
from hubert_plugin.tasks.cpu import suit_cpu
from hubert_plugin.tasks.create_trainer import create_trainer
from hubert_plugin.tasks.data_record import UsedData, keep_or_check_data
from hubert_plugin.tasks.freezing import freeze_convolutions_without_gradient
from hubert_plugin.tasks.global_batch import apply_global_batch
from hubert_plugin.tasks.heads import check_architecture, check_resumed_heads, set_target_heads
from hubert_plugin.tasks.hubert_pretrain import HubertPretrainTask
from hubert_plugin.tasks.init_model import check_init, init_model, is_materialized
from hubert_plugin.tasks.names import check_card_names
from hubert_plugin.tasks.output_dir import (
    check_last_checkpoint,
    checkpoint_folder,
    register_output_guard,
    remove_unfinished_checkpoints,
)
from hubert_plugin.tasks.peak import observe_peak
from hubert_plugin.tasks.report import PretrainReport
from hubert_plugin.tasks.training import TrainingTask, describe_memory_error, describe_missing_score


@final
class HubertPretrainRecipe(Recipe):
    """Trains a HuBERT to predict the units of masked frames."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container, identity=("model", "dataset", "task", "criterion", "optimizer.name"))

        share_metric_descriptors(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertPretrainConfig)

        check_init(config.init)

        # fairseq2 reads the configuration anew each time it is asked for; its sections are what it builds from.
        resolver = context.resolver

        trainer_section = resolver.resolve(TrainerSection)

        dataset_section, model_section = resolver.resolve(DatasetSection, key="dataset"), resolver.resolve(ModelSection)

        check_card_names(resolver, model_section, dataset_section)

        checkpoint_dir = checkpoint_folder(resolver, context.output_dir)

        check_last_checkpoint(checkpoint_dir, context.gangs, config.task.config)

        if context.gangs.root.rank == 0:
            remove_unfinished_checkpoints(checkpoint_dir)

        if context.device.type == "cpu":
            suit_cpu(trainer_section)

        apply_global_batch(config.task.config, trainer_section, context.gangs.dp.size)

        # The data first: its label sets say the sizes of the target heads.
        task_builder: Any = create_component(resolver, HubertTask, config.task.name, config.task.config)  # type: ignore[type-abstract]

        task = task_builder(context, dataset_section, config.common.seed)

        check_architecture(resolver, model_section)

        label_sets = task.label_sets()

        set_target_heads(model_section, label_sets)

        checkpoints = context.get_checkpoint_manager()

        last_step_nr = checkpoints.maybe_get_last_step_number(exclude_model_only=True)

        if last_step_nr is not None:
            check_resumed_heads(resolver, model_section, checkpoint_dir)

        # A task of another package keeps account of its data itself.
        if isinstance(task, HubertPretrainTask):
            names = [n for n in (dataset_section.train_split, dataset_section.valid_split) if n is not None]

            splits = {name: task.split(name) for name in names}

            keep_or_check_data(
                context,
                {name: UsedData(split.manifest, split.labels) for name, split in splits.items()},
                resumed=last_step_nr is not None,
            )

        dp_model = context.get_data_parallel_model()

        model = context.get_model()

        if not isinstance(model, HubertModel):
            raise ConfigError(f"`model` must be a HuBERT, but is a {type(model).__name__} instead.")

        readers = task.create_readers(
            normalize_audio=model.config.normalize_audio,
            num_accumulate=trainer_section.grad_accumulation.num_batches,
        )

        criterion_builder: Any = create_component(
            resolver,
            Criterion,  # type: ignore[type-abstract]
            config.criterion.name,
            config.criterion.config,
        )

        criterion = criterion_builder(dp_model, model)

        describe_heads(resolver.resolve(MetricDescriptorRegistry), [h.label_set for h in model.target_heads])

        train_step, eval_step = TrainStep(criterion, readers.train.pop_wait_seconds), EvalStep(criterion)

        observe_peak(train_step, context.gangs, model.config, config.task.config, trainer_section)

        trainer = create_trainer(
            context,
            train_step,
            eval_step,
            readers,
            dp_model=dp_model,
            model=model,
            nonfinite=config.nonfinite,
            early_stopping=config.early_stopping,
        )

        report = None

        # A task of another package may have no label sets to compare with phones.
        if config.report.enabled and isinstance(task, HubertPretrainTask):
            report = PretrainReport(context.output_dir, config.report, dataset_section, task, model, eval_step)

        def describe() -> str:
            return describe_memory_error(train_step, eval_step, config.task.config, trainer_section)

        explain = partial(describe_missing_score, eval_step, config.regime.score_metric)

        return TrainingTask(trainer, context.gangs, report, describe, explain)

    @override
    def setup_model(self, context: RecipeContext, model: Module, newly_initialized: bool) -> Module:
        if not isinstance(model, HubertModel):
            return model

        init = context.get_config_as(HubertPretrainConfig).init

        if newly_initialized and init.source is not None:
            # On ranks that have no memory for it yet, the model is a copy of the first rank's later.
            run_together(context.gangs.root, lambda: init_model(model, init) if is_materialized(model) else None)

        freeze_convolutions_without_gradient(model)

        return model

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertPretrainConfig
