"""The HuBERT model: masked prediction in training, layer features in use.

Letters: N utterances, n samples, T frames, M model dimension, S frames to predict, C units.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from fairseq2.nn import BatchLayout
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import layer_norm

from hubert_plugin import frames
from hubert_plugin.errors import AudioError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.encoder import HubertEncoder
from hubert_plugin.models.hubert.frontend import HubertFrontend, MaskEmbedding
from hubert_plugin.models.hubert.heads import TargetHeads


@dataclass
class HubertOutput:
    """What a training pass returns."""

    masked_logits: list[Tensor]
    """For each head, the float32 logits of the masked frames. *Shape of each:* (S_m, C)."""

    unmasked_logits: list[Tensor]
    """For each head, the float32 logits of the unmasked frames that were asked for. *Shape of each:* (S_u, C)."""

    feature_penalty: Tensor
    """The mean of the squared convolution outputs, padding included (fairseq ``features_pen``). *Shape:* ()."""


@dataclass
class HubertFeatures:
    """What an encoding pass returns."""

    output: Tensor
    """The output of the last layer that ran; with the final norm if it is the model's last. *Shape:* (N, T, M)."""

    layout: BatchLayout
    """The numbers of frames."""

    layers: dict[int, Tensor] = field(default_factory=dict)
    """The outputs of the layers that were asked for. *Shape of each:* (N, T, M)."""

    conv_features: Tensor | None = None
    """The output of the convolutions. *Shape:* (N, T, C)."""


