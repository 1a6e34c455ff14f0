"""``analyze``: labels, a unit model or a HuBERT + phone times → table, ``OUT/analysis.json`` and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.progress import ProgressReporter
from fairseq2.utils.rich import get_console
from typing_extensions import override

from hubert_plugin.analysis.alignments import Alignment, find_alignment, read_alignments
from hubert_plugin.analysis.plots import joint_file_name, joint_tables, save_plots
from hubert_plugin.analysis.report import AnalysisReport
from hubert_plugin.analysis.run import (
    analyze_label_stores,
    analyze_spaces,
    analyze_unit_model,
    make_abx_tasks,
    make_segment_collectors,
)
from hubert_plugin.analysis.spaces import check_layers, make_extractor
from hubert_plugin.analysis.utterances import utterances_of
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.demo import ensure_demo_corpus
from hubert_plugin.errors import ConfigError, MissingDependencyError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.hubert.hub import load_hubert
from hubert_plugin.ranks import run_on_first
from hubert_plugin.recipes.hubert.analyze.config import HubertAnalyzeConfig
from hubert_plugin.registry import FeatureSource, create_component
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard
from hubert_plugin.units.kmeans import KMeansConfig
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stream import AudioFeatureStream, describe_manifest


@final
class AnalyzeRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertAnalyzeConfig)

        require_option(
            config.labels or config.unit_model or config.model or config.mfcc,
            "There is nothing to analyze: name label sets (`labels=[km]`), a unit model (`unit_model=FILE`) or a model "
            "(`model=CARD_OR_FILE_OR_RUN`), or set `mfcc=true`.",
        )

        def run(should_stop: Callable[[], bool]) -> None:
            run_on_first(context.gangs.root, lambda: analyze(context, config))

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertAnalyzeConfig


def analyze(context: RecipeContext, config: HubertAnalyzeConfig) -> None:
    """Measure what ``config`` names; print the tables and write the files."""
    has_spaces = bool(config.model or config.with_mfcc)

    if not has_spaces:
        _tell_unused(config)

    manifest_dir = config.manifest_dir or ensure_demo_corpus(config.demo)

    manifest = read_manifest(manifest_dir, config.split)

    alignment = read_alignments(config.alignment, manifest, default=find_alignment(manifest))

    if alignment is None:
        log.warning(
            "There are no phone times (`alignment.path`): units are not compared with phones.{}",
            " Layers are compared by view consistency, unless `criterion=false`." if has_spaces else "",
        )

    report = AnalysisReport(
        {
            **describe_manifest(manifest),
            "hours": manifest.hours,
            "alignment": None if alignment is None else str(alignment.path),
            "model": config.model or None,
            "unit_model": None if config.unit_model is None else str(config.unit_model),
        }
    )

    with context.progress_reporter as progress:
        report.label_sets |= analyze_label_stores(config.label_dir or manifest_dir, config.labels, manifest, alignment)

        if config.unit_model is not None:
            source = create_component(
                context.resolver,
                FeatureSource,  # type: ignore[type-abstract]
                config.features.name,
                config.features.config,
            )

            stream = AudioFeatureStream(manifest, source, config.audio, num_workers=config.num_workers)

            # A joblib file does not say its rate.
            unit_model = load_units(config.unit_model, trust_pickle=config.trust_pickle, rate=stream.rate)

            for name, analysis in analyze_unit_model(stream, unit_model, alignment, progress=progress).items():
                # Labels of the same name are another label set.
                report.label_sets[f"{name} (unit model)" if name in report.label_sets else name] = analysis

        if has_spaces:
            _analyze_spaces(context, config, manifest, alignment, report, progress)

    _publish(context, config, report)


def _analyze_spaces(
    context: RecipeContext,
    config: HubertAnalyzeConfig,
    manifest: Manifest,
    alignment: Alignment | None,
    report: AnalysisReport,
    progress: ProgressReporter,
) -> None:
    # All that can be wrong is looked at before the work begins.
    abx_tasks = make_abx_tasks(config.abx, manifest)

    words = read_alignments(config.words, manifest, default=find_alignment(manifest, "words"), may_lack=True)

    segments = make_segment_collectors(
        config.cca,
        {
            "words": (words, [config.words.silence]),
            "phones": (alignment, [config.alignment.silence, config.alignment.gap or ""]),
        },
        manifest.ids,
    )

    fit_manifest = read_manifest(manifest.path.parent, config.fit_split)

    device = context.gangs.root.device

    model = load_hubert(config.model, device=device) if config.model else None

    layers = [] if model is None else check_layers(config.layers, len(model.encoder.layers))

    extract = make_extractor(
        model,
        layers,
        mfcc=config.with_mfcc,
        half_precision=config.half_precision,
    )

    policy = replace(config.audio, normalize=False)  # the extractor does it, for the model alone

    analyze_spaces(
        report,
        extract,
        utterances_of(fit_manifest, policy, max_minutes=config.fit_minutes, seed=config.seed),
        utterances_of(manifest, policy),
        alignment,
        num_clusters=config.num_clusters,
        kmeans=KMeansConfig(backend="torch", n_init=config.n_init, max_iter=config.max_iter),
        num_trials=config.trials,
        seed=config.seed,
        abx_tasks=abx_tasks,
        segments=segments,
        num_cca_trials=config.cca.trials,
        with_criterion=alignment is None if config.criterion is None else config.criterion,
        device=device,
        progress=progress,
    )


def _tell_unused(config: HubertAnalyzeConfig) -> None:
    """Say which measures of feature spaces were asked for though there is no space.

    :raises ConfigError: One was switched on.
    """
    if names := [name for name, section in (("abx", config.abx), ("cca", config.cca)) if section.enabled]:
        raise ConfigError(
            f"{' and '.join(f'`{n}.enabled=true`' for n in names)}: there are no features to measure. Name a `model`, "
            "or set `mfcc=true`."
        )

    if names := [n for n, given in (("abx.items", config.abx.items), ("words.path", config.words.path)) if given]:
        log.warning(
            "Without effect, being for features, of which there are none (`model`, `mfcc=true`): {}.",
            " and ".join(f"`{n}`" for n in names),
        )


def _publish(context: RecipeContext, config: HubertAnalyzeConfig, report: AnalysisReport) -> None:
    output_dir = context.output_dir

    write_text_atomic(output_dir / "analysis.json", json.dumps(report.to_dict(), indent=2) + "\n")

    # An earlier analysis may have had others.
    for path in [*output_dir.glob("joint_*.tsv"), *output_dir.glob("joint_*.png"), output_dir / "quality.png"]:
        path.unlink(missing_ok=True)

    for name, joint in joint_tables(report).items():
        joint.save(output_dir / f"{joint_file_name(name)}.tsv")

    if config.plots:
        try:
            save_plots(report, output_dir)
        except MissingDependencyError as ex:
            log.warning("{}", ex)

    for table in report.tables():
        get_console().print(table)

    log.info("Written to {}.", output_dir)
