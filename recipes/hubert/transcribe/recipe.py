"""``transcribe``: recordings and a fine-tuned HuBERT → text, JSON lines, CTM and SRT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.progress import ProgressReporter
from typing_extensions import override

from hubert_plugin.decoding.demo_lm import resolve_decoder
from hubert_plugin.decoding.fit import DecoderConfig
from hubert_plugin.decoding.inputs import AudioInput, open_input
from hubert_plugin.decoding.outputs import srt_paths
from hubert_plugin.decoding.recogniser import fingerprint_of, vocabulary_of
from hubert_plugin.decoding.rescoring import load_rescorer
from hubert_plugin.decoding.run import Job, create_decoder, describe_decoder, tune, tuned
from hubert_plugin.decoding.transcriber import Transcriber
from hubert_plugin.decoding.tuning import require_optuna
from hubert_plugin.demo import ensure_demo_corpus
from hubert_plugin.models.hubert.inference import DTYPES
from hubert_plugin.models.hubert_ctc.hub import load_hubert_ctc
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.ranks import run_on_first, run_together
from hubert_plugin.recipes.hubert.transcribe.config import HubertTranscribeConfig
from hubert_plugin.tasks.function import FunctionTask, require_option
from hubert_plugin.tasks.output_dir import register_output_guard


@final
class TranscribeRecipe(Recipe):
    @override
    def register(self, container: DependencyContainer) -> None:
        register_output_guard(container)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(HubertTranscribeConfig)

        require_option(
            config.model,
            "`model` must name a fine-tuned HuBERT: a model card, a checkpoint file or the folder of a run of "
            "`finetune`.",
        )

        def run(should_stop: Callable[[], bool]) -> None:
            transcribe(context, config, should_stop)

        return FunctionTask(run)

    @property
    @override
    def config_kls(self) -> type[object]:
        return HubertTranscribeConfig


def transcribe(context: RecipeContext, config: HubertTranscribeConfig, should_stop: Callable[[], bool]) -> None:
    """Transcribe what ``config`` names, and write the results to the output folder."""
    gang = context.gangs.root

    with context.progress_reporter as progress:
        # What is made once: the demo corpus, its language model, the weights.
        run_on_first(gang, lambda: _prepare(context, config, progress))

        job = run_together(gang, lambda: _create_job(context, config))

        run_together(gang, lambda: job.run(progress, should_stop))

        run_on_first(gang, job.finish)


def _prepare(context: RecipeContext, config: HubertTranscribeConfig, progress: ProgressReporter) -> None:
    if config.tune.trials > 0:
        require_optuna()

    decoder_config = resolve_decoder(config.decoder, config.demo)

    if config.tune.trials < 1:
        return

    tuning = config.tune

    source = open_input([tuning.input], config.audio) if tuning.input else _open_input(context, config)

    model = _load_model(context, config)

    tune(
        context.output_dir,
        _create_transcriber(context, config, model, decoder_config),
        vocabulary_of(model, config.symbols),
        decoder_config,
        source,
        tuning,
        fingerprint_of(model),
        progress,
    )


def _create_job(context: RecipeContext, config: HubertTranscribeConfig) -> Job:
    source = _open_input(context, config)

    # Names that cannot be written are told before the work, not after it.
    if "srt" in config.formats:
        srt_paths(source.ids)

    decoder_config = resolve_decoder(config.decoder, config.demo)

    if config.tune.trials > 0:
        decoder_config = tuned(decoder_config, context.output_dir)

    model = _load_model(context, config)

    identity = {
        "model": config.model,
        "model_fingerprint": fingerprint_of(model),
        "symbols": config.symbols,
        "input": source.source,
        "decoder": describe_decoder(decoder_config),
        "rescoring": asdict(config.rescoring) if config.rescoring.lm else None,
        "compute": {"dtype": config.compute.dtype, "attention_seconds": config.compute.attention_seconds},
        "on_bad_audio": config.on_bad_audio,
    }

    transcriber = _create_transcriber(context, config, model, decoder_config)

    return Job(context.output_dir, source, transcriber, identity, config.formats, context.gangs.root)


def _open_input(context: RecipeContext, config: HubertTranscribeConfig) -> AudioInput:
    names = config.inputs or [str(ensure_demo_corpus(config.demo) / "valid.tsv")]

    return open_input(
        names,
        config.audio,
        keep_unreadable=config.on_bad_audio == "skip",
        num_processes=context.gangs.root.size,
    )


def _load_model(context: RecipeContext, config: HubertTranscribeConfig) -> HubertCtcModel:
    step: Any = int(config.step) if str(config.step).isdigit() else config.step

    return load_hubert_ctc(
        config.model, step=step, device=context.gangs.root.device, dtype=DTYPES[config.compute.dtype]
    )


def _create_transcriber(
    context: RecipeContext, config: HubertTranscribeConfig, model: HubertCtcModel, decoder_config: DecoderConfig
) -> Transcriber:
    rescoring = config.rescoring

    return Transcriber(
        model,
        create_decoder(vocabulary_of(model, config.symbols), decoder_config),
        config.compute,
        rescorer=load_rescorer(rescoring, context.gangs.root.device) if rescoring.lm else None,
        skip_bad_audio=config.on_bad_audio == "skip",
    )
