"""Scaled dot-product attention that is fast on CPUs, too.

PyTorch's fused kernel has no dropout on a CPU and falls back to a path that computes half precision in float32; in
bfloat16 without dropout it is slower than plain matrix products at HuBERT's lengths. There, attention is written out;
everywhere else fairseq2's own module computes. Measurements are in ``benchmarks/README.md``.

Letters: N utterances, T frames, H heads, K dimension of a head.
"""

from __future__ import annotations

from typing import Any, final

import torch
from fairseq2.models.transformer import SDPA, AttentionBiasCache, IdentityBias, create_default_sdpa
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override


@final
class HubertSDPA(SDPA):
    """Attends to all frames of an utterance."""

    def __init__(self, *, dropout_p: float) -> None:
        super().__init__()

        self.dropout_p = dropout_p

        self.inner = create_default_sdpa(IdentityBias(), dropout_p=dropout_p)

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

        explicit = q.device.type == "cpu" and (q.dtype != torch.float32 or dropout_p > 0.0)

        if not explicit or needs_weights or q_layout.padded or q_layout.packed:
            return self.inner(q, q_layout, k, k_layout, v, bias_cache, needs_weights=needs_weights)  # type: ignore[no-any-return]

        return _attend(q, k, v, dropout_p), None

    @override
    def extra_repr(self) -> str:
        return f"dropout_p={self.dropout_p:G}"


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
