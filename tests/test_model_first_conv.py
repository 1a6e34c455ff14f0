"""The first convolution with its normalisation folded in, against PyTorch's convolution and group normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Conv1d, GroupNorm
from torch.nn.functional import conv1d, group_norm

import hubert_plugin.models.hubert.first_conv as first_conv
from hubert_plugin.models.hubert.first_conv import normalized_conv


def create_layers(
    channels: int = 8, kernel: int = 10, stride: int = 5, *, bias: bool = False
) -> tuple[Conv1d, GroupNorm]:
    conv, norm = Conv1d(1, channels, kernel, stride=stride, bias=bias), GroupNorm(channels, channels)

    for param in norm.parameters():
        torch.nn.init.normal_(param)

    return conv, norm


def reference(conv: Conv1d, norm: GroupNorm, waveforms: Tensor, num_valid: Sequence[int] | None) -> Tensor:
    """Convolve and normalise each utterance by itself in float64. *Shape:* (N, S, C), zeros behind its end."""
    bias = None if conv.bias is None else conv.bias.double()

    seqs = conv1d(waveforms.double().unsqueeze(1), conv.weight.double(), bias, stride=conv.stride)

    rows = []

    for idx, row in enumerate(seqs):
        row = row[None, :, : row.size(1) if num_valid is None else num_valid[idx]]

        row = group_norm(row, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)

        rows.append(torch.nn.functional.pad(row[0].mT, (0, 0, 0, seqs.size(2) - row.size(2))))

    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.integers(2, 12),
    stride=st.integers(1, 6),
    lengths=st.lists(st.integers(40, 900), min_size=1, max_size=3),
    bias=st.booleans(),
    offset=st.sampled_from([0.0, 0.5, -3.0]),
    padded=st.booleans(),
)
def test_equals_convolution_and_group_norm(
    kernel: int, stride: int, lengths: list[int], bias: bool, offset: float, padded: bool
) -> None:
    torch.manual_seed(0)

    conv, norm = create_layers(kernel=kernel, stride=stride, bias=bias)

    waveforms = torch.zeros(len(lengths), max(lengths))

    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = torch.randn(length) + offset

    num_valid = [(n - kernel) // stride + 1 for n in lengths] if padded else None

    expected = reference(conv, norm, waveforms, num_valid)

    outputs = normalized_conv(conv, norm, waveforms, num_valid, expected.size(1) + 2)

    assert outputs.shape == (len(lengths), expected.size(1) + 2, 8)

    weights = torch.randn(expected.shape)

    for idx in range(len(lengths)):
        end = expected.size(1) if num_valid is None else num_valid[idx]

        assert torch.allclose(outputs[idx, :end].double(), expected[idx, :end], atol=2e-5, rtol=2e-5)

        weights[idx, end:] = 0.0

    params = [*conv.parameters(), *norm.parameters()]

    (outputs[:, : expected.size(1)] * weights).sum().backward()

    ours = [p.grad.clone() for p in params if p.grad is not None]

    for param in params:
        param.grad = None

    (expected * weights).sum().backward()

    assert len(ours) == len(params), "a parameter without a gradient would fail in distributed training"

    for param, grad in zip(params, ours, strict=True):
        assert param.grad is not None

        assert torch.allclose(grad, param.grad, atol=2e-4 * float(param.grad.abs().max() + 1.0))


def test_blocks_do_not_change_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)

    conv, norm = create_layers()

    waveforms, num_valid = torch.randn(2, 1000), [199, 60]

    whole = normalized_conv(conv, norm, waveforms, num_valid, 199)

    monkeypatch.setattr(first_conv, "_BLOCK", 32)

    assert torch.allclose(normalized_conv(conv, norm, waveforms, num_valid, 199), whole, atol=1e-6)


def test_high_pass_filter_of_a_low_tone_keeps_its_digits() -> None:
    # The filter takes away all but a millionth of the tone's power: in float32, its variance would be rounding noise.
    conv, norm = create_layers(channels=1)

    with torch.no_grad():
        conv.weight.zero_()[0, 0, :3] = torch.tensor([1.0, -2.0, 1.0])

        norm.weight.fill_(1.0)

        norm.bias.zero_()

    # As long as this, its values are not rounded.
    waveforms = (torch.sin(torch.arange(16000) * 0.03) * 2**14).round().unsqueeze(0)

    expected = reference(conv, norm, waveforms, None)

    assert torch.allclose(normalized_conv(conv, norm, waveforms, None, expected.size(1)).double(), expected, atol=2e-3)


def test_offset_costs_no_precision_in_bfloat16() -> None:
    torch.manual_seed(0)

    conv, norm = create_layers(channels=16)

    waveforms = 0.01 * torch.randn(1, 8000)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, shifted = (normalized_conv(conv, norm, waveforms + c, None, 1599) for c in (0.0, 1.0))

    assert plain.dtype is torch.bfloat16

    assert torch.allclose(plain.float(), shifted.float(), atol=0.05)

    assert torch.allclose(plain.double(), reference(conv, norm, waveforms, None), atol=0.1)
