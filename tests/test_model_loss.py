"""The loss against fairseq's own formulation, written out: a [1 + C, S] table of cosines, positives first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import make_batch, one_thread, tiny_config  # noqa: F401 - a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig, MaskedLoss
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.config import HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.heads import CosineHead
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")


def fairseq_loss(projected: Tensor, codewords: Tensor, targets: Tensor) -> Tensor:
    """fairseq ``compute_nce`` and its criterion, line by line (hubert.py:384-394, hubert_criterion.py:68-76).

    :param projected: *Shape:* (S, d).
    :param codewords: *Shape:* (C, d).
    :param targets: *Shape:* (S).
    :returns: The sum of cross-entropies. *Shape:* ().
    """
    positives = codewords[targets]

    negatives = codewords.unsqueeze(1).expand(-1, projected.size(0), -1)

    neg_is_pos = (positives == negatives).all(-1)

    candidates = torch.cat([positives.unsqueeze(0), negatives], dim=0)  # (1 + C, S, d)

    logits = cosine_similarity(projected.float(), candidates.float(), dim=-1) / 0.1

    if neg_is_pos.any():
        logits[1:][neg_is_pos] = float("-inf")

    logits = logits.transpose(0, 1)

    return cross_entropy(logits, logits.new_zeros(logits.size(0), dtype=torch.long), reduction="sum")


def create(heads: list[HubertHeadConfig], **overrides: Any) -> HubertModel:
    torch.manual_seed(0)

    return create_hubert_model(tiny_config(heads=heads, **overrides)).double()


def compute(model: HubertModel, batch: HubertBatch, alpha: float = 1.0) -> MaskedLoss:
    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig(alpha=alpha))

    return criterion.compute_loss(criterion.forward(batch), batch)


def naive(model: HubertModel, batch: HubertBatch, alpha: float) -> tuple[Tensor, int]:
    """The whole loss from the encoder's layers: label sets, layers, weights, α, penalty, normaliser."""
    num_layers = model.config.num_layers

    num_samples = batch.num_samples if batch.padded else None

    features = model.encode(
        batch.waveforms,
        num_samples,
        taps=range(num_layers + 1),
        temporal_mask=batch.temporal_mask,
    )

    # The mean is over padding, too (`hubert.py:447`); `encode` does not compute it.
    conv_features = model.encoder_frontend.extract(batch.waveforms, num_samples)

    num_targets = (batch.num_masked if alpha > 0 else 0) + (batch.num_unmasked if alpha < 1 else 0)

    total = 10.0 * num_targets * conv_features.float().square().mean()

    for k, head in enumerate(model.config.heads):
        layer = head.layer or num_layers

        x = features.output if layer == num_layers else features.layers[layer]

        module = model.target_heads.heads[k]

        proj = module.proj if module.proj is not None else model.target_heads.shared_proj

        for weight, indices, targets in (
            (alpha, batch.masked_indices, batch.masked_targets[k]),
            (1 - alpha, batch.unmasked_indices, batch.unmasked_targets[k]),
        ):
            projected = proj(x.flatten(0, 1)[indices])

            total = total + weight * head.weight * fairseq_loss(projected, module.codewords, targets)

    return total, num_targets


ENSEMBLE = [HubertHeadConfig(label_set="a", size=8), HubertHeadConfig(label_set="b", size=5, weight=0.5)]

PRODUCT = [HubertHeadConfig(label_set=f"codebook{i}", size=4) for i in range(3)]

MULTICLUSTER = [
    HubertHeadConfig(label_set="coarse", size=3, layer=1),
    HubertHeadConfig(label_set="fine", size=9, layer=2),
    HubertHeadConfig(label_set="finest", size=11),
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm_order", ["pre", "post"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "heads", [[HubertHeadConfig(size=8)], ENSEMBLE, PRODUCT, MULTICLUSTER], ids=["one", "ensemble", "product", "multi"]
)
def test_loss_and_gradients_equal_the_written_out_formula(
    heads: list[HubertHeadConfig], alpha: float, norm_order: str, tied: bool
) -> None:
    model = create(heads, tie_final_proj=tied, norm_order=norm_order)

    batch = make_batch([6_000, 4_000, 5_000], sizes=[h.size for h in heads])

    batch.waveforms = batch.waveforms.double()

    loss = compute(model, batch, alpha)

    expected, num_targets = naive(model, batch, alpha)

    assert loss.num_targets == num_targets
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)

    params = [p for n, p in model.named_parameters() if "k_proj.bias" not in n]

    ours, theirs = (torch.autograd.grad(t, params, allow_unused=True) for t in (loss.total, expected))

    for a, b in zip(ours, theirs, strict=True):
        if b is None or a is None:
            assert a is None or not a.any()
            assert b is None or not b.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max() + 1e-9))


