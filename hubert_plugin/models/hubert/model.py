"""The HuBERT model: masked prediction in training, layer features in use.

Letters: N utterances, n samples, T frames, M model dimension, S frames to predict, C units.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final, overload

import numpy as np
import torch
from fairseq2.nn import BatchLayout
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.encoder import HubertEncoder, swap_permutation, touch_parameters
from hubert_plugin.models.hubert.frontend import HubertFrontend, MaskEmbedding
from hubert_plugin.models.hubert.heads import TargetHeads
from hubert_plugin.models.hubert.inference import check_layer, extract_layers


@dataclass
class HubertOutput:
    """What a training pass returns."""

    masked_logits: list[Tensor]
    """For each head, the float32 logits of the masked frames. *Shape of each:* (S_m, C)."""

    unmasked_logits: list[Tensor]
    """For each head, the float32 logits of the unmasked frames that were asked for. *Shape of each:* (S_u, C)."""

    feature_penalty: Tensor
    """The mean of the squared convolution outputs, padding included (fairseq ``features_pen``). *Shape:* ()."""

    heads: list[int] = field(default_factory=list)
    """The indices of the heads whose logits these are."""

    num_views: int = 1
    """How often every frame was predicted, V. The logits of a head are those of all frames in the first view, then of
    all in the second: with V = 2 their *shape* is (2 S, C)."""


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
    """The output of the convolutions; zeros at padded frames. *Shape:* (N, T, C)."""


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
        heads: Sequence[int] | None = None,
    ) -> HubertOutput:
        """Predict units.

        In training with ``swap``, there are two views of each utterance; the convolutions run once for both.

        :param waveforms: *Shape:* (N, n).
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param temporal_mask: True at masked frames, padding excluded. *Shape:* (N, T).
        :param masked_indices: The flat indices (into N * T) of masked, valid frames. *Shape:* (S_m).
        :param unmasked_indices: The flat indices of unmasked, valid frames. *Shape:* (S_u). May be empty.
        :param unmasked_grad: If false, logits of unmasked frames are for accuracies only and carry no gradient.
        :param heads: The indices of the heads that predict; ``None``: all. The parameters of the others, and of layers
            that no head needs, get zero gradients.
        """
        # With padding, which fairseq's penalty sees as well (`hubert.py:447`).
        features = self.encoder_frontend.extract(waveforms, num_samples)

        penalty = features.float().square().mean()

        seqs, layout = self._project(features, num_samples)

        masked_seqs = self.masker(seqs, temporal_mask)

        exchange, num_views = None, 1

        if self.config.swap and self.training:
            num_frames = temporal_mask.numel()

            exchange = swap_permutation(masked_indices, num_frames)

            seqs = torch.cat([masked_seqs, seqs])

            layout = BatchLayout.of(seqs, [*layout.seq_lens, *layout.seq_lens] if layout.padded else None)

            masked_indices = self._choose_views(masked_indices, num_frames)
            unmasked_indices = self._choose_views(unmasked_indices, num_frames)

            num_views = 2 if self.config.swap_loss == "both" else 1
        else:
            seqs = masked_seqs

        seqs = self.encoder_frontend.position(seqs, layout)

        layers = self._run_layers(seqs, layout, exchange, heads)

        masked = self.target_heads(layers, masked_indices, heads)

        if unmasked_indices.numel() == 0:
            unmasked = []
        else:
            with torch.set_grad_enabled(unmasked_grad and torch.is_grad_enabled()):
                unmasked = self.target_heads(layers, unmasked_indices, heads)

        asked = list(range(len(self.target_heads))) if heads is None else list(heads)

        return HubertOutput(masked, unmasked, penalty, asked, num_views)

    def _choose_views(self, indices: Tensor, num_frames: int) -> Tensor:
        """Return the places of frames in the views whose frames are predicted; ``num_frames`` is that of one view."""
        kind = self.config.swap_loss

        if kind == "masked":
            return indices

        other = indices + num_frames

        return other if kind == "unmasked" else torch.cat([indices, other])

    def _run_layers(
        self, seqs: Tensor, layout: BatchLayout, exchange: Tensor | None, heads: Sequence[int] | None
    ) -> dict[int, Tensor]:
        """Run the layers that the heads need, and return what they read."""
        total = len(self.encoder.layers)

        taps = self.target_heads.taps(heads)

        top = max(taps, default=total)

        num_layers = None if top == total else top

        output, layers = self.encoder(seqs, layout, taps=taps, num_layers=num_layers, exchange=exchange)

        # Zero more in the gradient of the shared projection changes nothing where a head uses it.
        unused = self.target_heads.parameters_without(range(len(self.target_heads)) if heads is None else heads)

        for module in (*self.encoder.layers[top:], self.encoder.layer_norm if top < total else None):
            unused += [] if module is None else module.parameters()

        # fairseq projects the encoder's output: for pre-norm models that is after the final norm (wav2vec2.py:1079).
        layers[top] = output

        if unused and torch.is_grad_enabled():
            # Data-parallel reduction waits for every parameter.
            layers[top] = touch_parameters(output, unused)

        return layers

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
        features = self.encoder_frontend.extract(waveforms, num_samples, skip_padding=True)

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

    @overload
    def extract_features(
        self,
        waveforms: Sequence[Tensor | NDArray[np.float32]],
        layer: int | None = ...,
        *,
        sample_rate: int | None = ...,
        max_batch_seconds: float = ...,
        max_chunk_seconds: float = ...,
        attention_seconds: float | None = ...,
    ) -> list[Tensor]: ...

    @overload
    def extract_features(
        self,
        waveforms: Sequence[Tensor | NDArray[np.float32]],
        layer: Sequence[int | None],
        *,
        sample_rate: int | None = ...,
        max_batch_seconds: float = ...,
        max_chunk_seconds: float = ...,
        attention_seconds: float | None = ...,
    ) -> list[dict[int | None, Tensor]]: ...

    def extract_features(
        self,
        waveforms: Sequence[Tensor | NDArray[np.float32]],
        layer: int | Sequence[int | None] | None = None,
        *,
        sample_rate: int | None = None,
        max_batch_seconds: float = 60.0,
        max_chunk_seconds: float = 60.0,
        attention_seconds: float | None = None,
    ) -> list[Tensor] | list[dict[int | None, Tensor]]:
        """Return the features of each waveform, computed in batches of similar length without dropout.

        What is returned for a waveform does not depend on the others. On which device and in which precision it is
        computed is the model's: ``load_hubert(..., device="cuda", dtype=torch.bfloat16)``.

        :param waveforms: Mono waveforms at 16 kHz. *Shape of each:* (n,). Where the model was trained on normalised
            audio, each is normalised here.
        :param layer: The layer, 1-based, whose output is returned, without final norm; later layers do not run. 0 is
            the input of the first layer. ``None``: the model's output, after the final norm of pre-norm models. With
            several layers, computed in one pass, a dictionary by layer is returned for each waveform, in which the
            model's output stands under ``None``.
        :param sample_rate: The rate of the waveforms in Hz, if it is to be checked.
        :param max_batch_seconds: The seconds of audio, padding included, that are computed at once.
        :param max_chunk_seconds: Longer recordings are computed in chunks of this length that overlap by what the
            convolutions see; the result is that of one pass (see :mod:`hubert_plugin.models.hubert.long_audio`).
        :param attention_seconds: In recordings computed in chunks, how far before and after its chunk a frame attends;
            ``None``: to all of the recording, as in one pass. A bound makes the time linear in the length, and the
            features an approximation.
        :returns: *Shape of each:* (T, M), on the model's device, in waveform order.
        :raises AudioError: A waveform has fewer than 400 samples, more than one dimension, whole numbers or another
            rate; or it is no list of waveforms.
        :raises ValueError: ``layer`` is out of range.
        """
        if isinstance(layer, Sequence):
            # Text and bytes are sequences of what nobody means by layers.
            several = not isinstance(layer, (str, bytes, bytearray))
        else:
            several = layer is not None and np.ndim(layer) > 0  # an array

        asked: Sequence[int | None] = layer if several else [layer]  # type: ignore[assignment, list-item]

        # Python's own numbers, by which results are found.
        layers = [None if nr is None else check_layer(nr, len(self.encoder.layers)) for nr in asked]

        if not layers:
            nothing: list[dict[int | None, Tensor]] = [{} for _ in waveforms]

            return nothing

        results = extract_layers(
            self,
            waveforms,
            layers,
            sample_rate=sample_rate,
            max_batch_seconds=max_batch_seconds,
            max_chunk_seconds=max_chunk_seconds,
            attention_seconds=attention_seconds,
        )

        if several:
            return [{nr: r[nr] for nr in layers} for r in results]

        return [r[layers[0]] for r in results]

    if TYPE_CHECKING:
        __call__ = forward
