"""From waveforms to the input of the first Transformer layer.

The order is fairseq's (``hubert.py:443-476``, ``wav2vec2.py:1093-1115``): convolutions, gradient scaling, feature
penalty, layer norm, projection, dropout, time mask, zeroed padding, positional convolution, layer norm (post-norm
models only), dropout. Parameter names are those of fairseq2's wav2vec 2.0 front-end.

Letters: N utterances, n samples, T frames, C channels of the convolutions, M model dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from fairseq2.models.wav2vec2.feature_extractor import Wav2Vec2FeatureConv1d
from fairseq2.models.wav2vec2.position_encoder import Wav2Vec2PositionEncoder
from fairseq2.nn import BatchLayout, Linear, StandardLayerNorm
from fairseq2.nn.utils.grad import scale_grad
from torch import Tensor
from torch.nn import GroupNorm, Module, ModuleList, Parameter
from torch.nn.functional import gelu, layer_norm, pad

from hubert_plugin import frames
from hubert_plugin.models.hubert.config import ConvDesc
from hubert_plugin.models.hubert.conv import strided_conv
from hubert_plugin.models.hubert.dropout import FastDropout
from hubert_plugin.models.hubert.first_conv import folded_conv, normalized_conv


@final
class ConvLayer(Module):
    """A convolution without padding, an optional normalisation, GELU."""

    def __init__(self, input_dim: int, desc: ConvDesc, bias: bool, norm: str | None) -> None:
        super().__init__()

        output_dim, kernel_size, stride = desc

        self.conv = Wav2Vec2FeatureConv1d(input_dim, output_dim, kernel_size, stride=stride, bias=bias)

        self.group_norm: GroupNorm | None
        self.layer_norm: StandardLayerNorm | None

        self.register_module("group_norm", GroupNorm(output_dim, output_dim) if norm == "group" else None)
        self.register_module("layer_norm", StandardLayerNorm(output_dim, bias=True) if norm == "layer" else None)

    def forward(self, rows: Tensor) -> Tensor:
        """Map (R, C_in) to (R / stride, C_out): all utterances one after another, frames first (``conv.py``)."""
        rows = strided_conv(rows, self.conv.weight, self.conv.bias, self.conv.stride[0])

        if self.layer_norm is not None:
            norm = self.layer_norm

            assert norm.weight is not None and norm.bias is not None

            # Statistics in float32, as fairseq's Fp32LayerNorm; PyTorch's kernel keeps them so for half precision.
            weight, bias = norm.weight.to(rows.dtype), norm.bias.to(rows.dtype)

            rows = layer_norm(rows, norm.normalized_shape, weight, bias, norm.eps)

        return gelu(rows)

    if TYPE_CHECKING:
        __call__ = forward


@final
class ConvFeatureExtractor(Module):
    """The convolutions: one vector of 512 channels per 20 ms (FACTS 1.1), frames first throughout."""

    layers: ModuleList

    def __init__(
        self,
        layer_descs: Sequence[ConvDesc],
        *,
        bias: bool,
        norm: str,
        grad_scale: float,
        include_padding: bool,
    ) -> None:
        """
        :param norm: ``group`` normalises the first layer over time, ``layer`` every layer over channels.
        :param grad_scale: The factor on gradients of the output; 0 means that no gradient is computed at all.
        :param include_padding: If true, group normalisation counts padded samples.
        """
        super().__init__()

        self.layers = ModuleList()

        self.grad_scale = grad_scale
        self.include_padding = include_padding

        input_dim = 1

        for idx, desc in enumerate(layer_descs):
            layer_norm_kind = norm if norm == "layer" or idx == 0 else None

            self.layers.append(ConvLayer(input_dim, desc, bias, layer_norm_kind))

            input_dim = desc[0]

        self.output_dim = input_dim

        _, self._first_kernel, self._first_stride = layer_descs[0]

    @property
    def first(self) -> ConvLayer:
        """The layer that reads the waveform."""
        layer = self.layers[0]

        assert isinstance(layer, ConvLayer)

        return layer

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None = None,
        *,
        skip_padding: bool = False,
        folded: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """
        :param waveforms: *Shape:* (N, n).
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param skip_padding: If true, padded frames are not computed but zero.
        :param folded: What :func:`.first_conv.fold_norm` made of the first layer, where the waveforms are centred parts
            of a longer one.
        :returns: *Shape:* (N, T, C).
        """
        if self.grad_scale == 0.0:
            with torch.no_grad():
                return self._convolve(waveforms, num_samples, skip_padding, folded)

        seqs = self._convolve(waveforms, num_samples, skip_padding, folded)

        if self.training and self.grad_scale != 1.0:
            seqs = scale_grad(seqs, self.grad_scale)

        return seqs

    def _convolve(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None,
        skip_padding: bool,
        folded: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        batch_size, width = waveforms.shape

        # Two frames more than needed: every stride then divides the rows that are left, and nothing that a valid frame
        # or group normalisation sees is cut off.
        spare = 2

        max_size = frames.num_frames(width) + spare

        sizes = [max_size] * batch_size

        if skip_padding and num_samples is not None:
            sizes = [frames.num_frames(n) + spare for n in num_samples]

        rows = self._first_rows(waveforms, num_samples, sizes, max_size, folded)

        for layer in self.layers[1:]:
            rows = layer(rows)

        if min(sizes) == max_size:
            return rows.unflatten(0, (batch_size, max_size))[:, :-spare]

        parts = [part[:-spare] for part in rows.split(sizes)]

        return torch.stack([pad(part, (0, 0, 0, max_size - spare - part.size(0))) for part in parts])

    def _first_rows(
        self,
        waveforms: Tensor,
        num_samples: Sequence[int] | None,
        sizes: Sequence[int],
        max_size: int,
        folded: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return the first layer's output, all utterances one after another.

        :param sizes: How many frames of each utterance to compute.
        """
        first = self.first

        if first.group_norm is None:
            width = max_size * frames.STRIDE

            seqs = pad(waveforms, (0, width - waveforms.size(1)))

            return first(_join(seqs, [size * frames.STRIDE for size in sizes]).view(-1, 1))

        windows_per_frame = frames.STRIDE // self._first_stride

        num_windows = max_size * windows_per_frame

        if folded is not None:
            seqs = folded_conv(first.conv, waveforms, *folded, num_windows)
        else:
            # fairseq's `Fp32GroupNorm` takes padded samples into its statistics, so that an utterance gives other
            # results in a padded batch than alone (trap T4). Here they are of the utterance alone.
            alone = num_samples is not None and not self.include_padding

            num_valid = [self._num_first(n) for n in num_samples or ()] if alone else None

            seqs = normalized_conv(first.conv, first.group_norm, waveforms, num_valid, num_windows)

        return gelu(_join(seqs, [size * windows_per_frame for size in sizes]))

    def _num_first(self, num_samples: int) -> int:
        """Return the number of outputs of the first convolution."""
        return (num_samples - self._first_kernel) // self._first_stride + 1

    if TYPE_CHECKING:
        __call__ = forward


