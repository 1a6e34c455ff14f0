"""``finetune``: transcripts → tokenizer → recogniser on a pretrained encoder → CTC → fairseq2's trainer → report."""

from __future__ import annotations

from functools import partial
from typing import Any, final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import DatasetSection, ModelSection, TokenizerSection, TrainerSection
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.criteria.ctc import CTC, CtcCriterion
from hubert_plugin.criteria.steps import EvalStep, TrainStep
from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.ranks import run_together
from hubert_plugin.recipes.hubert.finetune.config import HubertFinetuneConfig
from hubert_plugin.registry import Criterion, HubertTask, create_component
from hubert_plugin.tasks.cpu import suit_cpu
from hubert_plugin.tasks.create_trainer import create_trainer
from hubert_plugin.tasks.ctc_record import keep_or_check_texts
from hubert_plugin.tasks.ctc_report import FinetuneReport
from hubert_plugin.tasks.data_record import UsedData, keep_or_check_data
from hubert_plugin.tasks.freezing import freeze_encoder_for_some_updates, freeze_for_ever
from hubert_plugin.tasks.global_batch import apply_global_batch
from hubert_plugin.tasks.heads import check_architecture
from hubert_plugin.tasks.hubert_ctc import HUBERT_CTC, HubertCtcTask
from hubert_plugin.tasks.init_model import is_materialized
from hubert_plugin.tasks.names import check_card_names
from hubert_plugin.tasks.output_dir import (
    check_last_checkpoint,
    checkpoint_folder,
    register_output_guard,
    remove_unfinished_checkpoints,
)
from hubert_plugin.tasks.pretrained import (
    PretrainedModel,
    check_output_layer,
    check_resumed_vocabulary,
    copy_parameters,
    open_pretrained,
    read_model_config,
    set_model,
)
from hubert_plugin.tasks.tokenizer import HubertTokenizerSection, open_tokenizer
from hubert_plugin.tasks.training import TrainingTask, describe_memory_error, describe_missing_score


@final
class HubertFinetuneRecipe(Recipe):
    """Fine-tunes a HuBERT for recognition."""

    def __init__(self) -> None:
        self._pretrained: PretrainedModel | None = None

    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(
            container,
            identity=(
                "pretrained",
                "pretraining",
                "model",
                "freezing",
                "dataset",
                "tokenizer",
                "task",
                "criterion",
                "optimizer.name",
            ),
        )

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertFinetuneConfig)

        for name, found, expected in (
            ("task", config.task.name, HUBERT_CTC),
            ("criterion", config.criterion.name, CTC),
        ):
            if found != expected:
                raise ConfigError(f"`{name}.name` must be '{expected}' here, but is '{found}' instead.")

        # fairseq2 reads the configuration anew each time it is asked for; its sections are what it builds from.
        resolver = context.resolver

        trainer_section = resolver.resolve(TrainerSection)

        dataset_section, model_section = resolver.resolve(DatasetSection, key="dataset"), resolver.resolve(ModelSection)

        tokenizer_section = resolver.resolve(TokenizerSection, key="tokenizer")

        assert isinstance(tokenizer_section, HubertTokenizerSection)

        check_card_names(resolver, model_section, dataset_section)

        checkpoint_dir = checkpoint_folder(resolver, context.output_dir)

        check_last_checkpoint(checkpoint_dir, context.gangs, config.task.config)

        if context.gangs.root.rank == 0:
            remove_unfinished_checkpoints(checkpoint_dir)

        if context.device.type == "cpu":
            suit_cpu(trainer_section)

        apply_global_batch(config.task.config, trainer_section, context.gangs.dp.size)

        check_architecture(resolver, model_section)

        task_builder: Any = create_component(resolver, HubertTask, config.task.name, config.task.config)  # type: ignore[type-abstract]

        task = task_builder(context, dataset_section, config.common.seed)

        assert isinstance(task, HubertCtcTask)

        last_step_nr = context.get_checkpoint_manager().maybe_get_last_step_number(exclude_model_only=True)

        tokenizer = open_tokenizer(context, tokenizer_section, task.training_texts, resumed=last_step_nr is not None)

        vocabulary = tokenizer.vocabulary

        if last_step_nr is None:
            self._pretrained = open_pretrained(config.pretrained, config.pretraining, context.gangs)

            check_output_layer(self._pretrained, config.pretraining, vocabulary)

            encoder_config = self._pretrained.config if self._pretrained is not None else None

            layer_pooling = self._pretrained.layer_pooling if self._pretrained is not None else None
        else:
            before = read_model_config(resolver, checkpoint_dir)

            check_resumed_vocabulary(before, vocabulary, checkpoint_dir)

            encoder_config = before.encoder if config.pretrained else None

            layer_pooling = before.layer_pooling

        task.spell(tokenizer)

        keep_or_check_data(
            context,
            {name: UsedData(manifest) for name, manifest in task.manifests().items()},
            resumed=last_step_nr is not None,
        )

        keep_or_check_texts(
            context.output_dir,
            task.used_texts(),
            resumed=last_step_nr is not None,
            is_first=context.gangs.root.rank == 0,
        )

        set_model(
            resolver,
            model_section,
            vocabulary,
            encoder_config,
            train_convolutions=not config.freezing.freezes_convolutions(pretrained=bool(config.pretrained)),
            layer_pooling=layer_pooling if config.pretraining.output_layer == "keep" else None,
        )

        dp_model = context.get_data_parallel_model()

        model = context.get_model()

        if not isinstance(model, HubertCtcModel):
            raise ConfigError(f"`model` must be of the family 'hubert_ctc', but is a {type(model).__name__} instead.")

        self._pretrained = None

        encoder = model.config.encoder

        readers = task.create_readers(
            normalize_audio=encoder.normalize_audio,
            num_accumulate=trainer_section.grad_accumulation.num_batches,
            model_dim=encoder.model_dim,
        )

        criterion_builder: Any = create_component(
            resolver,
            Criterion,  # type: ignore[type-abstract]
            config.criterion.name,
            config.criterion.config,
        )

        criterion = criterion_builder(dp_model, model)

        assert isinstance(criterion, CtcCriterion)

        freeze_encoder_for_some_updates(config.freezing, dp_model, model, criterion)

        train_step, eval_step = TrainStep(criterion, readers.train.pop_wait_seconds), EvalStep(criterion)

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

        report = FinetuneReport(context.output_dir, task, config.pretrained, eval_step)

        def describe() -> str:
            return describe_memory_error(train_step, eval_step, config.task.config, trainer_section)

        explain = partial(describe_missing_score, eval_step, config.regime.score_metric)

        return TrainingTask(trainer, context.gangs, report, describe, explain)

    @override
    def setup_model(self, context: RecipeContext, model: Module, newly_initialized: bool) -> Module:
        config = context.get_config_as(HubertFinetuneConfig)

        if not isinstance(model, HubertCtcModel):
            return model

        if (pretrained := self._pretrained) is not None and newly_initialized:

            def copy() -> None:
                # On ranks that have no memory for it yet, the model is a copy of the first rank's later.
                if is_materialized(model.hubert):
                    copy_parameters(model, pretrained, config.pretraining)

            run_together(context.gangs.root, copy)

        freeze_for_ever(model, config.freezing, pretrained=bool(config.pretrained))

        return model

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertFinetuneConfig
