"""The recogniser's scores of many waveforms: batched by length, recordings of any length in bounded memory.

Letters: n samples, T frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin import frames
from hubert_plugin.models.hubert.inference import MAX_PADDING, batches_by_length, prepare_waveform
from hubert_plugin.models.hubert.long_audio import encode_long

if TYPE_CHECKING:
    from hubert_plugin.models.hubert_ctc.model import HubertCtcModel


@torch.inference_mode()
def emit(
    model: HubertCtcModel,
    waveforms: Sequence[NDArray[np.float32] | Tensor],
    *,
    max_batch_seconds: float = 60.0,
    max_chunk_seconds: float = 60.0,
    attention_seconds: float | None = None,
) -> list[Tensor]:
    """Return the scores of each waveform, without dropout; what one gets does not depend on the others.

    :param waveforms: At 16 kHz, not normalised: the model says whether it wants that. *Shape of each:* (n,).
    :param max_batch_seconds: How much audio is computed at once, padding included.
    :param max_chunk_seconds: Longer waveforms are computed in chunks of this length, which gives the same to rounding.
    :param attention_seconds: How far before and after its chunk a frame of such a waveform attends; ``None``: to all.
    :returns: In float32, on the CPU. *Shape of each:* (T, V).
    :raises AudioError: A waveform has fewer than 400 samples.
    """
    hubert = model.hubert

    inputs = [prepare_waveform(hubert, w, idx) for idx, w in enumerate(waveforms)]

    lengths = [w.numel() for w in inputs]

    results: list[Tensor] = [torch.empty(0)] * len(inputs)

    # Where padding is in the statistics, nothing may be padded.
    max_padding = 0.0 if hubert.config.group_norm_includes_padding else MAX_PADDING

    was_training = model.training

    model.eval()

    try:
        for batch in batches_by_length(lengths, max_batch_seconds, max_chunk_seconds, max_padding):
            if lengths[batch[0]] > max_chunk_seconds * frames.SAMPLE_RATE:
                outputs = [_emit_long(model, inputs[batch[0]], max_chunk_seconds, attention_seconds)]
            else:
                outputs = _emit_batch(model, [inputs[i] for i in batch])

            for idx, output in zip(batch, outputs, strict=True):
                results[idx] = output.float().cpu()
    finally:
        model.train(was_training)

    return results


def _emit_batch(model: HubertCtcModel, waveforms: Sequence[Tensor]) -> list[Tensor]:
    lengths = [w.numel() for w in waveforms]

    seqs = waveforms[0].new_zeros((len(waveforms), max(lengths)))

    for row, waveform in zip(seqs, waveforms, strict=True):
        row[: waveform.numel()] = waveform

    logits, _ = model(seqs, None if min(lengths) == max(lengths) else lengths)

    return [logits[i, : frames.num_frames(n)] for i, n in enumerate(lengths)]


def _emit_long(
    model: HubertCtcModel, waveform: Tensor, max_chunk_seconds: float, attention_seconds: float | None
) -> Tensor:
    pooling = model.layer_weights

    layers: list[int | None] = [None] if pooling is None else [*range(len(model.hubert.encoder.layers) + 1)]

    outputs = encode_long(
        model.hubert,
        waveform,
        layers,
        chunk=frames.num_frames(round(max_chunk_seconds * frames.SAMPLE_RATE)),
        attention=None if attention_seconds is None else round(attention_seconds * frames.FRAME_RATE),
    )

    seqs = outputs[None] if pooling is None else pooling([outputs[layer] for layer in layers])

    return model.final_proj(model.final_dropout(seqs))
