"""Long recordings in bounded memory.

Everything in HuBERT but three things is local in time: the group normalisation of the first convolution and the
normalisation of the waveform look at the whole recording once, self-attention in every layer. So a recording is
computed in chunks of frames, each with as much around it as the convolutions see, and

- the statistics of the group normalisation are taken from the whole recording first,
- each chunk of queries attends to the keys of the *whole* recording.

The result is that of one pass over everything, to rounding, whatever the model attends to, and memory grows linearly
with the length. Time does not: attention is quadratic, and from about ten minutes on it takes more of the time than
all the rest. ``attention`` bounds how far a frame looks; that is an approximation whose error depends on the model.

Letters: n samples, T frames, M model dimension, S outputs of the first convolution, k its kernel size.
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
from torch.nn.functional import gelu, pad

from hubert_plugin import frames
from hubert_plugin.models.hubert.frontend import ConvFeatureExtractor, ConvLayer, UtteranceGroupNorm

if TYPE_CHECKING:
    from hubert_plugin.models.hubert.model import HubertModel

_MAX_WEIGHTS: Final = 1 << 26
"""The most attention weights (queries x keys x heads) that are held at once, where they are held at all."""

_MOMENT_ROWS: Final = 1 << 18
"""How many windows of the waveform are taken at once for the statistics."""


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

    affine = _global_group_norm(extractor, waveform)

    # Output t of the positional convolution depends on no frame farther than half its kernel.
    halo = model.config.pos_conv_kernel // 2

    parts = []

    for start, stop in _spans(num_frames, chunk):
        first, last = max(0, start - halo), min(num_frames, stop + halo)

        begin = frames.frame_start(first)

        piece = waveform[begin : begin + frames.num_samples_of(last - first)].unsqueeze(0)

        features = extractor(piece) if affine is None else _convolve(extractor, piece, *affine)

        seqs = frontend.project(features)

        seqs = frontend.position(seqs, BatchLayout.of(seqs))

        parts.append(seqs[0, start - first : stop - first])

    return torch.cat(parts)


def _spans(num_frames: int, chunk: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + chunk, num_frames)) for start in range(0, num_frames, chunk))


def _global_group_norm(extractor: ConvFeatureExtractor, waveform: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return scale and shift of each channel, which do to the first convolution's output over the whole recording what
    its group normalisation does; ``None`` where there is none. *Shape of each:* (C, 1).

    The convolution is linear in its windows of k samples, so mean and variance over S outputs follow from mean m and
    covariance Σ of the windows: w·m + b and wᵀΣw. Nothing of the size of the outputs is made.
    """
    first = extractor.layers[0]

    assert isinstance(first, ConvLayer)

    norm = first.group_norm

    if norm is None:
        return None

    assert isinstance(norm, UtteranceGroupNorm)

    kernel = first.conv.weight[:, 0].double()  # (C, k)

    windows = waveform.unfold(0, kernel.size(1), first.conv.stride[0])  # (S, k), a view

    count = windows.size(0)

    mean = sum(w.double().sum(dim=0) for w in windows.split(_MOMENT_ROWS)) / count

    assert isinstance(mean, Tensor)

    moments = torch.zeros(kernel.size(1), kernel.size(1), dtype=torch.float64, device=waveform.device)

    for block in windows.split(_MOMENT_ROWS):
        centred = block.double() - mean

        moments += centred.t() @ centred

    channel_mean = kernel @ mean

    if first.conv.bias is not None:
        channel_mean = channel_mean + first.conv.bias.double()

    channel_var = ((kernel @ (moments / count)) * kernel).sum(dim=1)

    scale = norm.weight.double() * torch.rsqrt(channel_var + norm.eps)

    shift = norm.bias.double() - channel_mean * scale

    return scale.float().unsqueeze(1), shift.float().unsqueeze(1)


def _convolve(extractor: ConvFeatureExtractor, waveforms: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Do what :class:`ConvFeatureExtractor` does, with given statistics of the group normalisation.

    :param waveforms: *Shape:* (1, n).
    :returns: *Shape:* (1, T, C).
    """
    first = extractor.layers[0]

    assert isinstance(first, ConvLayer)

    seqs = first.conv(waveforms.unsqueeze(1))  # (1, C, S)

    seqs = gelu(torch.addcmul(shift, seqs.float(), scale).to(seqs.dtype)).transpose(1, 2)

    num_frames = frames.num_frames(waveforms.size(1))

    num_rows = (num_frames + 2) * frames.STRIDE // first.conv.stride[0]

    rows = pad(seqs, (0, 0, 0, num_rows - seqs.size(1)))[0]

    for layer in extractor.layers[1:]:
        rows = layer(rows)

    return rows[:num_frames].unsqueeze(0)


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
