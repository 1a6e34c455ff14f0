"""Scaled dot-product attention that is fast on CPUs, too.

PyTorch's fused kernel has no dropout on a CPU and falls back to a path that computes half precision in float32; in
bfloat16 without dropout it is slower than plain matrix products at HuBERT's lengths. There, attention is written out;
everywhere else fairseq2's own module computes. Measurements are in ``benchmarks/README.md``.

Letters: N utterances, T frames, H heads, K dimension of a head.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, final

import torch
from fairseq2.models.transformer import SDPA, AttentionBiasCache, IdentityBias, create_default_sdpa
from fairseq2.models.transformer.sdpa.flash2 import Flash2SDPA
from fairseq2.models.transformer.sdpa.flash3 import Flash3SDPA
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override


@final
class HubertSDPA(SDPA):
    """Attends to all frames of an utterance."""

    def __init__(self, *, dropout_p: float) -> None:
        super().__init__()

        self.dropout_p = dropout_p

        self.inner = create_default_sdpa(IdentityBias(), dropout_p=dropout_p)

    def supports_packing(self, device: torch.device) -> bool:
        """Say whether packed batches can be attended to on ``device``: on CPUs here, elsewhere by fairseq2's flash
        attention where that was made the default (``common.torch.default_sdpa``)."""
        return device.type == "cpu" or isinstance(self.inner, (Flash2SDPA, Flash3SDPA))

    @override
    def forward(
        self,
        q: Tensor,
        q_layout: BatchLayout,
        k: Tensor,
        k_layout: BatchLayout,
        v: Tensor,
        bias_cache: AttentionBiasCache,
        *,
        needs_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        dropout_p = self.dropout_p if self.training else 0.0

        on_cpu = q.device.type == "cpu"

        if on_cpu and q_layout.packed and not needs_weights:
            return self._attend_packed(q, k, v, q_layout, dropout_p), None

        explicit = on_cpu and (q.dtype != torch.float32 or dropout_p > 0.0)

        if not explicit or needs_weights or q_layout.padded or q_layout.packed:
            return self.inner(q, q_layout, k, k_layout, v, bias_cache, needs_weights=needs_weights)  # type: ignore[no-any-return]

        return _attend(q, k, v, dropout_p), None

    @staticmethod
    def _attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: BatchLayout, dropout_p: float) -> Tensor:
        """Attend within each utterance of a packed batch. *Shape of each:* (R, H, K), R frames in all."""
        # Neighbours of one length are a batch.
        runs = [(length, len(list(run))) for length, run in groupby(layout.seq_lens)]

        sizes = [length * count for length, count in runs]

        outputs = []

        for (_, count), *parts in zip(runs, *(x.split(sizes) for x in (q, k, v)), strict=True):
            q_run, k_run, v_run = (x.unflatten(0, (count, -1)) for x in parts)

            if q.dtype != torch.float32 or dropout_p > 0.0:
                attns = _attend(q_run, k_run, v_run, dropout_p)
            else:
                attns = _attend_fused(q_run, k_run, v_run)

            outputs.append(attns.flatten(0, 1))

        return torch.cat(outputs)

    @override
    def extra_repr(self) -> str:
        return f"dropout_p={self.dropout_p:G}"


def _attend_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √K) v from PyTorch's kernel. *Shape of each:* (N, T, H, K)."""
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """Return softmax(q kᵀ / √K) v. *Shape of each:* (N, T, H, K)."""
    batch_size, length, num_heads, head_dim = q.shape

    def fold(x: Tensor) -> Tensor:
        # Of a long recording, the queries can be a part of the frames only.
        return x.transpose(1, 2).reshape(batch_size * num_heads, x.size(1), head_dim)

    # The scale goes into the smallest factor.
    weights = torch.bmm(fold(q * head_dim**-0.5), fold(k).transpose(1, 2))

    weights = torch.softmax(weights, dim=-1)

    if dropout_p > 0.0:
        weights = fast_dropout(weights, dropout_p)

    output = torch.bmm(weights, fold(v))

    return output.view(batch_size, num_heads, length, head_dim).transpose(1, 2)


def fast_dropout(x: Tensor, p: float) -> Tensor:
    """Return ``x`` with elements zeroed with probability ``p`` (to 1 / 65,536) and the others scaled to keep the mean.

    Four decisions are taken from each 64-bit draw of PyTorch's generator, which costs a CPU far less than a draw each.
    """
    output: Tensor = _FastDropout.apply(x, p)

    return output


class _FastDropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:  # type: ignore[override]
        num_draws = -(-x.numel() // 4)

        draws = torch.empty(num_draws, dtype=torch.int64).random_(-(2**63), None)

        threshold = round(p * 65536)

        keep = draws.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 32768

        ctx.scale = 65536 / (65536 - threshold)

        ctx.save_for_backward(keep)

        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (keep,) = ctx.saved_tensors

        return (grad_output * keep).mul_(ctx.scale), None
