"""``evaluate``: references and hypotheses → table, ``OUT/evaluation.json`` and ``OUT/utterances.tsv``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.rich import get_console
from typing_extensions import override

from hubert_plugin.decoding.evaluation import find_material, normalize_pairs
from hubert_plugin.decoding.scoring import evaluate_pairs
from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.ranks import run_on_first
from hubert_plugin.recipes.hubert.evaluate.config import HubertEvaluateConfig
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard


@final
class EvaluateRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertEvaluateConfig)

        require_option(
            config.hypotheses, "`hypotheses` must name the output folder of `transcribe`, or a file of hypotheses."
        )

        def run(should_stop: Callable[[], bool]) -> None:
            run_on_first(context.gangs.root, lambda: evaluate(context, config))

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertEvaluateConfig


def evaluate(context: RecipeContext, config: HubertEvaluateConfig) -> None:
    """Compare what ``config`` names; print the tables and write the files."""
    if config.hypotheses is None:
        raise ConfigError("`hypotheses` must be given.")

    material = find_material(
        config.hypotheses,
        config.references,
        column=config.column,
        id_column=config.id_column,
        allow_missing=config.on_missing == "empty",
    )

    evaluation = evaluate_pairs(
        normalize_pairs(material.pairs, config.text),
        level=config.confidence,
        num_draws=config.draws,
        seed=config.seed,
    )

    if evaluation.num_empty_references:
        log.warning(
            "{:,} of {:,} references are empty: whatever was recognised there counts as inserted.",
            evaluation.num_empty_references,
            len(evaluation.utterances),
        )

    result = {
        "references": str(material.references),
        "hypotheses": str(material.hypotheses),
        **evaluation.to_dict(config.num_confusions),
        "real_time_factor": material.real_time_factor,
    }

    write_text_atomic(context.output_dir / "utterances.tsv", evaluation.utterance_table())

    write_text_atomic(context.output_dir / "evaluation.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    for table in evaluation.tables(config.num_confusions, material.real_time_factor):
        get_console().print(table)

    log.info("Written to {}.", context.output_dir)
