"""The criterion of fine-tuning: connectionist temporal classification (Graves et al., 2006).

As fairseq's ``criterions/ctc.py`` with ``sentence_avg``: the losses of all sentences are summed, and the trainer
divides the gradients by the number of sentences, over ranks and accumulated batches. So neither how sentences are put
into batches nor how far they are padded changes anything: frames beyond an utterance's end take no part (trap T22).

In validation, the best path is decoded and compared with the transcript (fairseq does the same): words for the word
error rate, characters, spaces between words included, for the character error rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import ctc_loss, log_softmax
from typing_extensions import override

from hubert_plugin.criteria.quiet_mean import QuietMean
from hubert_plugin.decoding.distance import EditCounts, edit_counts
from hubert_plugin.decoding.greedy import greedy
from hubert_plugin.registry import Criterion, register_criterion
from hubert_plugin.text.vocabulary import CtcVocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubert_plugin.data.ctc_batch import CtcBatch
    from hubert_plugin.models.hubert_ctc.model import HubertCtcModel

CTC: Final = "ctc"

_COUNTS: Final = ("edits", "substitutions", "insertions", "deletions", "length")


@dataclass(kw_only=True)
class CtcConfig:
    """Holds the configuration of :class:`CtcCriterion`."""

    zero_infinity: bool = True
    """If true, a transcript that its frames cannot emit has no loss rather than an infinite one. Such transcripts are
    named before training starts (``dataset.on_long_text``)."""


@final
class CtcCriterion(Criterion):
    """Computes the loss of :class:`HubertCtcModel` on batches of :class:`CtcBatch`."""

    def __init__(self, module: Module, base_model: HubertCtcModel, config: CtcConfig) -> None:
        """
        :param module: What is called: the model, or its data-parallel wrapper.
        :param base_model: The model itself.
        :raises TextError: The model does not say its symbols.
        """
        self._module = module
        self._base_model = base_model
        self._zero_infinity = config.zero_infinity
        self._vocabulary = CtcVocabulary.of_config(base_model.config)

        self._step_nr = 0

        self.frozen_updates: int | None = 0
        """Up to this update the encoder gets no gradient; ``None``: never. Set by who freezes it."""

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add("loss", QuietMean())
        metric_bag.add("nll_loss", QuietMean())

        for name in ("num_examples", "num_symbols", "audio_seconds", "padded_seconds", "num_skipped"):
            metric_bag.add(name, Sum())

        for unit in ("word", "char"):
            for name in _COUNTS:
                metric_bag.add(f"{unit}_{name}", Sum())

        metric_bag.add("total_num_examples", Sum())
        metric_bag.add("total_audio_hours", Sum())

    def set_step_nr(self, step_nr: int) -> None:
        """Say which update the next batches belong to."""
        self._step_nr = step_nr

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether the encoder is frozen in the current update."""
        return self.frozen_updates is None or self._step_nr <= self.frozen_updates

    @override
    def __call__(self, batch: CtcBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        logits = self.forward(batch)

        loss = self.compute_loss(logits, batch)

        self._update_metrics(metric_bag, batch, loss)

        if not self._base_model.training:
            self._compare(metric_bag, batch, logits)

        return loss, batch.num_examples

    def forward(self, batch: CtcBatch) -> Tensor:
        """Return the logits of a batch. *Shape:* (N, T, V)."""
        logits, _ = self._module(
            batch.waveforms,
            batch.num_samples if batch.padded else None,
            temporal_mask=batch.temporal_mask,
            channel_mask=batch.channel_mask,
            encoder_grad=not self.is_encoder_frozen,
            # Data-parallel reduction waits for every parameter.
            zero_grads=self._module is not self._base_model,
        )

        return logits  # type: ignore[no-any-return]

    def compute_loss(self, logits: Tensor, batch: CtcBatch) -> Tensor:
        """Return the summed negative log-likelihood of the transcripts, in nats.

        :param logits: *Shape:* (N, T, V).
        :returns: *Shape:* (), float32.
        """
        log_probs = log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)  # (T, N, V)

        # Lengths stay on the CPU, where they come from: no host synchronisation. cuDNN's kernel knows neither long
        # transcripts nor `zero_infinity` (fairseq turns it off, too).
        with torch.backends.cudnn.flags(enabled=False):
            return ctc_loss(
                log_probs,
                batch.targets,
                torch.tensor(batch.num_frames),
                torch.tensor(batch.target_lengths),
                blank=self._vocabulary.blank,
                reduction="sum",
                zero_infinity=self._zero_infinity,
            )

    @torch.inference_mode()
    def _update_metrics(self, metric_bag: MetricBag, batch: CtcBatch, loss: Tensor) -> None:
        # fairseq's names and units: bits per sentence, and bits per symbol.
        bits = loss.detach() / math.log(2)

        for name, count in (("loss", batch.num_examples), ("nll_loss", batch.num_symbols)):
            if count > 0:
                metric_bag.get(name, Mean).update(bits / count, weight=count)

        metric_bag.get("num_examples", Sum).update(batch.num_examples)
        metric_bag.get("num_symbols", Sum).update(batch.num_symbols)
        metric_bag.get("audio_seconds", Sum).update(batch.audio_seconds)
        metric_bag.get("padded_seconds", Sum).update(batch.padded_seconds)
        metric_bag.get("num_skipped", Sum).update(batch.num_skipped)
        metric_bag.get("total_num_examples", Sum).update(batch.num_examples)
        metric_bag.get("total_audio_hours", Sum).update(batch.audio_seconds / 3600)

    @torch.inference_mode()
    def _compare(self, metric_bag: MetricBag, batch: CtcBatch, logits: Tensor) -> None:
        words, chars = EditCounts(), EditCounts()

        for text, hypothesis in zip(batch.texts, self.transcribe(logits, batch.num_frames), strict=True):
            words += edit_counts(text.split(), hypothesis.split())
            chars += edit_counts(text, hypothesis)

        for unit, counts in (("word", words), ("char", chars)):
            values = (
                counts.edits,
                counts.substitutions,
                counts.insertions,
                counts.deletions,
                counts.reference_length,
            )

            for name, value in zip(_COUNTS, values, strict=True):
                metric_bag.get(f"{unit}_{name}", Sum).update(value)

    def transcribe(self, logits: Tensor, num_frames: Sequence[int]) -> list[str]:
        """Return the words of each utterance's best path.

        :param logits: *Shape:* (N, T, V).
        """
        return [self._vocabulary.text(ids) for ids in greedy(logits, num_frames, self._vocabulary.blank)]

    @override
    def process_metric_values(self, values: dict[str, object]) -> None:
        def pop(name: str) -> float:
            value = values.pop(name, 0.0)

            return float(value.item() if isinstance(value, Tensor) else str(value))

        padded, audio = pop("padded_seconds"), pop("audio_seconds")

        values["padding_share"] = padded / (padded + audio) if padded + audio > 0 else 0.0
        values["audio_seconds"] = audio

        for unit, prefix in (("word", "w"), ("char", "c")):
            counts = {name: pop(f"{unit}_{name}") for name in _COUNTS}

            # Per cent, as fairseq; nothing is decoded in training.
            if counts["length"] > 0:
                values[f"{prefix}er"] = 100.0 * counts["edits"] / counts["length"]


def register_ctc(container: DependencyContainer) -> None:
    """Register the criterion under ``ctc``."""

    def create(resolver: DependencyResolver, config: CtcConfig) -> object:
        def build(module: Module, model: HubertCtcModel) -> Criterion:
            return CtcCriterion(module, model, config)

        return build

    register_criterion(container, CTC, CtcConfig, create)
