"""The recogniser: a HuBERT encoder, dropout and one linear layer.

Letters: N utterances, n samples, T frames, M model dimension, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from fairseq2.nn import BatchLayout, Linear
from torch import Tensor
from torch.nn import Module, Parameter

from hubert_plugin import frames
from hubert_plugin.models.hubert.dropout import FastDropout
from hubert_plugin.models.hubert.encoder import touch_parameters
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig


@final
class HubertCtcModel(Module):
    """HuBERT fine-tuned for recognition (Hsu et al., 2021, section III-D; fairseq ``hubert_asr.py``)."""

    def __init__(self, config: HubertCtcConfig, hubert: HubertModel, final_proj: Linear) -> None:
        super().__init__()

        self.config = config

        self.hubert = hubert

        self.layer_weights: LayerWeights | None

        pooling = LayerWeights(len(hubert.encoder.layers) + 1) if config.layer_pooling == "weighted" else None

        self.register_module("layer_weights", pooling)

        self.final_dropout = FastDropout(config.final_dropout_p)
        self.final_proj = final_proj

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None = None,
        *,
        temporal_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        encoder_grad: bool = True,
        zero_grads: bool = False,
    ) -> tuple[Tensor, BatchLayout]:
        """Score the symbols of each frame.

        :param waveforms: *Shape:* (N, n), normalised as the encoder expects.
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param temporal_mask: True at frames whose features are replaced by the mask embedding. *Shape:* (N, T).
        :param channel_mask: True at channels that are set to zero in all frames, after the mask embedding (fairseq
            ``hubert.py:363-380``). *Shape:* (N, M).
        :param encoder_grad: If false, the encoder gets no gradient (fairseq ``freeze_finetune_updates``).
        :param zero_grads: If true, parameters without part in the result get zero gradients rather than none: what
            data-parallel wrappers wait for.
        :returns: Logits in the encoder's data type, and the numbers of frames. *Shape of the logits:* (N, T, V).
        """
        encoder_grad = encoder_grad and torch.is_grad_enabled()

        with torch.set_grad_enabled(encoder_grad):
            seqs, layers, layout = self._encode(waveforms, num_samples, temporal_mask, channel_mask)

        if self.layer_weights is not None:
            seqs = self.layer_weights(layers)

        if zero_grads and torch.is_grad_enabled():
            seqs = touch_parameters(seqs, self._idle_parameters(encoder_grad, temporal_mask))

        return self.final_proj(self.final_dropout(seqs)), layout

    def _encode(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None,
        temporal_mask: Tensor | None,
        channel_mask: Tensor | None,
    ) -> tuple[Tensor, list[Tensor], BatchLayout]:
        """Return the encoder's output, the outputs of all layers where they are pooled, and the numbers of frames."""
        hubert = self.hubert

        frontend = hubert.encoder_frontend

        seqs = frontend.project(frontend.extract(waveforms, num_samples, skip_padding=True))

        layout = BatchLayout.of(seqs, None if num_samples is None else [frames.num_frames(n) for n in num_samples])

        if temporal_mask is not None:
            seqs = hubert.masker(seqs, temporal_mask)

        if channel_mask is not None:
            seqs = seqs.masked_fill(channel_mask.unsqueeze(1), 0.0)

        seqs = frontend.position(seqs, layout)

        if self.layer_weights is None:
            seqs, _ = hubert.encoder(seqs, layout)

            return seqs, [], layout

        num_layers = len(hubert.encoder.layers)

        # Layers as everywhere here: without the final norm, which then has no part (DESIGN, decision 6).
        seqs, kept = hubert.encoder(seqs, layout, taps=range(num_layers + 1), num_layers=num_layers)

        return seqs, [kept[nr] for nr in range(num_layers + 1)], layout

    def _idle_parameters(self, encoder_grad: bool, temporal_mask: Tensor | None) -> list[Tensor]:
        """Return the parameters that are to be trained but have no part in the result."""
        hubert = self.hubert

        idle: list[Tensor] = []

        if not encoder_grad:
            idle += hubert.parameters()
        else:
            if temporal_mask is None:
                idle += hubert.masker.parameters()

            if self.layer_weights is not None and hubert.encoder.layer_norm is not None:
                idle += hubert.encoder.layer_norm.parameters()

        return [p for p in idle if p.requires_grad]

    if TYPE_CHECKING:
        __call__ = forward


@final
class LayerWeights(Module):
    """A weighted sum of layers; the weights are a softmax (SUPERB's featurizer)."""

    weight: Parameter

    def __init__(self, num_layers: int) -> None:
        """
        :param num_layers: Layer 0 included.
        """
        super().__init__()

        self.weight = Parameter(torch.empty(num_layers))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.weight)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Return the sum. *Shape of each layer, and of the sum:* (N, T, M)."""
        weights = self.weight.softmax(dim=0)

        # One after another: all layers at once would be a copy of them all.
        return sum((w * layer for w, layer in zip(weights, layers, strict=True)), torch.zeros_like(layers[0]))
