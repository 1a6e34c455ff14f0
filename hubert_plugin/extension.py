"""The composition root: everything this package registers with fairseq2 is registered here."""

from __future__ import annotations

from fairseq2.composition import register_package_assets
from fairseq2.logging import log
from fairseq2.metrics.formatters import format_as_float, format_as_int, format_as_percentage
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.models.hg import HuggingFaceConverter
from fairseq2.recipe.cli import register_cli_error
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from hubert_plugin import errors
from hubert_plugin.criteria.ctc import register_ctc
from hubert_plugin.criteria.masked_cross_entropy import register_masked_cross_entropy
from hubert_plugin.data.dataset import register_hubert_dataset_family
from hubert_plugin.models.export.child import register_process_runner
from hubert_plugin.models.export.huggingface import HubertHuggingFaceConverter
from hubert_plugin.models.hubert.compile import apply_ac_to_hubert, apply_fsdp_to_hubert, compile_hubert
from hubert_plugin.models.hubert.config import HUBERT_FAMILY, HubertConfig, register_hubert_configs
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.heads import register_hubert_heads
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HUBERT_CTC_FAMILY, HubertCtcConfig, register_hubert_ctc_configs
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.models.hubert_ctc.parallel import (
    apply_ac_to_hubert_ctc,
    apply_fsdp_to_hubert_ctc,
    compile_hubert_ctc,
)
from hubert_plugin.models.interop.family import register_hubert_family
from hubert_plugin.tasks.hubert_ctc import register_hubert_ctc
from hubert_plugin.tasks.hubert_pretrain import register_hubert_pretrain
from hubert_plugin.tasks.muon import register_muon
from hubert_plugin.tasks.tri_stage import register_tri_stage_steps
from hubert_plugin.text.family import register_tokenizers
from hubert_plugin.units.register import register_units


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    """Register this package with fairseq2; called through the entry-point group ``fairseq2.extension``."""
    _register_models(container)

    register_hubert_heads(container)

    register_hubert_dataset_family(container)

    register_units(container)

    register_masked_cross_entropy(container)

    register_hubert_pretrain(container)

    register_tokenizers(container)

    register_ctc(container)

    register_hubert_ctc(container)

    register_tri_stage_steps(container)

    register_muon(container)

    register_package_assets(container, "hubert_plugin.assets.cards")

    _register_metrics(container)

    _register_errors(container)


def _register_models(container: DependencyContainer) -> None:
    def create(resolver: DependencyResolver, config: HubertConfig) -> HubertModel:
        return create_hubert_model(config, resolver)

    def create_ctc(resolver: DependencyResolver, config: HubertCtcConfig) -> HubertCtcModel:
        return create_hubert_ctc_model(config, resolver)

    register_hubert_family(
        container,
        HUBERT_FAMILY,
        HubertModel,
        HubertConfig,
        create,
        compiler=compile_hubert,
        fsdp_applier=apply_fsdp_to_hubert,
        layerwise_ac_applier=apply_ac_to_hubert,
    )

    register_hubert_configs(container)

    register_hubert_family(
        container,
        HUBERT_CTC_FAMILY,
        HubertCtcModel,
        HubertCtcConfig,
        create_ctc,
        compiler=compile_hubert_ctc,
        fsdp_applier=apply_fsdp_to_hubert_ctc,
        layerwise_ac_applier=apply_ac_to_hubert_ctc,
    )

    register_hubert_ctc_configs(container)

    # Lets `regime.export_hugging_face` work inside training runs.
    for family in (HUBERT_FAMILY, HUBERT_CTC_FAMILY):
        container.register_type(HuggingFaceConverter, HubertHuggingFaceConverter, key=family)

    register_process_runner(container)


def _register_metrics(container: DependencyContainer) -> None:
    descriptors = [
        MetricDescriptor("masked_loss", "Masked Loss (bits)", 91, format_as_float),
        MetricDescriptor("unmasked_loss", "Unmasked Loss (bits)", 92, format_as_float),
        MetricDescriptor("feature_penalty", "Feature Penalty", 93, format_as_float),
        MetricDescriptor("masked_accuracy", "Masked Accuracy", 94, format_as_float, higher_better=True),
        MetricDescriptor("unmasked_accuracy", "Unmasked Accuracy", 95, format_as_float, higher_better=True),
        MetricDescriptor("unit_usage", "Unit Usage (perplexity)", 96, format_as_float),
        MetricDescriptor("cer", "Character Error Rate (CER)", 201, format_as_float),
        MetricDescriptor("num_symbols", "Symbols", 831, format_as_int),
        MetricDescriptor("num_skipped_updates", "Skipped Updates", 837, format_as_int),
        MetricDescriptor("masked_share", "Masked Share", 820, format_as_percentage),
        MetricDescriptor("num_masked_frames", "Masked Frames", 830, format_as_int),
        MetricDescriptor("padding_share", "Padding", 835, format_as_percentage),
        MetricDescriptor("audio_seconds", "Audio (s)", 811, format_as_int),
        MetricDescriptor("audio_seconds_per_second", "Audio Seconds per Second", 810, format_as_float),
        MetricDescriptor("share_of_peak", "Share of Peak", 812, format_as_percentage),
        MetricDescriptor("data_wait_seconds", "Data Wait (s)", 503, format_as_float),
        MetricDescriptor("num_skipped", "Skipped Utterances", 836, format_as_int),
        MetricDescriptor("total_audio_hours", "Total Audio (h)", 850, format_as_float),
    ]

    for descriptor in descriptors:
        container.collection.register_instance(MetricDescriptor, descriptor)


def _register_errors(container: DependencyContainer) -> None:
    """Answer each of our errors with its sentence and exit code 2. fairseq2 looks handlers up by the exact class."""

    def handle(ex: errors.HubertError) -> int:
        log.error("{}", ex)

        return 2

    for kls in vars(errors).values():
        if isinstance(kls, type) and issubclass(kls, errors.HubertError):
            register_cli_error(container, kls, handle)
