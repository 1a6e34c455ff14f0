"""``features``: manifest → files of features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from hubert_plugin.data.feature_guard import feature_replacing_problems
from hubert_plugin.data.manifest import list_splits, read_manifest
from hubert_plugin.data.provenance import raise_if_lost
from hubert_plugin.errors import ManifestError
from hubert_plugin.ranks import raise_together
from hubert_plugin.recipes.hubert.features.config import HubertFeaturesConfig
from hubert_plugin.registry import FeatureSource, create_component
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard
from hubert_plugin.units.dump import check_kaldi_ids, check_num_shards, describe_dump, dump_features
from hubert_plugin.units.stream import AudioFeatureStream


@final
class FeaturesRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertFeaturesConfig)

        require_option(config.manifest_dir, "`manifest_dir` must be the folder that holds the manifests.")

        def run(should_stop: Callable[[], bool]) -> None:
            error: Exception | None = None

            try:
                write_features(context, config, should_stop)
            except Exception as ex:
                error = ex

            raise_together(context.gangs.root, error)

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertFeaturesConfig


def write_features(context: RecipeContext, config: HubertFeaturesConfig, should_stop: Callable[[], bool]) -> None:
    """Write this process's shards of the splits of ``config`` to the output folder."""
    assert config.manifest_dir is not None

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

    gang = context.gangs.root

    kind: Any = config.format

    # Of all splits, before anything is read or written.
    if kind == "kaldi":
        check_kaldi_ids([s.manifest for s in streams])

    if config.num_shards is not None:
        check_num_shards([s.manifest for s in streams], config.num_shards)

    cuts = [config.num_shards or max(1, min(gang.size, len(s.manifest))) for s in streams]

    if not config.overwrite:
        raise_if_lost(
            context.output_dir,
            "features",
            [
                problem
                for s, num_shards in zip(streams, cuts, strict=True)
                for problem in feature_replacing_problems(
                    kind, context.output_dir, s.manifest.split, num_shards, describe_dump(s, num_shards)
                )
            ],
        )

    with context.progress_reporter as progress:
        for stream, num_shards in zip(streams, cuts, strict=True):
            shards = range(gang.rank, num_shards, gang.size)

            if config.shard is not None:
                shards = range(config.shard, config.shard + 1) if gang.rank == 0 else range(0)

            # Whoever writes the last shard joins them all.
            if not shards:
                continue

            written = dump_features(
                stream,
                kind,
                context.output_dir,
                num_shards=num_shards,
                shards=shards,
                progress=progress,
                should_stop=should_stop,
            )

            log.info(
                "Features of '{}' in {}: {} of this process's {} shards written now, the others were there.",
                stream.manifest.split,
                context.output_dir,
                len(written),
                len(shards),
            )
