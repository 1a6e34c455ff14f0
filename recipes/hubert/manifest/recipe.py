from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.progress import ProgressTask
from typing_extensions import override

from hubert_plugin.data.kaldi_manifest import KaldiScan, is_kaldi_folder, scan_kaldi
from hubert_plugin.data.scan import ScanOptions, ScanResult, Utterance, count_common, scan_audio
from hubert_plugin.data.split import compile_speaker_pattern, split_by_speaker, split_by_utterance
from hubert_plugin.errors import MAX_SHOWN_PROBLEMS, ConfigError, printable
from hubert_plugin.frames import SAMPLE_RATE, seconds
from hubert_plugin.tasks.function import FunctionTask
from hubert_plugin.tasks.output_dir import register_output_guard

from .config import ManifestRecipeConfig
from .output import TRAIN_SPLIT, VALID_SPLIT, ManifestOutput, show_ref, to_absolute


@final
class ManifestRecipe(Recipe):
    """Makes the manifests ``train.tsv`` and ``valid.tsv`` from a folder or archive of audio."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(ManifestRecipeConfig)

        out_dir = shlex.quote(str(context.output_dir))

        if config.source is None:
            raise ConfigError(
                "`source` must be the folder (or zip or tar archive) that holds the audio, but is not set. For "
                f"example: `fairseq2 recipe hubert manifest {out_dir} --config source=/data/speech`."
            )

        if config.speaker_pattern is not None:
            compile_speaker_pattern(config.speaker_pattern)

        def run(should_stop: Callable[[], bool]) -> None:
            # One process does the work. The others are let go even if it fails, and end well: the reason is told once.
            try:
                if context.gangs.root.rank == 0:
                    _make_manifests(context, config, should_stop)
            except Exception:
                context.gangs.root.barrier()

                raise

            context.gangs.root.barrier()

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return ManifestRecipeConfig


def _make_manifests(context: RecipeContext, config: ManifestRecipeConfig, should_stop: Callable[[], bool]) -> None:
    assert config.source is not None

    source = to_absolute(config.source)

    output = ManifestOutput(
        context.output_dir,
        {
            "source": str(source),
            "valid_source": None if config.valid_source is None else str(to_absolute(config.valid_source)),
            "extensions": list(config.extensions),
            "sample_rate": config.audio.sample_rate,
            "min_seconds": config.min_seconds,
            "max_seconds": config.max_seconds,
            "valid_fraction": config.valid_fraction,
            "speaker_pattern": config.speaker_pattern,
            "seed": config.seed,
            "on_error": config.on_error,
        },
    )

    output.check(config.overwrite)

    options = ScanOptions(
        policy=config.audio,
        extensions=tuple(config.extensions),
        min_seconds=config.min_seconds,
        max_seconds=config.max_seconds,
        on_error=config.on_error,
        num_workers=config.num_workers,
    )

    found = _scan(context, config, source, options, should_stop)

    valid_found = None

    if found is not None and config.valid_source is not None:
        valid_found = _scan(context, config, to_absolute(config.valid_source), options, should_stop)

    if found is None or (config.valid_source is not None and valid_found is None):
        log.info("Stopped before anything was written.")

        return

    scan, valid_scan = _result(found), None if valid_found is None else _result(valid_found)

    if valid_scan is not None:
        train, valid, num_speakers = scan.utterances, valid_scan.utterances, None

        _warn_of_overlap(scan, valid_scan)
    else:
        train, valid, num_speakers = _split(config, found)

    sides = {TRAIN_SPLIT: found, VALID_SPLIT: valid_found or found}

    kaldi = {split: side for split, side in sides.items() if isinstance(side, KaldiScan)}

    output.write(scan, train, valid, valid_scan, kaldi, speakers=num_speakers)

    _report(context, scan, train, valid, num_speakers)


def _scan(
    context: RecipeContext,
    config: ManifestRecipeConfig,
    source: Path,
    options: ScanOptions,
    should_stop: Callable[[], bool],
) -> ScanResult | KaldiScan | None:
    """Find and measure the audio in ``source``; ``None`` if the recipe was asked to stop."""
    log.info("Looking for audio under {}.", source)

    with context.progress_reporter as reporter:
        tasks: list[ProgressTask] = []

        def on_found(total: int) -> None:
            tasks.append(reporter.create_task("scan", total))

        def on_progress(num_files: int) -> None:
            tasks[0].step(num_files)

        try:
            if is_kaldi_folder(source):
                return scan_kaldi(
                    source,
                    options,
                    allow_pipes=config.allow_pipes,
                    audio_dir=context.output_dir / "audio",
                    on_found=on_found,
                    on_progress=on_progress,
                    should_stop=should_stop,
                )

            return scan_audio(source, options, on_found=on_found, on_progress=on_progress, should_stop=should_stop)
        finally:
            for task in tasks:
                task.close()


def _result(found: ScanResult | KaldiScan) -> ScanResult:
    return found.scan if isinstance(found, KaldiScan) else found


def _warn_of_overlap(scan: ScanResult, valid_scan: ScanResult) -> None:
    """Tell how many files are in both of the two folders that training and validation come from."""
    if num_both := count_common(scan, valid_scan):
        log.warning(
            "{} of the {} validation file(s) (`valid_source`) are also in train (`source`): what validation measures "
            "on them says nothing of other speech. Choose folders that share no files, or leave `valid_source` out to "
            "have a part of `source` held out.",
            num_both,
            len(valid_scan.utterances),
        )


def _split(
    config: ManifestRecipeConfig, found: ScanResult | KaldiScan
) -> tuple[list[Utterance], list[Utterance], int | None]:
    """Divide what was found into training and validation: by speaker where speakers are known."""
    utterances = _result(found).utterances

    if config.speaker_pattern is not None:
        return split_by_speaker(utterances, _name, config.speaker_pattern, config.valid_fraction, config.seed)

    if isinstance(found, KaldiScan) and found.speakers is not None:
        speakers = found.speakers

        if len({speakers[u.name] for u in utterances}) > 1:
            return split_by_speaker(utterances, lambda u: speakers[u.name], "(.*)", config.valid_fraction, config.seed)

    return *split_by_utterance(utterances, _name, config.valid_fraction, config.seed), None


def _report(
    context: RecipeContext,
    scan: ScanResult,
    train: Sequence[Utterance],
    valid: Sequence[Utterance],
    num_speakers: int | None,
) -> None:
    for ref, reason in scan.skipped[:MAX_SHOWN_PROBLEMS]:
        log.warning("Skipped {}: {}", show_ref(ref), printable(reason))

    if scan.skipped:
        log.warning(
            "{} file(s) were skipped; all are listed in {}.", len(scan.skipped), context.output_dir / "skipped.tsv"
        )

    if scan.num_too_short or scan.num_too_long:
        log.info("Left out {} too short and {} too long utterance(s).", scan.num_too_short, scan.num_too_long)

    rates = ", ".join(f"{rate} Hz ({count})" for rate, count in scan.sample_rates.items())
    note = " Other rates than 16000 Hz are resampled when read." if set(scan.sample_rates) != {SAMPLE_RATE} else ""

    log.info("Sample rates: {}.{}", rates, note)

    if scan.num_multichannel:
        log.info("{} utterance(s) have several channels; these are averaged when read.", scan.num_multichannel)

    log.info(
        "Wrote {}: train {}, valid {}{}.",
        context.output_dir,
        _describe(train),
        _describe(valid) if valid else "none",
        "" if num_speakers is None else f", {num_speakers} speakers on separate sides",
    )

    log.info(
        "Next: fairseq2 recipe hubert pretrain runs/mine --config dataset.manifest_dir={}",
        shlex.quote(str(context.output_dir)),
    )


def _describe(utterances: Sequence[Utterance]) -> str:
    hours = seconds(sum(u.num_samples for u in utterances)) / 3600

    return f"{len(utterances)} utterances ({hours:.2f} hours)"


def _name(utterance: Utterance) -> str:
    return utterance.name
