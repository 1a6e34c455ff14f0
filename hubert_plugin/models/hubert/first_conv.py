"""The first convolution with its normalisation over time, as one matrix product of the waveform's windows.

The convolution is linear in its windows of k samples. So mean and variance of a channel over S outputs follow from mean
m and covariance Σ of the windows, w·m + b and wᵀΣw, and normalising the output is convolving with other weights: the
S x C outputs are written once, normalised, frames first, and nothing but them is kept for the backward pass. GroupNorm
reads and writes them three times more, and a transposition once more. Measurements are in ``benchmarks/README.md``.

Statistics are in float64: the windows of speech are so alike that wᵀΣw of a high-pass filter loses six digits.

Letters: N utterances, n samples, S windows, k kernel size, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Conv1d, GroupNorm
from torch.nn.functional import pad

_BLOCK = 1 << 16
"""Windows of an utterance that are in float64 at a time; 80 bytes each."""


def normalized_conv(
    conv: Conv1d, norm: GroupNorm, waveforms: Tensor, num_valid: Sequence[int] | None, num_windows: int
) -> Tensor:
    """Return ``norm(conv(waveforms))``, frames first, where ``norm`` has a group for each channel.

    :param waveforms: *Shape:* (N, n).
    :param num_valid: The number of windows of each utterance that the statistics are of (trap T4: others lie in its
        padding); ``None``: all that fit into n samples.
    :param num_windows: The number of windows to return; zeros follow the waveforms where they end.
    :returns: *Shape:* (N, S, C), in the autocast dtype where autocast is on.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        centred = center(waveforms)

        matrix, shift = fold_norm(conv, norm, centred, num_valid)

    return folded_conv(conv, centred, matrix, shift, num_windows)


def center(waveforms: Tensor) -> Tensor:
    """Return the waveforms less their means, in float32. *Shape:* (N, n).

    The normalisation takes a constant out again; taking it out first keeps small what low precision rounds.
    """
    waveforms = waveforms.float()

    return waveforms - waveforms.mean(dim=1, keepdim=True)


def folded_conv(conv: Conv1d, waveforms: Tensor, matrix: Tensor, shift: Tensor, num_windows: int) -> Tensor:
    """Convolve with the weights of :func:`fold_norm`.

    :param waveforms: *Shape:* (N, n).
    :returns: *Shape:* (N, S, C), in the autocast dtype where autocast is on, else in that of the parameters.
    """
    device_type = waveforms.device.type

    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else conv.weight.dtype

    kernel_size, stride = conv.kernel_size[0], conv.stride[0]

    missing = (num_windows - 1) * stride + kernel_size - waveforms.size(1)

    windows = pad(waveforms.to(dtype), (0, max(0, missing))).unfold(1, kernel_size, stride)[:, :num_windows]

    with torch.autocast(device_type, enabled=False):
        return torch.baddbmm(shift.to(dtype), windows, matrix.to(dtype))


def fold_norm(
    conv: Conv1d, norm: GroupNorm, waveforms: Tensor, num_valid: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Return the matrix and the shift that do to the windows of each utterance what ``conv`` and ``norm`` do.

    :param waveforms: *Shape:* (N, n).
    :returns: In float32. *Shapes:* (N, k, C) and (N, 1, C).
    """
    mean, covariance = _window_moments(conv, waveforms, num_valid)

    kernel = conv.weight[:, 0].double()  # (C, k)

    channel_mean = mean @ kernel.t()  # (N, C)

    if conv.bias is not None:
        channel_mean = channel_mean + conv.bias.double()

    channel_var = ((kernel @ covariance) * kernel).sum(dim=2)  # (N, C)

    scale = norm.weight.double() * torch.rsqrt(channel_var + norm.eps)

    shift = norm.bias.double() - channel_mean * scale

    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale

    return (kernel.t() * scale.unsqueeze(1)).float(), shift.unsqueeze(1).float()


def _window_moments(conv: Conv1d, waveforms: Tensor, num_valid: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the windows of each utterance. *Shapes:* (N, k) and (N, k, k), in float64."""
    windows = waveforms.unfold(1, conv.kernel_size[0], conv.stride[0])  # (N, S, k), a view

    counts = torch.tensor([windows.size(1)] if num_valid is None else num_valid)

    counts = counts.to(waveforms.device, torch.float64, non_blocking=True).view(-1, 1, 1)

    blocks = windows.split(_BLOCK, dim=1)

    def block_of(idx: int) -> Tensor:
        block = blocks[idx].double()

        if num_valid is None:
            return block

        places = torch.arange(idx * _BLOCK, idx * _BLOCK + block.size(1), device=block.device)

        return block * (places.view(1, -1, 1) < counts)

    mean = torch.stack([block_of(i).sum(dim=1, keepdim=True) for i in range(len(blocks))]).sum(dim=0) / counts

    second = torch.stack([block_of(i).mT @ block_of(i) for i in range(len(blocks))]).sum(dim=0) / counts

    return mean.squeeze(1), second - mean.mT @ mean
