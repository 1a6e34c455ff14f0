"""The Transformer: an encoder loop with taps, early exit and layer drop.

fairseq2's layers are used as they are; only the loop is our own, because fairseq2's hooks cannot stop the encoder, and
raise while LayerDrop is on (FACTS 12.4). Layer L is the output of block L, 1-based, without the final norm; layer 0 is
the input of block 1 (DESIGN, decision 6).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from fairseq2.models.transformer import AttentionBiasCache, TransformerEncoderLayer
from fairseq2.nn import BatchLayout, LayerNorm
from torch import Tensor
from torch.autograd import Function
from torch.nn import Module, ModuleList

from hubert_plugin.models.hubert.attention import HubertSDPA
from hubert_plugin.models.hubert.packing import FramePacking


def touch_parameters(seqs: Tensor, params: Iterable[Tensor]) -> Tensor:
    """Return ``seqs``; in the backward pass, ``params``, which had no part in it, get zero gradients."""
    output: Tensor = _TouchParameters.apply(seqs, *params)

    return output


def swap_permutation(masked_indices: Tensor, num_frames: int) -> Tensor:
    """Return the permutation of frames that exchanges the two views of a batch at masked frames (MS-HuBERT's Swap).

    :param masked_indices: The flat indices of masked, valid frames of one view. *Shape:* (S).
    :param num_frames: The number of frames of one view, N * T; the second view follows the first.
    :returns: *Shape:* (2 * N * T).
    """
    permutation = torch.arange(2 * num_frames, device=masked_indices.device)

    other = masked_indices + num_frames

    permutation[masked_indices] = other
    permutation[other] = masked_indices

    return permutation


@final
class HubertEncoder(Module):
    """Runs the Transformer layers and returns the outputs that were asked for."""

    layers: ModuleList

    def __init__(
        self, layers: Sequence[TransformerEncoderLayer], layer_norm: LayerNorm | None, *, layer_drop_p: float
    ) -> None:
        """
        :param layer_norm: The normalisation after the last layer (pre-norm models only).
        :param layer_drop_p: The probability of skipping a layer during training.
        """
        super().__init__()

        self.layers = ModuleList(layers)

        self.layer_norm: LayerNorm | None

        self.register_module("layer_norm", layer_norm)

        self.layer_drop_p = layer_drop_p

        # Whether dropped layers are computed all the same, and their output thrown away. Every rank draws its own
        # layers to drop; where parameters are sharded (FSDP), all ranks must gather them in the same order.
        self.run_dropped = False

        # Whether padded batches are packed where attention allows it.
        self.pack = True

        # In a list, so that they are not registered twice.
        self._attention = [[m for m in layer.modules() if isinstance(m, HubertSDPA)] for layer in layers]

    def forward(
        self,
        seqs: Tensor,
        seqs_layout: BatchLayout,
        *,
        taps: Collection[int] = (),
        num_layers: int | None = None,
        exchange: Tensor | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """
        :param seqs: The input of the first layer. *Shape:* (N, T, M).
        :param taps: The layers whose outputs are kept; 0 is the input.
        :param num_layers: How many layers run (early exit); ``None``: all of them.
        :param exchange: The frames whose place each frame takes after every layer, as flat indices into N * T; an
            involution (:func:`swap_permutation`). A layer that is dropped does not exchange either; what a layer
            returns, and taps, is what stands after the exchange. *Shape:* (N * T).
        :returns: The output, and the kept outputs by layer, never normed. The final norm is applied to the output only
            if no number of layers was asked for: a layer, also the last, is what its block returns (trap T2). Padded
            frames hold anything; zeros where the batch was packed.
        """
        layer_norm = self.layer_norm if num_layers is None else None

        if num_layers is None:
            num_layers = len(self.layers)

        kept: dict[int, Tensor] = {}

        if 0 in taps:
            kept[0] = seqs

        packing = self._pack(seqs, seqs_layout)

        if packing is not None:
            seqs, seqs_layout = packing.pack(seqs), packing.layout

            exchange = None if exchange is None else packing.pack_permutation(exchange)

        def unpack(output: Tensor) -> Tensor:
            return output if packing is None else packing.unpack(output)

        bias_cache = AttentionBiasCache()

        drops = self._draw_drops(num_layers)

        for idx in range(num_layers):
            layer = self.layers[idx]

            if drops is not None and drops[idx]:
                # A dropped layer costs nothing, but its parameters must get (zero) gradients: data parallel reduction
                # waits for them, and fairseq's optimiser sees zeros too (trap T19).
                unused = [layer(seqs, seqs_layout, bias_cache)] if self.run_dropped else layer.parameters()

                seqs = touch_parameters(seqs, unused)
            else:
                seqs = layer(seqs, seqs_layout, bias_cache)

                if exchange is not None:
                    seqs = _Exchange.apply(seqs, exchange)

            if idx + 1 in taps:
                kept[idx + 1] = unpack(seqs)

        if layer_norm is not None:
            seqs = layer_norm(seqs)

        return unpack(seqs), kept

    def _pack(self, seqs: Tensor, layout: BatchLayout) -> FramePacking | None:
        if not self.pack or not layout.padded or layout.packed:
            return None

        # A layer of a plugin may look at its frames by rows: only what is known to take packed ones gets them.
        if not all(found and found[0].supports_packing(seqs.device) for found in self._attention):
            return None

        return FramePacking(layout)

    def _draw_drops(self, num_layers: int) -> list[bool] | None:
        if not self.training or self.layer_drop_p == 0.0:
            return None

        # Drawn on the CPU: no host synchronisation.
        draws: list[float] = torch.rand(num_layers, device="cpu").tolist()

        return [draw < self.layer_drop_p for draw in draws]

    if TYPE_CHECKING:
        __call__ = forward


class _Exchange(Function):
    """Moves frames to other places. A permutation that is its own inverse is its own gradient, too."""

    @staticmethod
    def forward(ctx: Any, seqs: Tensor, permutation: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(permutation)

        return _permute(seqs, permutation)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (permutation,) = ctx.saved_tensors

        return _permute(grad_output, permutation), None


class _TouchParameters(Function):
    """Identity on its first argument that hands zero gradients to all others."""

    @staticmethod
    def forward(ctx: Any, seqs: Tensor, *params: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(*params)

        return seqs.view_as(seqs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return grad_output, *(torch.zeros_like(p) for p in ctx.saved_tensors)


def _permute(seqs: Tensor, permutation: Tensor) -> Tensor:
    return seqs.reshape(-1, seqs.size(-1)).index_select(0, permutation).view_as(seqs)