@settings(max_examples=30, deadline=None)
@given(
    num_frames=st.integers(1, 50),
    size=st.integers(2, 40),
    dim=st.integers(1, 24),
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-3, 1e3),
)
def test_head_equals_the_written_out_formula(num_frames: int, size: int, dim: int, seed: int, scale: float) -> None:
    torch.manual_seed(seed)

    config = tiny_config(final_dim=dim)

    head = CosineHead(config, HubertHeadConfig(size=size), None)

    x = scale * torch.randn(num_frames, config.model_dim)

    targets = torch.randint(size, (num_frames,))

    assert head.proj is not None

    expected = fairseq_loss(head.proj(x), head.codewords, targets)

    assert float(cross_entropy(head(x), targets, reduction="sum")) == pytest.approx(float(expected), rel=2e-5, abs=1e-4)


def test_cosines_of_frames_and_codewords_of_length_zero_are_finite() -> None:
    head = CosineHead(tiny_config(), HubertHeadConfig(size=4), None)

    assert head.proj is not None

    with torch.no_grad():
        head.codewords[0] = 0.0
        head.proj.bias.zero_()

    x = torch.zeros(3, 32, requires_grad=True)

    logits = head(x)

    logits.sum().backward()

    assert logits.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_logits_and_loss_are_float32_under_bf16_autocast() -> None:
    """Trap T35: bf16 cosines would be off by 0.4 % times the temperature's 10."""
    model = create([HubertHeadConfig(size=8)]).float()

    batch = make_batch([8_000, 8_000])

    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig(alpha=0.5))

    with torch.autocast("cpu", torch.bfloat16):
        output = criterion.forward(batch)

        loss = criterion.compute_loss(output, batch)

    assert {t.dtype for t in [*output.masked_logits, *output.unmasked_logits]} == {torch.float32}
    assert output.feature_penalty.dtype == loss.total.dtype == torch.float32

    # bf16 has steps of 1/16 from 8 on; float32 cosines of bf16 projections do not fall on them.
    logits = output.masked_logits[0]

    assert not torch.equal(logits, logits.bfloat16().float())
    assert float(logits.abs().max()) <= 10.0 + 1e-4


def test_loss_of_several_label_sets_is_a_sum_with_one_normaliser() -> None:
    """Trap T13: K label sets give about K times the loss; the normaliser counts the frames of one."""
    heads = [HubertHeadConfig(label_set="a", size=8), HubertHeadConfig(label_set="b", size=8)]

    batch = make_batch([8_000], sizes=[8, 8])

    loss = compute(create(heads).float(), batch)

    assert loss.num_targets == batch.num_masked
    assert float(loss.total - loss.feature_penalty) == pytest.approx(float(sum(loss.masked)), rel=1e-5)


def test_head_of_weight_zero_teaches_nothing() -> None:
    heads = [HubertHeadConfig(label_set="a", size=8), HubertHeadConfig(label_set="b", size=8, weight=0.0)]

    model = create(heads).float()

    compute(model, make_batch([8_000], sizes=[8, 8])).total.backward()

    first, second = model.target_heads.heads

    assert first.codewords.grad.any()
    assert second.codewords.grad is not None and not second.codewords.grad.any()


def test_unmasked_logits_carry_no_gradient_where_they_have_no_weight() -> None:
    """Trap T30: with α = 1 they are for the accuracy only."""
    model = create([HubertHeadConfig(size=8)]).float()

    for alpha, has_grad in ((1.0, False), (0.5, True)):
        criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig(alpha=alpha))

        assert criterion.forward(make_batch([8_000])).unmasked_logits[0].requires_grad == has_grad
