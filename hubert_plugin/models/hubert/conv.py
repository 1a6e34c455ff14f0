"""Strided convolutions over time as matrix products of views.

With frames first, (rows, channels), ``stride`` neighbouring rows are one longer row of the same memory. A convolution
with kernel *k* and stride *s* over such a sequence is then the sum of ceil(k / s) matrix products, whose left factors
are views shifted by whole long rows: nothing is unfolded or copied, and every normalisation over channels finds its
channels side by side. All utterances lie one after another in one sequence; the few rows that mix two neighbours are
never used.

For the kernels of HuBERT, (10, 5), (3, 2) and (2, 2), that is two products or one. Measurements are in
``benchmarks/README.md``.

Letters: R rows, s stride, C_in and C_out channels, k kernel size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def strided_conv(rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve ``rows`` without padding.

    :param rows: Contiguous; R must be a multiple of ``stride``. *Shape:* (R, C_in).
    :param weight: As :class:`torch.nn.Conv1d` keeps it. *Shape:* (C_out, C_in, k).
    :param bias: *Shape:* (C_out).
    :returns: Row t depends on the input rows s t … s t + k - 1; rows whose window passes the end lack the missing part.
        *Shape:* (R / s, C_out), in the autocast dtype where autocast is on.
    """
    device_type = rows.device.type

    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)

        rows, weight = rows.to(dtype), weight.to(dtype)

        bias = None if bias is None else bias.to(dtype)

    # (C_out, C_in, k) -> (k C_in, C_out), in the order in which taps and channels lie in memory.
    matrix = weight.permute(2, 1, 0).reshape(-1, weight.size(0))

    output: Tensor = _StridedMatmul.apply(rows, matrix, stride)

    return output if bias is None else output + bias


class _StridedMatmul(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, stride: int) -> Tensor:  # type: ignore[override]
        num_rows, channels = rows.shape

        long_rows = rows.view(num_rows // stride, stride * channels)

        ctx.save_for_backward(long_rows, matrix)

        ctx.rows_shape = rows.shape

        output = None

        for shift, part in enumerate(matrix.split(stride * channels)):
            taps = long_rows[shift:, : part.size(0)]

            if output is None:
                output = taps @ part
            else:
                output[:-shift].addmm_(taps, part)

        assert output is not None

        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        long_rows, matrix = ctx.saved_tensors

        width = long_rows.size(1)

        grad_output = grad_output.contiguous()

        grad_rows = None

        grad_parts = []

        for shift, part in enumerate(matrix.split(width)):
            size = part.size(0)

            grad = grad_output if shift == 0 else grad_output[:-shift]

            if ctx.needs_input_grad[0]:
                if grad_rows is None:
                    # The kernel is at least as wide as the stride, so the first part covers whole long rows.
                    grad_rows = grad @ part.t()
                else:
                    grad_rows[shift:, :size].addmm_(grad, part.t())

            grad_parts.append(long_rows[shift:, :size].t() @ grad)

        grad_matrix = torch.cat(grad_parts) if len(grad_parts) > 1 else grad_parts[0]

        if grad_rows is not None:
            grad_rows = grad_rows.view(ctx.rows_shape)

        return grad_rows, grad_matrix, None
