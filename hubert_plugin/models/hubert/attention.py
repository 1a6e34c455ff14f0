"""Scaled dot-product attention that is fast on CPUs, too.

PyTorch's fused kernel has no dropout on a CPU and falls back to a path that computes half precision in float32; in
bfloat16 without dropout it is slower than plain matrix products at HuBERT's lengths. There, attention is written out,
forward and backward, a few heads at a time, so that their weights stay in the processor's cache from one operation to
the next; everywhere else fairseq2's own module computes. Measurements are in ``benchmarks/README.md``.

Letters: N utterances, T frames, H heads, K dimension of a head.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Final, final

import torch
from fairseq2.models.transformer import SDPA, AttentionBiasCache, IdentityBias, create_default_sdpa
from fairseq2.models.transformer.sdpa.flash2 import Flash2SDPA
from fairseq2.models.transformer.sdpa.flash3 import Flash3SDPA
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout, scaled_dot_product_attention
from typing_extensions import override

from hubert_plugin.models.hubert.dropout import WHOLE_NUMBERS, draw_dropped, drop_scale

_BLOCK_WEIGHTS: Final = 1 << 20
"""So many weights of attention are computed at a time: 2 MiB in half precision."""


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
    parts = fold(q * head_dim**-0.5), fold(k), fold(v)

    attend = _attend_plainly if torch.compiler.is_compiling() else _AttendInBlocks.apply

    output: Tensor = attend(*parts, dropout_p)

    return output.view(batch_size, num_heads, length, head_dim).transpose(1, 2)


def _attend_plainly(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """Return softmax(q kᵀ) v for a compiler, which finds its own order. *Shape of each:* (N * H, T, K)."""
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)

    return torch.bmm(dropout(weights, dropout_p), v)


class _AttendInBlocks(Function):
    """Computes softmax(q kᵀ) v. *Shape of each:* (N * H, T, K).

    Weights are positive, so their sign is free: those that dropout takes are kept as negative ones for the way back.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:  # type: ignore[override]
        size = q.size(1) * k.size(1)

        step = max(1, _BLOCK_WEIGHTS // size)

        blocks = [slice(i, min(i + step, len(q))) for i in range(0, len(q), step)]

        # Without gradients, no weights are kept.
        keeps = any(ctx.needs_input_grad)

        weights = q.new_empty((len(q) if keeps else blocks[0].stop, q.size(1), k.size(1)))

        ctx.scale = drop_scale(dropout_p)

        output = torch.empty_like(q)

        for block in blocks:
            count = block.stop - block.start

            probs = weights[block] if keeps else weights[:count]

            torch.bmm(q[block], k[block].transpose(1, 2), out=probs)

            torch.softmax(probs, dim=-1, out=probs)

            if dropout_p > 0.0:
                whole = WHOLE_NUMBERS[probs.dtype]

                signs = draw_dropped(count * size, dropout_p).to(whole).mul_(torch.iinfo(whole).min)

                probs.view(whole).bitwise_or_(signs.view(probs.shape))

            torch.bmm(probs.relu() if dropout_p > 0.0 else probs, v[block], out=output[block])

        ctx.save_for_backward(q, k, v, weights)

        ctx.blocks, ctx.drops = blocks, dropout_p > 0.0

        return output.mul_(ctx.scale) if ctx.drops else output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors

        grad_output = grad_output * ctx.scale if ctx.drops else grad_output.contiguous()

        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))

        for block in ctx.blocks:
            probs, grad = weights[block], grad_output[block]

            torch.bmm((probs.relu() if ctx.drops else probs).transpose(1, 2), grad, out=grad_v[block])

            grad_probs = torch.bmm(grad, v[block].transpose(1, 2))

            if ctx.drops:
                grad_probs = torch.ops.aten.threshold_backward(grad_probs, probs, 0)

                probs = probs.abs()

            grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)

            torch.bmm(grad_scores, k[block], out=grad_q[block])
            torch.bmm(grad_scores.transpose(1, 2), q[block], out=grad_k[block])

        return grad_q, grad_k, grad_v, None