def _join(seqs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the first ``sizes`` steps of the sequences (N, S, ...), one after another."""
    if min(sizes) == seqs.size(1):
        return seqs.flatten(0, 1)

    return torch.cat([seq[:size] for seq, size in zip(seqs, sizes, strict=True)])


@final
class MaskEmbedding(Module):
    """The vector that replaces masked frames (fairseq ``mask_emb``, started from U[0, 1))."""

    temporal_mask_embed: Parameter

    def __init__(self, model_dim: int) -> None:
        super().__init__()

        self.temporal_mask_embed = Parameter(torch.empty(model_dim))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.uniform_(self.temporal_mask_embed)

    def forward(self, seqs: Tensor, mask: Tensor) -> Tensor:
        """Replace the frames of ``seqs`` (N, T, M) where ``mask`` (N, T) is true."""
        return torch.where(mask.unsqueeze(-1), self.temporal_mask_embed.to(seqs.dtype), seqs)


@final
class HubertFrontend(Module):
    """Everything before the first Transformer layer except the convolutions' masking decisions."""

    def __init__(
        self,
        model_dim: int,
        feature_extractor: ConvFeatureExtractor,
        pos_encoder: Wav2Vec2PositionEncoder,
        *,
        input_dropout_p: float,
        dropout_p: float,
        layer_norm: bool,
        always_project: bool = False,
    ) -> None:
        """
        :param input_dropout_p: Dropout on projected features, before masking.
        :param dropout_p: Dropout before the first layer.
        :param layer_norm: If true (post-norm models), normalises after the positional convolution.
        :param always_project: If true, projects even where the dimensions are equal.
        """
        super().__init__()

        feature_dim = feature_extractor.output_dim

        self.feature_extractor = feature_extractor

        self.post_extract_layer_norm = StandardLayerNorm(feature_dim, bias=True)

        self.model_dim_proj: Linear | None

        # fairseq has no projection where the dimensions are equal (trap T18).
        proj = Linear(feature_dim, model_dim, bias=True) if always_project or feature_dim != model_dim else None

        self.register_module("model_dim_proj", proj)

        self.input_dropout = FastDropout(input_dropout_p)

        self.pos_encoder = pos_encoder

        self.layer_norm: StandardLayerNorm | None

        self.register_module("layer_norm", StandardLayerNorm(model_dim, bias=True) if layer_norm else None)

        self.dropout = FastDropout(dropout_p)

    def extract(self, waveforms: Tensor, num_samples: Sequence[int] | None, *, skip_padding: bool = False) -> Tensor:
        """Return the convolutions' output. *Shape:* (N, T, C).

        :param waveforms: *Shape:* (N, n).
        :param num_samples: The length of each row; ``None``: no row is padded.
        :param skip_padding: If true, padded frames are zeros; else what fairseq's feature penalty sees there.
        """
        return self.feature_extractor(waveforms, num_samples, skip_padding=skip_padding)

    def project(self, features: Tensor) -> Tensor:
        """Normalise and project the convolutions' output (N, T, C) to *shape* (N, T, M), ready for masking."""
        seqs = self.post_extract_layer_norm(features)

        if self.model_dim_proj is not None:
            seqs = self.model_dim_proj(seqs)

        return self.input_dropout(seqs)

    def position(self, seqs: Tensor, layout: BatchLayout) -> Tensor:
        """Add positions to (masked) features (N, T, M): the input of the first layer."""
        seqs = self.pos_encoder(seqs, layout)

        if self.layer_norm is not None:
            seqs = self.layer_norm(seqs)

        return self.dropout(seqs)
