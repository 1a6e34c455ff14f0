"""HuBERT as a graph of plain operators, for ONNX: no Python lists of lengths, no views of memory, no hooks.

The graph takes waveforms as they are and normalises them itself where the model wants that. Rows can have different
lengths; what is returned for one does not depend on the others, and frames behind its end are zero.

Letters: N utterances, n samples, T frames, C channels, M model dimension, V symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import conv1d, gelu, layer_norm, linear

from hubert_plugin import frames
from hubert_plugin.models.export.parity import AnyModel, encoder_of
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel

_EPS: Final = 1e-5
"""What is added to variances everywhere in HuBERT."""


@final
class HubertGraph(Module):
    """Computes one output of a HuBERT, with its weights."""

    def __init__(self, model: AnyModel, layer: int | None) -> None:
        """
        :param model: In float32 and in evaluation mode.
        :param layer: The layer whose output is returned, 1-based, 0 for the input of the first; ``None``: the model's
            output, which of a recogniser are its logits.
        """
        super().__init__()

        encoder = encoder_of(model)

        self.config = encoder.config

        self.frontend = encoder.encoder_frontend

        total = len(encoder.encoder.layers)

        self.layers = encoder.encoder.layers[: total if layer is None else layer]

        self.final_norm = encoder.encoder.layer_norm if layer is None else None

        self.final_proj = model.final_proj if layer is None and isinstance(model, HubertCtcModel) else None

    def forward(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param waveforms: *Shape:* (N, n).
        :param num_samples: The length of each row, at least 400. *Shape:* (N).
        :returns: The output, and its number of frames. *Shape:* (N, T, M) or (N, T, V), and (N).
        """
        valid = _arange(waveforms, 1).unsqueeze(0) < num_samples.unsqueeze(1)  # (N, n)

        seqs = torch.where(valid, waveforms, torch.zeros_like(waveforms))

        if self.config.normalize_audio:
            seqs = _standardize(seqs, valid, num_samples.unsqueeze(1), dim=1)

        seqs = self._convolve(seqs, num_samples)  # (N, T, C)

        num_frames = _floor_div(num_samples - frames.RECEPTIVE_FIELD, frames.STRIDE) + 1

        mask = _arange(seqs, 1).unsqueeze(0) < num_frames.unsqueeze(1)  # (N, T)

        seqs = self._project(seqs) * mask.unsqueeze(2)

        seqs = self._position(seqs)

        # (N, 1, 1, T), 0 for frames and a large negative number behind the end
        bias = ((~mask).to(seqs.dtype) * -1e9).unsqueeze(1).unsqueeze(1)

        for layer in self.layers:
            seqs = _run_layer(layer, seqs, bias, self.config.norm_order == "pre")

        if self.final_norm is not None:
            seqs = _norm(self.final_norm, seqs)

        if self.final_proj is not None:
            seqs = linear(seqs, self.final_proj.weight, self.final_proj.bias)

        return seqs * mask.unsqueeze(2), num_frames

    def _convolve(self, seqs: Tensor, num_samples: Tensor) -> Tensor:
        seqs = seqs.unsqueeze(1)

        layer: Any

        for layer in self.frontend.feature_extractor.layers:
            seqs = conv1d(seqs, layer.conv.weight, layer.conv.bias, stride=layer.conv.stride)

            if layer.group_norm is not None:
                counts = _floor_div(num_samples - layer.conv.kernel_size[0], layer.conv.stride[0]) + 1

                valid = _arange(seqs, 2).unsqueeze(0) < counts.unsqueeze(1)

                seqs = _standardize(seqs, valid.unsqueeze(1), counts.unsqueeze(1).unsqueeze(1), dim=2, zero=False)

                seqs = seqs * layer.group_norm.weight.unsqueeze(1) + layer.group_norm.bias.unsqueeze(1)

            if layer.layer_norm is not None:
                seqs = _norm(layer.layer_norm, seqs.transpose(1, 2)).transpose(1, 2)

            seqs = gelu(seqs)

        return seqs.transpose(1, 2)

    def _project(self, seqs: Tensor) -> Tensor:
        seqs = _norm(self.frontend.post_extract_layer_norm, seqs)

        proj = self.frontend.model_dim_proj

        return seqs if proj is None else linear(seqs, proj.weight, proj.bias)

    def _position(self, seqs: Tensor) -> Tensor:
        conv: Any = self.frontend.pos_encoder.conv

        # Weight normalisation over all but the kernel's axis (trap T17), done once, when the graph is made.
        weight = conv.weight_g * conv.weight_v / conv.weight_v.norm(dim=(0, 1), keepdim=True)

        kernel = self.config.pos_conv_kernel

        x = conv1d(seqs.transpose(1, 2), weight, conv.bias, padding=kernel // 2, groups=self.config.pos_conv_groups)

        if kernel % 2 == 0:
            x = x[:, :, :-1]

        seqs = seqs + gelu(x).transpose(1, 2)

        return seqs if self.frontend.layer_norm is None else _norm(self.frontend.layer_norm, seqs)

    if TYPE_CHECKING:
        __call__ = forward


def _run_layer(layer: Any, seqs: Tensor, bias: Tensor, pre_norm: bool) -> Tensor:
    x = _norm(layer.self_attn_layer_norm, seqs) if pre_norm else seqs

    seqs = seqs + _attend(layer.self_attn, x, bias)

    if not pre_norm:
        seqs = _norm(layer.self_attn_layer_norm, seqs)

    x = _norm(layer.ffn_layer_norm, seqs) if pre_norm else seqs

    x = gelu(linear(x, layer.ffn.inner_proj.weight, layer.ffn.inner_proj.bias))

    seqs = seqs + linear(x, layer.ffn.output_proj.weight, layer.ffn.output_proj.bias)

    return seqs if pre_norm else _norm(layer.ffn_layer_norm, seqs)


def _attend(mha: Any, seqs: Tensor, bias: Tensor) -> Tensor:
    head_dim = mha.head_dim

    def project(proj: Any) -> Tensor:
        # (N, T, M) to (N, H, T, K)
        return linear(seqs, proj.weight, proj.bias).unflatten(2, (-1, head_dim)).transpose(1, 2)

    q, k, v = project(mha.q_proj), project(mha.k_proj), project(mha.v_proj)

    weights = torch.softmax((q * head_dim**-0.5) @ k.transpose(2, 3) + bias, dim=-1)

    x = (weights @ v).transpose(1, 2).flatten(2)

    return linear(x, mha.output_proj.weight, mha.output_proj.bias)


def _norm(norm: Any, seqs: Tensor) -> Tensor:
    return layer_norm(seqs, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _standardize(x: Tensor, valid: Tensor, counts: Tensor, dim: int, zero: bool = True) -> Tensor:
    """Give ``x`` zero mean and unit variance over its valid positions."""
    counts = counts.to(x.dtype)

    mean = (x * valid).sum(dim=dim, keepdim=True) / counts

    centred = x - mean

    var = (centred.square() * valid).sum(dim=dim, keepdim=True) / counts

    y = centred / torch.sqrt(var + _EPS)

    return y * valid if zero else y


def _arange(x: Tensor, dim: int) -> Tensor:
    return torch.arange(x.size(dim), device=x.device)


def _floor_div(x: Tensor, divisor: int) -> Tensor:
    return torch.div(x, divisor, rounding_mode="floor")
