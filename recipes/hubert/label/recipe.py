"""``label``: manifest + unit model → label store ``OUT/<split>.<label set>`` with dictionary and record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from hubert_plugin.data.label_convert import (
    conversion_problems,
    convert_labels,
    kaldi_label_files,
    list_label_sets,
    write_kaldi_labels,
)
from hubert_plugin.data.label_pieces import lock_labels
from hubert_plugin.data.labels import open_labels
from hubert_plugin.data.manifest import Manifest, list_splits, read_manifest
from hubert_plugin.data.provenance import raise_if_lost
from hubert_plugin.errors import LabelError, ManifestError, StorageError
from hubert_plugin.ranks import raise_together, run_on_first
from hubert_plugin.recipes.hubert.label.config import HubertLabelConfig
from hubert_plugin.registry import FeatureSource, UnitModel, create_component
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard
from hubert_plugin.units.label import LabelJob, LabelShare
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stored import open_feature_stream


@final
class LabelRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertLabelConfig)

        require_option(config.manifest_dir, "`manifest_dir` must be the folder that holds the manifests.")

        require_option(
            config.unit_model or config.labels_from,
            "`unit_model` must be a unit model; `fairseq2 recipe hubert cluster` makes one.",
        )

        def run(should_stop: Callable[[], bool]) -> None:
            if config.labels_from is None:
                label(context, config, should_stop)
            else:
                run_on_first(context.gangs.root, lambda: convert(context, config))

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertLabelConfig


def label(context: RecipeContext, config: HubertLabelConfig, should_stop: Callable[[], bool]) -> None:
    """Label this process's share of the splits of ``config``; rank 0 joins what is whole."""
    gang = context.gangs.root

    jobs: list[tuple[Manifest, LabelJob]] = []

    error: Exception | None = None

    try:
        jobs = create_jobs(context, config)

        with context.progress_reporter as progress:
            for manifest, job in jobs:
                if job.store.is_joined():
                    log.info("The labels of '{}' are there already, and fit.", manifest.split)
                    continue

                num_kept = job.run(progress=progress, should_stop=should_stop)

                if num_kept:
                    log.info("Of '{}', {} of {} pieces were finished before.", manifest.split, num_kept, len(job.mine))
    except Exception as ex:
        error = ex

    raise_together(gang, error)

    run_on_first(gang, lambda: join(context, config, jobs))


def create_jobs(context: RecipeContext, config: HubertLabelConfig) -> list[tuple[Manifest, LabelJob]]:
    """Open everything and check that it fits, before the first hour of work."""
    assert config.unit_model is not None

    source = create_component(
        context.resolver,
        FeatureSource,  # type: ignore[type-abstract]
        config.features.name,
        config.features.config,
    )

    gang = context.gangs.root

    share = LabelShare(num_shards=config.num_shards, shard=config.shard, rank=gang.rank, num_ranks=gang.size)

    form: Any = config.format

    jobs: list[tuple[Manifest, LabelJob]] = []

    unit_model: UnitModel | None = None

    for manifest in read_manifests(config):
        stream = open_feature_stream(manifest, source, config.audio, num_workers=config.num_workers)

        if unit_model is None:
            # A joblib file does not say its rate.
            unit_model = load_units(config.unit_model, trust_pickle=config.trust_pickle, rate=stream.rate)

        jobs.append((manifest, LabelJob(stream, unit_model, context.output_dir, form=form, share=share)))

    if not config.overwrite:
        raise_if_lost(
            context.output_dir, "labels", [problem for _, job in jobs for problem in job.replacing_problems()]
        )

    return jobs


def join(context: RecipeContext, config: HubertLabelConfig, jobs: Sequence[tuple[Manifest, LabelJob]]) -> None:
    """Join the pieces of the splits of which all are there."""
    for manifest, job in jobs:
        if job.store.is_joined():
            job.store.tidy()

            is_whole = True
        else:
            # What was written for kaldi is of the labels before: it goes before others come.
            with lock_labels(context.output_dir):
                if all(job.store.has(p) for p in job.pieces):
                    remove_ark(context.output_dir, manifest, job.label_sets)

            is_whole = job.join()

        if not is_whole:
            num_there = sum(job.store.has(p) for p in job.pieces)

            log.info(
                "Of '{}', {} of {} pieces are there; whoever finishes the last one joins them.",
                manifest.split,
                num_there,
                len(job.pieces),
            )

            continue

        write_ark(context, config, manifest, job.label_sets)

        log.info("Labels of '{}' are in {}.", manifest.split, context.output_dir)


def convert(context: RecipeContext, config: HubertLabelConfig) -> None:
    """Check the labels of ``labels_from`` and write them in the form that was asked for."""
    assert config.labels_from is not None

    source = config.labels_from.expanduser()

    if not source.exists():
        raise LabelError(f"There are no labels at '{source}': `labels_from` must be a folder or a kaldi table.")

    form: Any = config.format

    reading: dict[str, Any] = {
        "size": config.label_size,
        "rate": config.label_rate,
        "allow_pipes": config.allow_pipes,
    }

    jobs = [(manifest, find_label_sets(config, source, manifest)) for manifest in read_manifests(config)]

    if not config.overwrite:
        problems = [
            problem
            for manifest, names in jobs
            for name in names
            for problem in conversion_problems(source, context.output_dir, name, manifest, **reading)
        ]

        raise_if_lost(context.output_dir, "labels", problems)

    for manifest, names in jobs:
        for name in names:
            spec = convert_labels(source, context.output_dir, name, manifest, form=form, **reading)

            log.info("Labels {}.{} ({} units, {} Hz) written.", manifest.split, name, spec.size, spec.rate)

        write_ark(context, config, manifest, names)


def find_label_sets(config: HubertLabelConfig, source: Path, manifest: Manifest) -> list[str]:
    """Return the names of the label sets of a manifest that ``labels_from`` has, or those that are asked for."""
    names = config.label_sets

    if names is None:
        names = list(list_label_sets(source, manifest.split)) if source.is_dir() else ["km"]

    if not names:
        raise LabelError(f"There are no labels of '{manifest.split}' in '{source}'.")

    return names


def write_ark(context: RecipeContext, config: HubertLabelConfig, manifest: Manifest, names: Sequence[str]) -> None:
    """Write the labels for kaldi, if that was asked for."""
    if not config.kaldi_ark:
        return

    # Two jobs of an array may find the labels whole at the same time.
    with lock_labels(context.output_dir):
        for name in names:
            labels = open_labels(context.output_dir, manifest.split, name, manifest)

            log.info("Written for kaldi: {}.", write_kaldi_labels(labels, manifest, context.output_dir))


def remove_ark(label_dir: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Remove what was written for kaldi of labels that are about to be replaced."""
    for name in names:
        for path in reversed(kaldi_label_files(label_dir, manifest.split, name)):
            try:
                path.unlink(missing_ok=True)
            except OSError as ex:
                raise StorageError(
                    f"'{path}' is of the labels that are to be replaced and cannot be removed: {ex.strerror or ex}."
                ) from ex


def read_manifests(config: HubertLabelConfig) -> list[Manifest]:
    """Read the manifests of the splits of ``config``."""
    assert config.manifest_dir is not None

    splits = config.splits if config.splits is not None else list_splits(Path(config.manifest_dir))

    if not splits:
        raise ManifestError(f"There is no manifest (`*.tsv`) in '{config.manifest_dir}'.")

    return [read_manifest(config.manifest_dir, s) for s in splits]
