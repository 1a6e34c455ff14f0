"""Dropout that is fast on CPUs, too.

PyTorch's draws a random number for each element. Here, four decisions are taken from each 64-bit draw of the same
generator, and elements are zeroed as whole numbers, which vectorises: in bfloat16, forward and backward together take
0.4 of the time. Measurements are in ``benchmarks/README.md``.
"""

from __future__ import annotations

from typing import Any, Final, final

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Dropout, Module
from torch.nn.functional import dropout
from typing_extensions import override

WHOLE_NUMBERS: Final = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""The whole numbers of the size of each floating-point number."""

_LEVELS: Final = 1 << 16
"""Probabilities are rounded to a multiple of 1 / 65,536."""


@final
class FastDropout(Module):
    """Zeroes elements with probability ``p`` in training, and scales the others to keep the mean."""

    def __init__(self, p: float) -> None:
        super().__init__()

        self.p = p

    @override
    def forward(self, x: Tensor) -> Tensor:
        return fast_dropout(x, self.p) if self.training and self.p > 0.0 else x

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:G}"


def replace_dropout(module: Module) -> None:
    """Put a :class:`FastDropout` in the place of each of PyTorch's in ``module``."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Dropout:
                setattr(parent, name, FastDropout(child.p))


def fast_dropout(x: Tensor, p: float) -> Tensor:
    """Return ``x`` with elements zeroed with probability ``p`` (on CPUs, to 1 / 65,536) and the others scaled."""
    # A compiler fuses PyTorch's own better.
    if x.device.type != "cpu" or x.dtype not in WHOLE_NUMBERS or torch.compiler.is_compiling():
        return dropout(x, p)

    output: Tensor = _FastDropout.apply(x, p)

    return output


def drop_scale(p: float) -> float:
    """Return by what the elements that are left are scaled; ``p`` is rounded as :func:`draw_dropped` rounds it."""
    num_dropped = _num_dropped(p)

    # If nothing is left, nothing is there to be scaled.
    return _LEVELS / (_LEVELS - num_dropped) if num_dropped < _LEVELS else 0.0


def draw_dropped(num_elements: int, p: float) -> Tensor:
    """Return 1 with probability ``p``, else 0. *Shape:* (num_elements,), int16, on the CPU."""
    draws = torch.empty(-(-num_elements // 4), dtype=torch.int64).random_(-(2**63), None)

    below = _num_dropped(p) - _LEVELS // 2

    drawn = draws.view(torch.int16)[:num_elements]

    # All 65,536 values are below the one that int16 has no room for.
    return drawn.fill_(1) if below == _LEVELS // 2 else drawn.lt_(below)


def _num_dropped(p: float) -> int:
    return round(p * _LEVELS)


class _FastDropout(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:  # type: ignore[override]
        keep = draw_dropped(x.numel(), p).bitwise_xor_(1).view(x.shape)

        ctx.scale = drop_scale(p)

        # A byte for each element is kept.
        ctx.save_for_backward(keep.to(torch.int8))

        return _zero(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (keep,) = ctx.saved_tensors

        return _zero(grad_output, keep, ctx.scale), None


def _zero(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """Return ``x`` scaled where ``keep`` is 1, and zero where it is 0: 0 is the same in all kinds of numbers."""
    whole = WHOLE_NUMBERS[x.dtype]

    return (x.view(whole) * keep.to(whole)).view(x.dtype).mul_(scale)
