"""The recogniser: a HuBERT encoder, dropout and one linear layer.

Letters: N utterances, n samples, T frames, M model dimension, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from fairseq2.nn import BatchLayout, Linear
from torch import Tensor
from torch.nn import Dropout, Module

from hubert_plugin import frames
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig


@final
class HubertCtcModel(Module):
    """HuBERT fine-tuned for recognition (Hsu et al., 2021, section III-D; fairseq ``hubert_asr.py``)."""

    def __init__(self, config: HubertCtcConfig, hubert: HubertModel, final_proj: Linear) -> None:
        super().__init__()

        self.config = config

        self.hubert = hubert
        self.final_dropout = Dropout(config.final_dropout_p)
        self.final_proj = final_proj

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None = None,
        *,
        temporal_mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        encoder_grad: bool = True,
    ) -> tuple[Tensor, BatchLayout]:
        """Score the symbols of each frame.

        :param waveforms: *Shape:* (N, n), normalised as the encoder expects.
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param temporal_mask: True at frames whose features are replaced by the mask embedding. *Shape:* (N, T).
        :param channel_mask: True at channels that are set to zero in all frames, after the mask embedding (fairseq
            ``hubert.py:363-380``). *Shape:* (N, M).
        :param encoder_grad: If false, the encoder gets no gradient (fairseq ``freeze_finetune_updates``).
        :returns: Logits in the encoder's data type, and the numbers of frames. *Shape of the logits:* (N, T, V).
        """
        with torch.set_grad_enabled(encoder_grad and torch.is_grad_enabled()):
            seqs, layout = self._encode(waveforms, num_samples, temporal_mask, channel_mask)

        return self.final_proj(self.final_dropout(seqs)), layout

    def _encode(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None,
        temporal_mask: Tensor | None,
        channel_mask: Tensor | None,
    ) -> tuple[Tensor, BatchLayout]:
        hubert = self.hubert

        frontend = hubert.encoder_frontend

        seqs = frontend.project(frontend.extract(waveforms, num_samples))

        layout = BatchLayout.of(seqs, None if num_samples is None else [frames.num_frames(n) for n in num_samples])

        if temporal_mask is not None:
            seqs = hubert.masker(seqs, temporal_mask)

        if channel_mask is not None:
            seqs = seqs.masked_fill(channel_mask.unsqueeze(1), 0.0)

        seqs, _ = hubert.encoder(frontend.position(seqs, layout), layout)

        return seqs, layout

    if TYPE_CHECKING:
        __call__ = forward
