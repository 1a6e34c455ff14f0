"""Dropout and attention of our own on CPUs, against PyTorch's."""

from __future__ import annotations

import math

import pytest
import torch
from builders import tiny_config
from fairseq2.nn import BatchLayout
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Dropout
from torch.nn.functional import scaled_dot_product_attention

from hubert_plugin.models.hubert import attention
from hubert_plugin.models.hubert.attention import HubertSDPA
from hubert_plugin.models.hubert.dropout import FastDropout, drop_scale, fast_dropout
from hubert_plugin.models.hubert.factory import create_hubert_model

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DTYPES), st.floats(0.0, 1.0), st.integers(1, 7), st.integers(1, 700), st.integers(0, 1000))
def test_what_is_left_is_scaled_and_so_is_its_gradient(dtype: torch.dtype, p: float, n: int, m: int, seed: int) -> None:
    torch.manual_seed(seed)

    x = torch.randn(m, n, dtype=dtype).t().add_(5.0).requires_grad_()  # not contiguous, and nothing is zero

    y = fast_dropout(x, p)

    left = y != 0.0

    # A scale in float32 is rounded to half precision when it is multiplied by.
    torch.testing.assert_close(y[left], (x * drop_scale(p))[left], rtol=8e-3 if dtype.itemsize == 2 else 1e-6, atol=0.0)

    num_left, expected = int(left.sum()), (1.0 - p) * left.numel()

    assert abs(num_left - expected) <= 6.0 * math.sqrt(p * (1.0 - p) * left.numel()) + 1.0

    grad = torch.randn_like(x)

    y.backward(grad)

    torch.testing.assert_close(x.grad, (grad * drop_scale(p)) * left, rtol=8e-3, atol=1e-12)


def test_the_mean_is_kept() -> None:
    torch.manual_seed(0)

    x = torch.randn(50, dtype=torch.float64)

    mean = torch.stack([fast_dropout(x, 0.3) for _ in range(20_000)]).mean(dim=0)

    torch.testing.assert_close(mean, x, rtol=0.03, atol=0.0)


def test_zeros_that_were_not_dropped_get_their_gradients() -> None:
    torch.manual_seed(0)

    x = torch.zeros(4_000, requires_grad=True)

    fast_dropout(x, 0.25).sum().backward()

    assert x.grad is not None

    assert (x.grad != 0.0).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_draws_come_from_the_generator_that_checkpoints_keep() -> None:
    x = torch.ones(1_000)

    def draw() -> Tensor:
        torch.manual_seed(3)

        return fast_dropout(x, 0.5)

    assert torch.equal(draw(), draw())

    assert not torch.equal(draw(), fast_dropout(x, 0.5))


def test_neighbours_are_dropped_independently() -> None:
    """Four decisions come from one draw."""
    torch.manual_seed(0)

    dropped = (fast_dropout(torch.ones(400_000), 0.5) == 0.0).double().view(-1, 4)

    correlation = torch.corrcoef(dropped.t())

    torch.testing.assert_close(correlation, torch.eye(4, dtype=torch.float64), atol=0.015, rtol=0.0)


def test_models_have_no_other_dropout_and_none_outside_of_training() -> None:
    config = tiny_config(dropout_p=0.1, attn_dropout_p=0.1, ffn_inner_dropout_p=0.1, input_dropout_p=0.1)

    model = create_hubert_model(config)

    modules = list(model.modules())

    assert not any(isinstance(m, Dropout) for m in modules)

    # In the front-end, and in each layer after attention, in the feed-forward network and after it.
    assert [m.p for m in modules if isinstance(m, FastDropout)] == [0.1] * (2 + 3 * config.num_layers)

    x = torch.randn(9)

    assert FastDropout(0.5).eval()(x) is x
    assert FastDropout(0.0)(x) is x


def attend(
    q: Tensor, k: Tensor, v: Tensor, p: float, blocks: int, monkeypatch: pytest.MonkeyPatch, *, training: bool = True
) -> Tensor:
    """Attend within utterances as a CPU does for half precision or with dropout. *Shape of each:* (N, T, H, K)."""
    monkeypatch.setattr(attention, "_BLOCK_WEIGHTS", q.size(0) * q.size(2) * q.size(1) * k.size(1) // blocks)

    layout = BatchLayout(q.shape[:2], None)

    output, _ = HubertSDPA(dropout_p=p).train(training)(q, layout, k, layout, v, None)

    return output  # type: ignore[no-any-return]


def make_inputs(dtype: torch.dtype, value_dim: int = 8) -> list[Tensor]:
    torch.manual_seed(0)

    return [torch.randn(2, 11, 3, dim, dtype=dtype).requires_grad_() for dim in (8, 8, value_dim)]


@pytest.mark.parametrize("blocks", [1, 3, 6])
def test_attention_in_blocks_is_that_of_pytorch(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = make_inputs(torch.float64)

    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    # Dropout of one in a million rounds to none, but takes the path.
    found = attend(q, k, v, 1e-6, blocks, monkeypatch)

    torch.testing.assert_close(found, expected)

    grad = torch.randn_like(expected)

    for a, b in zip(
        torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_with_dropout_are_those_of_what_was_dropped(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are an identity matrix show the weights after dropout; from them, PyTorch finds the gradients."""
    q, k, _ = make_inputs(dtype)

    length, p = q.size(1), 0.4

    v = torch.eye(length, dtype=dtype)[None, :, None].repeat(2, 1, 3, 1).requires_grad_()

    q, k = (torch.nn.functional.pad(x.detach(), (0, length - x.size(3))).requires_grad_() for x in (q, k))

    found = attend(q, k, v, p, 3, monkeypatch)

    left = (found.detach() != 0.0).transpose(1, 2)

    assert left.double().mean().item() == pytest.approx(1.0 - p, abs=0.08)

    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * length**-0.5

    weights = torch.softmax(scores.double(), dim=-1) * left * drop_scale(p)

    expected = (weights @ v.double().transpose(1, 2)).transpose(1, 2)

    tolerance = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]

    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)

    grad = torch.randn_like(found)

    ours = torch.autograd.grad(found, (q, k, v), grad)
    theirs = torch.autograd.grad(expected, (q, k, v), grad.double())

    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def test_without_gradients_the_output_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are not kept then: each block overwrites those of the one before."""
    q, k, v = make_inputs(torch.bfloat16)

    expected = attend(q, k, v, 0.0, 6, monkeypatch, training=False)

    with torch.no_grad():
        assert torch.equal(attend(q, k, v, 0.0, 6, monkeypatch, training=False), expected)
