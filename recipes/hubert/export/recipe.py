"""``export``: model → folders and files of other libraries, each measured, with ``parity.json`` beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from hubert_plugin.errors import ConfigError
from hubert_plugin.models.export.several import export_all
from hubert_plugin.ranks import run_on_first
from hubert_plugin.recipes.hubert.export.config import HubertExportConfig
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard


@final
class ExportRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertExportConfig)

        require_option(config.model, "`model` must name a model card, a checkpoint file or the folder of a run.")

        def run(should_stop: Callable[[], bool]) -> None:
            run_on_first(context.gangs.root, lambda: export(context, config))

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertExportConfig


def export(context: RecipeContext, config: HubertExportConfig) -> None:
    """Export the model of ``config`` to the output folder."""
    if not config.model:
        raise ConfigError("`model` must be given.")

    for report in export_all(
        config.model,
        context.output_dir,
        config.formats,
        layer=config.layer,
        heads=config.heads,
        audio=config.audio,
    ):
        log.info("Exported to {}. {}", report.path, report)
