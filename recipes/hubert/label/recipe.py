"""``label``: manifest + unit model → label store ``OUT/<split>.<label set>`` with dictionary and record."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task, TaskStopException
from typing_extensions import override

from hubert_plugin.data.manifest import list_splits, read_manifest
from hubert_plugin.errors import ConfigError, ManifestError
from hubert_plugin.recipes.hubert.label.config import HubertLabelConfig
from hubert_plugin.registry import FeatureSource, create_component
from hubert_plugin.tasks.function import FunctionTask
from hubert_plugin.tasks.output_dir import register_output_guard
from hubert_plugin.units.label import check_features, label_manifest
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stream import AudioFeatureStream


@final
class LabelRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertLabelConfig)

        def run(should_stop: Callable[[], bool]) -> None:
            if context.gangs.root.rank == 0:
                label(context, config, should_stop)

            context.gangs.root.barrier()

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertLabelConfig


def label(context: RecipeContext, config: HubertLabelConfig, should_stop: Callable[[], bool]) -> None:
    """Label the splits of ``config`` and write the label stores to the output folder."""
    if config.manifest_dir is None or config.unit_model is None:
        raise ConfigError("`manifest_dir` and `unit_model` must be given.")

    unit_model = load_units(config.unit_model, trust_pickle=config.trust_pickle)

    splits = config.splits if config.splits is not None else list_splits(config.manifest_dir)

    if not splits:
        raise ManifestError(f"There is no manifest (`*.tsv`) in '{config.manifest_dir}'.")

    source = create_component(
        context.resolver,
        FeatureSource,  # type: ignore[type-abstract]
        config.features.name,
        config.features.config,
    )

    streams = [
        AudioFeatureStream(read_manifest(config.manifest_dir, s), source, config.audio, num_workers=config.num_workers)
        for s in splits
    ]

    for stream in streams:
        check_features(unit_model, stream)  # all of them before the first hour of work

    with context.progress_reporter as progress:
        for stream in streams:
            if should_stop():
                raise TaskStopException()

            label_manifest(stream, unit_model, context.output_dir, progress=progress)

            log.info("Labels of '{}' written to {}.", stream.manifest.split, context.output_dir)