@final
class HubertModel(Module):
    """HuBERT (Hsu et al., 2021, arXiv:2106.07447)."""

    def __init__(
        self,
        config: HubertConfig,
        frontend: HubertFrontend,
        masker: MaskEmbedding,
        encoder: HubertEncoder,
        heads: TargetHeads,
    ) -> None:
        super().__init__()

        self.config = config

        self.encoder_frontend = frontend
        self.masker = masker
        self.encoder = encoder
        self.target_heads = heads

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None,
        *,
        temporal_mask: Tensor,
        masked_indices: Tensor,
        unmasked_indices: Tensor,
        unmasked_grad: bool = False,
    ) -> HubertOutput:
        """Predict units.

        :param waveforms: *Shape:* (N, n).
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param temporal_mask: True at masked frames, padding excluded. *Shape:* (N, T).
        :param masked_indices: The flat indices (into N * T) of masked, valid frames. *Shape:* (S_m).
        :param unmasked_indices: The flat indices of unmasked, valid frames. *Shape:* (S_u). May be empty.
        :param unmasked_grad: If false, logits of unmasked frames are for accuracies only and carry no gradient.
        """
        features = self.encoder_frontend.extract(waveforms, num_samples)

        penalty = features.float().square().mean()

        seqs, layout = self._project(features, num_samples)

        seqs = self.masker(seqs, temporal_mask)

        seqs = self.encoder_frontend.position(seqs, layout)

        output, layers = self.encoder(seqs, layout, taps=self.target_heads.taps)

        # fairseq projects the encoder's output: for pre-norm models that is after the final norm (wav2vec2.py:1079).
        layers[len(self.encoder.layers)] = output

        masked = self.target_heads(layers, masked_indices)

        if unmasked_indices.numel() == 0:
            unmasked = []
        else:
            with torch.set_grad_enabled(unmasked_grad and torch.is_grad_enabled()):
                unmasked = self.target_heads(layers, unmasked_indices)

        return HubertOutput(masked, unmasked, penalty)

    def encode(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None = None,
        *,
        num_layers: int | None = None,
        taps: Collection[int] = (),
        temporal_mask: Tensor | None = None,
    ) -> HubertFeatures:
        """Encode waveforms.

        :param waveforms: *Shape:* (N, n), normalised as the model expects.
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param num_layers: How many layers run; ``None``: all, followed by the final norm of pre-norm models.
        :param taps: The layers whose outputs are returned too; 0 is the input of the first layer.
        :param temporal_mask: True at frames to mask. *Shape:* (N, T).
        """
        features = self.encoder_frontend.extract(waveforms, num_samples)

        seqs, layout = self._project(features, num_samples)

        if temporal_mask is not None:
            seqs = self.masker(seqs, temporal_mask)

        seqs = self.encoder_frontend.position(seqs, layout)

        seqs, layers = self.encoder(seqs, layout, taps=taps, num_layers=num_layers)

        return HubertFeatures(seqs, layout, layers, features)

    def _project(self, features: Tensor, num_samples: Sequence[int] | None) -> tuple[Tensor, BatchLayout]:
        num_frames = None if num_samples is None else [frames.num_frames(n) for n in num_samples]

        seqs = self.encoder_frontend.project(features)

        return seqs, BatchLayout.of(seqs, num_frames)

    @torch.inference_mode()
    def extract_features(
        self,
        waveforms: Sequence[Tensor | NDArray[np.float32]],
        layer: int | None = None,
        *,
        max_batch_seconds: float = 60.0,
    ) -> list[Tensor]:
        """Return the features of each waveform, computed in batches of similar length without dropout.

        :param waveforms: Mono waveforms at 16 kHz. *Shape of each:* (n,). Where the model was trained on normalised
            audio, each is normalised here.
        :param layer: The layer, 1-based, whose output is returned, without final norm; later layers do not run. 0 is
            the input of the first layer. ``None``: the model's output, after the final norm of pre-norm models.
        :param max_batch_seconds: The seconds of audio, padding included, that are computed at once.
        :returns: *Shape of each:* (T, M), on the model's device, in waveform order.
        :raises AudioError: A waveform has fewer than 400 samples or more than one dimension.
        :raises ValueError: ``layer`` is out of range.
        """
        total = len(self.encoder.layers)

        if layer is not None and not 0 <= layer <= total:
            raise ValueError(f"`layer` must be between 0 and {total}, but is {layer} instead.")

        inputs = [self._prepare_waveform(w, idx) for idx, w in enumerate(waveforms)]

        order = sorted(range(len(inputs)), key=lambda i: -inputs[i].numel())

        results: list[Tensor | None] = [None] * len(inputs)

        was_training = self.training

        self.eval()

        try:
            for batch in _batches_by_length(order, [w.numel() for w in inputs], max_batch_seconds):
                for idx, features in zip(batch, self._extract_batch([inputs[i] for i in batch], layer), strict=True):
                    results[idx] = features
        finally:
            self.train(was_training)

        return [r for r in results if r is not None]

    def _extract_batch(self, waveforms: list[Tensor], layer: int | None) -> list[Tensor]:
        lengths = [w.numel() for w in waveforms]

        width = max(lengths)

        seqs = waveforms[0].new_zeros((len(waveforms), width))

        for row, waveform in zip(seqs, waveforms, strict=True):
            row[: waveform.numel()] = waveform

        num_samples = None if min(lengths) == width else lengths

        features = self.encode(seqs, num_samples, num_layers=layer)

        return [features.output[i, : frames.num_frames(n)] for i, n in enumerate(lengths)]

    def _prepare_waveform(self, waveform: Tensor | NDArray[np.float32], idx: int) -> Tensor:
        param = self.masker.temporal_mask_embed

        seq = torch.as_tensor(waveform).to(param.device)

        if seq.ndim != 1:
            raise AudioError(f"Waveform {idx} must be one-dimensional (mono), but has the shape {tuple(seq.shape)}.")

        if seq.numel() < frames.RECEPTIVE_FIELD:
            raise AudioError(
                f"Waveform {idx} must have at least {frames.RECEPTIVE_FIELD} samples (25 ms), but has {seq.numel()}."
            )

        seq = seq.float()

        if self.config.normalize_audio:
            seq = layer_norm(seq, seq.shape)  # per utterance, before padding (trap T5)

        return seq.to(param.dtype)

    if TYPE_CHECKING:
        __call__ = forward


def _batches_by_length(order: list[int], lengths: list[int], max_batch_seconds: float) -> list[list[int]]:
    """Cut ``order`` (longest first) into batches of at most ``max_batch_seconds`` with at most 10 % padding a row."""
    batches: list[list[int]] = []

    for idx in order:
        if batches:
            batch = batches[-1]

            width = lengths[batch[0]]

            fits = width * (len(batch) + 1) <= max_batch_seconds * frames.SAMPLE_RATE

            if fits and lengths[idx] >= 0.9 * width:
                batch.append(idx)

                continue

        batches.append([idx])

    return batches
