"""Long recordings in bounded memory.

Everything in HuBERT but three things is local in time: the group normalisation of the first convolution and the
normalisation of the waveform look at the whole recording once, self-attention in every layer. So a recording is
computed in chunks of frames, each with as much around it as the convolutions see, and

- the statistics of the group normalisation are taken from the whole recording first,
- each chunk of queries attends to the keys of the *whole* recording.

The result is that of one pass over everything, to rounding, whatever the model attends to, and memory grows linearly
with the length. Time does not: attention is quadratic, and from about ten minutes on it takes more of the time than
all the rest. ``attention`` bounds how far a frame looks; that is an approximation whose error depends on the model.

Letters: n samples, T frames, M model dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from fairseq2.models.transformer import (
    AttentionBiasCache,
    StandardMultiheadAttention,
    StandardTransformerEncoderLayer,
    TransformerNormOrder,
)
from fairseq2.nn import BatchLayout
from torch import Tensor

from hubert_plugin import frames
from hubert_plugin.models.hubert.first_conv import center, fold_norm

if TYPE_CHECKING:
    from hubert_plugin.models.hubert.model import HubertModel

_MAX_WEIGHTS: Final = 1 << 26
"""The most attention weights (queries x keys x heads) that are held at once, where they are held at all."""


def encode_long(
    model: HubertModel, waveform: Tensor, layers: Sequence[int | None], *, chunk: int, attention: int | None
) -> dict[int | None, Tensor]:
    """Return the features of one prepared waveform, computed in chunks.

    :param waveform: *Shape:* (n,).
    :param layers: Layers, 1-based; 0 is the input of the first layer, ``None`` the model's output.
    :param chunk: The number of frames that are computed at once.
    :param attention: How many frames before and after its chunk a frame attends to; ``None``: all. A frame looks at
        least that far to both sides, at most a chunk farther.
    :returns: *Shape of each:* (T, M), T by the frame clock.
    """
    seqs = encode_frontend_in_chunks(model, waveform, chunk).unsqueeze(0)

    encoder = model.encoder

    depth = len(encoder.layers) if None in layers else max(layer for layer in layers if layer is not None)

    outputs: dict[int | None, Tensor] = {}

    if 0 in layers:
        outputs[0] = seqs[0]

    for nr in range(1, depth + 1):
        seqs = _run_layer(encoder.layers[nr - 1], seqs, chunk, attention)

        if nr in layers:
            outputs[nr] = seqs[0]

    if None in layers:
        if encoder.layer_norm is not None:
            seqs = encoder.layer_norm(seqs)

        outputs[None] = seqs[0]

    return outputs


def encode_frontend_in_chunks(model: HubertModel, waveform: Tensor, chunk: int) -> Tensor:
    """Return the input of the first layer. *Shape:* (T, M)."""
    frontend = model.encoder_frontend

    extractor = frontend.feature_extractor

    num_frames = frames.num_frames(waveform.numel())

    folded = None

    if (norm := extractor.first.group_norm) is not None:
        # Statistics of the whole recording, not of a chunk.
        waveform = center(waveform.unsqueeze(0))[0]

        folded = fold_norm(extractor.first.conv, norm, waveform.unsqueeze(0), None)

    # Output t of the positional convolution depends on no frame farther than half its kernel.
    halo = model.config.pos_conv_kernel // 2

    parts = []

    for start, stop in _spans(num_frames, chunk):
        first, last = max(0, start - halo), min(num_frames, stop + halo)

        begin = frames.frame_start(first)

        piece = waveform[begin : begin + frames.num_samples_of(last - first)].unsqueeze(0)

        features = extractor(piece, folded=folded)

        seqs = frontend.project(features)

        seqs = frontend.position(seqs, BatchLayout.of(seqs))

        parts.append(seqs[0, start - first : stop - first])

    return torch.cat(parts)


def _spans(num_frames: int, chunk: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + chunk, num_frames)) for start in range(0, num_frames, chunk))


def _run_layer(layer: Any, seqs: Tensor, chunk: int, attention: int | None) -> Tensor:
    """Run a Transformer layer in chunks of queries. *Shape:* (1, T, M) to (1, T, M)."""
    is_standard = isinstance(layer, StandardTransformerEncoderLayer)

    if not is_standard or not isinstance(layer.self_attn, StandardMultiheadAttention):
        # A layer that a plugin brought: what it does inside is not known, so it gets everything at once.
        return layer(seqs, BatchLayout.of(seqs), AttentionBiasCache())  # type: ignore[no-any-return]

    mha: Any = layer.self_attn

    pre_norm = layer.norm_order != TransformerNormOrder.POST

    normed = layer.self_attn_layer_norm(seqs) if pre_norm else seqs

    num_frames = seqs.size(1)

    k = mha.k_proj(normed).unflatten(-1, (-1, mha.head_dim))  # (1, T, H, K)
    v = mha.v_proj(normed).unflatten(-1, (-1, mha.head_dim))

    if seqs.device.type == "cpu" and seqs.dtype != torch.float32:
        # There, attention is written out and its weights are in memory (``attention.py``).
        num_keys = num_frames if attention is None else min(num_frames, chunk + 2 * attention)

        chunk = min(chunk, max(64, _MAX_WEIGHTS // (num_keys * mha.num_heads)))

    output = torch.empty_like(seqs)

    for start, stop in _spans(num_frames, chunk):
        first, last = 0, num_frames

        if attention is not None:
            first, last = max(0, start - attention), min(num_frames, stop + attention)

        keys = normed[:, first:last]

        queries = normed[:, start:stop]

        x = mha(
            queries,
            BatchLayout.of(queries),
            keys=keys,
            keys_layout=BatchLayout.of(keys),
            values=keys,
            bias_cache=AttentionBiasCache(),
            pre_computed_kv=(k[:, first:last], v[:, first:last]),
        )

        x = layer.self_attn_residual(x, seqs[:, start:stop])

        if pre_norm:
            x = layer.ffn_residual(layer.ffn(layer.ffn_layer_norm(x)), x)
        else:
            x = layer.self_attn_layer_norm(x)

            x = layer.ffn_layer_norm(layer.ffn_residual(layer.ffn(x), x))

        output[:, start:stop] = x

    return output
