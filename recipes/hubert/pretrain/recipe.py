"""``pretrain``: label sets → target heads → readers → criterion → fairseq2's trainer → report."""

from __future__ import annotations

from typing import Any, final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import DatasetSection, ModelSection, TrainerSection
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.recipes.hubert.pretrain.config import HubertPretrainConfig
from hubert_plugin.registry import Criterion, HubertTask, create_component
from hubert_plugin.tasks.cpu import suit_cpu
from hubert_plugin.tasks.heads import check_architecture, set_target_heads
from hubert_plugin.tasks.output_dir import (
    check_last_checkpoint,
    register_output_guard,
    remove_unfinished_checkpoints,
)
from hubert_plugin.tasks.report import PretrainReport
from hubert_plugin.tasks.training import TrainingTask


@final
class HubertPretrainRecipe(Recipe):
    """Trains a HuBERT to predict the units of masked frames."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container, identity=("model", "dataset", "task", "criterion"))

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertPretrainConfig)

        check_last_checkpoint(context.output_dir, context.gangs.root.size)

        if context.gangs.root.rank == 0:
            remove_unfinished_checkpoints(context.output_dir)

        if context.device.type == "cpu":
            suit_cpu(context.resolver.resolve(TrainerSection))

        # The data first: its label sets say the sizes of the target heads.
        task_builder: Any = create_component(context.resolver, HubertTask, config.task.name, config.task.config)  # type: ignore[type-abstract]

        # fairseq2 reads the configuration anew each time it is asked for; its sections are what it builds from.
        dataset_section = context.resolver.resolve(DatasetSection, key="dataset")

        task = task_builder(context, dataset_section, config.common.seed)

        model_section = context.resolver.resolve(ModelSection)

        check_architecture(context.resolver, model_section)

        set_target_heads(model_section, task.label_sets())

        dp_model = context.get_data_parallel_model()

        model = context.get_model()

        if not isinstance(model, HubertModel):
            raise ConfigError(f"`model` must be a HuBERT, but is a {type(model).__name__} instead.")

        readers = task.create_readers(
            normalize_audio=model.config.normalize_audio,
            num_accumulate=config.trainer.grad_accumulation.num_batches,
        )

        criterion_builder: Any = create_component(
            context.resolver,
            Criterion,  # type: ignore[type-abstract]
            config.criterion.name,
            config.criterion.config,
        )

        criterion = criterion_builder(dp_model, model)

        train_step, eval_step = TrainStep(criterion, readers.train.pop_wait_seconds), EvalStep(criterion)

        if readers.valid is not None:
            trainer = context.create_trainer(train_step, readers.train, [eval_step], [readers.valid])
        else:
            trainer = context.create_trainer(train_step, readers.train)

        train_step.observe(trainer)

        report = None

        if config.report.enabled:
            report = PretrainReport(context.output_dir, config.report, dataset_section, task, model, eval_step)

        return TrainingTask(trainer, context.gangs, report)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertPretrainConfig
