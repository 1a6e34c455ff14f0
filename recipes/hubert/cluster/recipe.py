"""``cluster``: manifest → features → unit model ``OUT/units.safetensors`` and its report ``OUT/units.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast, final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.ranks import raise_together
from hubert_plugin.recipes.hubert.cluster.config import HubertClusterConfig
from hubert_plugin.registry import FeatureSource, UnitModel, create_component
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard
from hubert_plugin.units.clustering import making
from hubert_plugin.units.codebooks import CodebookUnitModel
from hubert_plugin.units.fit import FitResult, UnitModelFitter
from hubert_plugin.units.mfcc import MFCC_SOURCE, MfccConfig
from hubert_plugin.units.prepare import UNIT_MODEL_FILE
from hubert_plugin.units.replacing import raise_if_unit_model_lost
from hubert_plugin.units.stored import open_feature_stream


@final
class ClusterRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertClusterConfig)

        require_option(config.manifest_dir, "`manifest_dir` must be the folder that holds the manifest.")

        def run(should_stop: Callable[[], bool]) -> None:
            cluster(context, config)

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertClusterConfig


def cluster(context: RecipeContext, config: HubertClusterConfig) -> None:
    """Fit the unit model of ``config`` and write it to the output folder."""
    assert config.manifest_dir is not None

    source = create_component(
        context.resolver,
        FeatureSource,  # type: ignore[type-abstract]
        config.features.name,
        config.features.config,
    )

    fitter = cast(
        UnitModelFitter,
        create_component(
            context.resolver,
            UnitModel,  # type: ignore[type-abstract]
            config.units.name,
            config.units.config,
        ),
    )

    manifest = read_manifest(config.manifest_dir, config.split)

    gang = context.gangs.root

    result: FitResult | None = None

    refuse_to_replace(context, config, manifest, source, fitter)

    if fitter.distributed:
        stream = open_feature_stream(manifest, source, config.audio, num_workers=config.num_workers)

        with context.progress_reporter as progress:
            result = fitter.fit(stream, seed=config.seed, progress=progress, gang=gang)

    error: Exception | None = None

    if gang.rank == 0:
        try:
            if result is None:
                stream = open_feature_stream(manifest, source, config.audio, num_workers=config.num_workers)

                with context.progress_reporter as progress:
                    result = fitter.fit(stream, seed=config.seed, progress=progress)

            write_units(context, config, result)
        except Exception as ex:
            error = ex

    raise_together(gang, error)


def refuse_to_replace(
    context: RecipeContext,
    config: HubertClusterConfig,
    manifest: Manifest,
    source: FeatureSource,
    fitter: UnitModelFitter,
) -> None:
    """End before the fit, on all ranks, if it would replace a unit model of another making."""
    gang = context.gangs.root

    error: Exception | None = None

    if gang.rank == 0 and not config.overwrite:
        try:
            stream = open_feature_stream(manifest, source, config.audio, num_workers=config.num_workers)

            raise_if_unit_model_lost(context.output_dir / UNIT_MODEL_FILE, making(stream, fitter, config.seed))
        except Exception as ex:
            error = ex

    raise_together(gang, error)


def write_units(context: RecipeContext, config: HubertClusterConfig, result: FitResult) -> None:
    """Write the unit model and its report to the output folder."""
    path = context.output_dir.joinpath(UNIT_MODEL_FILE)

    result.model.save(path)

    report = {
        "unit_model": path.name,
        "fingerprint": result.model.fingerprint,
        "report": result.report.to_dict(),
        "reports": [r.to_dict() for r in result.reports],
        "provenance": dict(result.model.provenance),
    }

    write_text_atomic(path.with_suffix(".json"), json.dumps(report, indent=2, sort_keys=True) + "\n")

    if config.export_joblib:
        if not isinstance(result.model, CodebookUnitModel):
            raise ConfigError(f"A {type(result.model).__name__} has no codebooks; set `export_joblib: false`.")

        for spec in result.model.label_sets:
            result.model.export_joblib(path.with_name(f"{spec.name}.joblib"), spec.name)

    for item in result.reports:
        log.info("{}.", item)

    # The defaults of `label` are the same; other settings have to be given again.
    settings = []

    if config.features.name != MFCC_SOURCE or config.features.config not in ({}, MfccConfig()):
        settings.append("`features`")

    if config.audio != AudioPolicy():
        settings.append("`audio`")

    log.info(
        "Unit model written to {}. Next: `fairseq2 recipe hubert label OUT --config manifest_dir={} unit_model={}`{}.",
        path,
        config.manifest_dir,
        path,
        f" with the same {' and '.join(settings)} settings" if settings else "",
    )
