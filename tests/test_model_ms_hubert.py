"""MS-HuBERT against a reference that is written out: two views in two passes, frames exchanged one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from builders import make_batch, one_thread, tiny_config  # noqa: F401 - a fixture
from fairseq2.models.family import ModelFamily
from fairseq2.models.transformer import AttentionBiasCache
from fairseq2.runtime.dependency import get_dependency_resolver
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.criteria.masked_cross_entropy import (
    MaskedCrossEntropy,
    MaskedCrossEntropyConfig,
    MaskedLoss,
    draw_heads,
)
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.encoder import swap_permutation
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = (3, 5, 9)

LENGTHS = [6_000, 4_000, 5_000]


def create(seed: int = 0, **overrides: Any) -> HubertModel:
    """Four layers; heads of 3, 5 and 9 units on layers 1, 2 and 4."""
    torch.manual_seed(seed)

    config = tiny_config(
        num_layers=4,
        heads=[HubertHeadConfig(label_set=f"km{size}", size=size) for size in SIZES],
        head_layers="spread",
        swap=True,
        **overrides,
    )

    return create_hubert_model(config).double().train()


def make(lengths: Sequence[int] = LENGTHS) -> HubertBatch:
    batch = make_batch(lengths, sizes=SIZES)

    batch.waveforms = batch.waveforms.double()

    return batch


def compute(model: HubertModel, batch: HubertBatch, alpha: float = 1.0, step_nr: int = 0) -> MaskedLoss:
    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig(alpha=alpha))

    criterion.set_step_nr(step_nr)

    return criterion.compute_loss(criterion.forward(batch), batch)


def reference(
    model: HubertModel,
    batch: HubertBatch,
    *,
    alpha: float = 1.0,
    views: Sequence[int] = (0, 1),
    drops: Sequence[bool] = (False,) * 4,
    heads: Sequence[int] = (0, 1, 2),
    tap_before_exchange: bool = False,
) -> Tensor:
    """The loss, as the specification says it."""
    frontend, layers = model.encoder_frontend, model.encoder.layers

    features = frontend.extract(batch.waveforms, batch.num_samples if batch.padded else None)

    seqs, layout = model._project(features, batch.num_samples if batch.padded else None)

    first, second = seqs.clone(), seqs.clone()

    places = batch.temporal_mask.nonzero().tolist()

    for n, t in places:
        first[n, t] = model.masker.temporal_mask_embed

    pair = [frontend.position(first, layout), frontend.position(second, layout)]

    kept: dict[int, list[Tensor]] = {}

    for nr, layer in enumerate(layers, start=1):
        if drops[nr - 1]:
            kept[nr] = pair

            continue

        pair = [layer(x, layout, AttentionBiasCache()) for x in pair]

        kept[nr] = pair

        exchanged = [x.clone() for x in pair]

        for n, t in places:
            exchanged[0][n, t], exchanged[1][n, t] = pair[1][n, t], pair[0][n, t]

        pair = exchanged

        if not tap_before_exchange:
            kept[nr] = pair

    if model.encoder.layer_norm is not None:
        # The last layer's head reads the model's output, which is normed.
        kept[4] = [model.encoder.layer_norm(x) for x in kept[4]]

    num_targets = (batch.num_masked if alpha > 0 else 0) + (batch.num_unmasked if alpha < 1 else 0)

    total = 10.0 * features.square().mean() * num_targets * len(views)

    for k in heads:
        head = model.target_heads.heads[k]

        for weight, indices, targets in (
            (alpha, batch.masked_indices, batch.masked_targets[k]),
            (1.0 - alpha, batch.unmasked_indices, batch.unmasked_targets[k]),
        ):
            for view in views:
                x = head.proj(kept[(1, 2, 4)[k]][view].flatten(0, 1)[indices]).float()

                cosines = torch.cosine_similarity(x[:, None], head.codewords.float()[None], dim=-1)

                scores = (cosines / 0.1).log_softmax(dim=-1)

                total = total - weight * scores[torch.arange(len(targets)), targets].sum()

    return total


def assert_same_gradients(model: HubertModel, ours: Tensor, theirs: Tensor) -> None:
    # Softmax does not see the biases of keys: their gradients are rounding errors.
    params = {n: p for n, p in model.named_parameters() if "k_proj.bias" not in n}

    for name, a, b in zip(
        params,
        torch.autograd.grad(ours, list(params.values()), allow_unused=True),
        torch.autograd.grad(theirs, list(params.values()), allow_unused=True),
        strict=True,
    ):
        if a is None or b is None:
            assert a is None or not a.any(), name
            assert b is None or not b.any(), name
        else:
            torch.testing.assert_close(
                a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max() + 1e-9), msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("norm_order", ["pre", "post"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize(("kind", "views"), [("both", (0, 1)), ("masked", (0,)), ("unmasked", (1,))])
def test_loss_and_gradients_equal_the_reference(kind: str, views: Sequence[int], alpha: float, norm_order: str) -> None:
    model, batch = create(norm_order=norm_order, swap_loss=kind), make()

    ours, theirs = compute(model, batch, alpha), reference(model, batch, alpha=alpha, views=views)

    assert ours.total.item() == pytest.approx(theirs.item(), rel=1e-6)

    assert ours.num_targets == len(views) * (batch.num_masked + (batch.num_unmasked if alpha < 1 else 0))

    assert_same_gradients(model, ours.total, theirs)


@pytest.mark.parametrize("drops", [(True, False, False, False), (False, True, True, False), (False, True, False, True)])
def test_dropped_layers_neither_transform_nor_exchange(drops: Sequence[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = create(layer_drop_p=0.5), make()

    monkeypatch.setattr(type(model.encoder), "_draw_drops", lambda self, num_layers: list(drops)[:num_layers])

    ours, theirs = compute(model, batch).total, reference(model, batch, drops=drops)

    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)

    assert_same_gradients(model, ours, theirs)


def test_loss_over_both_views_does_not_care_whether_taps_come_before_or_after_the_exchange() -> None:
    model, batch = create(), make()

    after, before = (reference(model, batch, tap_before_exchange=b) for b in (False, True))

    assert compute(model, batch).total.item() == pytest.approx(before.item(), rel=1e-6)
    assert after.item() == pytest.approx(before.item(), rel=1e-12)

    # Over one view it does: the test above would see an exchange that does nothing.
    one = [reference(model, batch, views=(0,), tap_before_exchange=b).item() for b in (False, True)]

    assert one[0] != pytest.approx(one[1], rel=1e-4)


def test_context_of_unmasked_frames_reaches_the_masked_view_from_the_second_layer_on() -> None:
    """What is under the mask changes the masked view's output: that is what the exchange is for."""
    batch = make([8_000])

    def logits(model: HubertModel, batch: HubertBatch) -> list[Tensor]:
        output = model(
            batch.waveforms, None, temporal_mask=batch.temporal_mask, masked_indices=batch.masked_indices,
            unmasked_indices=batch.unmasked_indices,
        )  # fmt: skip

        return [x[: batch.num_unmasked] for x in output.unmasked_logits]

    model = create(swap_loss="masked")

    # Replace what the projected features hold under the mask.
    original = model.encoder_frontend.project

    before = logits(model, batch)

    model.encoder_frontend.project = lambda f: original(f) + batch.temporal_mask[..., None] * 3.0  # type: ignore[method-assign]

    after = logits(model, batch)

    assert torch.equal(before[0], after[0])  # layer 1: HuBERT's masked view
    assert not torch.allclose(before[1], after[1])  # layer 2: exchanged once


@settings(max_examples=25, deadline=None)
@given(num_frames=st.integers(1, 60), seed=st.integers(0, 2**16))
def test_exchange_is_its_own_inverse_and_moves_nothing_but_masked_frames(num_frames: int, seed: int) -> None:
    mask = torch.rand(num_frames, generator=torch.Generator().manual_seed(seed)) < 0.4

    permutation = swap_permutation(mask.nonzero().flatten(), num_frames)

    assert torch.equal(permutation[permutation], torch.arange(2 * num_frames))

    moved = permutation != torch.arange(2 * num_frames)

    assert torch.equal(moved, mask.repeat(2))


def test_padding_is_never_exchanged_and_changes_nothing() -> None:
    model = create(norm_order="pre")

    one, padded = make([5_000]), make([5_000, 9_000])

    # Utterances are drawn one by one: the first of two is the one that is alone.
    alone = compute(model, one).masked[0].item()

    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig())

    output = criterion.forward(padded)

    rows = padded.masked_indices // padded.temporal_mask.size(1)

    logits = output.masked_logits[0].unflatten(0, (2, -1))[:, rows == 0].flatten(0, 1)

    targets = padded.masked_targets[0][rows == 0].repeat(2)

    assert torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item() == pytest.approx(alone, rel=1e-5)
    assert compute(model, padded).num_targets == 2 * padded.num_masked


def test_convolutions_run_once_for_both_views() -> None:
    model, batch = create(), make()

    rows: list[int] = []

    model.encoder_frontend.feature_extractor.register_forward_hook(lambda m, args, out: rows.append(out.size(0)))

    views: list[int] = []

    model.encoder.layers[0].register_forward_hook(lambda m, args, out: views.append(len(args[1].seq_lens)))

    compute(model, batch)

    assert (rows, views) == ([3], [6])


def test_dropped_heads_leave_their_terms_out_and_every_parameter_has_a_gradient() -> None:
    model, batch = create(num_dropped_heads=1), make()

    seen = set()

    for step_nr in range(1, 12):
        kept = draw_heads(3, 1, step_nr)

        model.zero_grad(set_to_none=True)

        loss = compute(model, batch, step_nr=step_nr)

        assert loss.total.item() == pytest.approx(reference(model, batch, heads=kept).item(), rel=1e-6)

        loss.total.backward()

        for name, param in model.named_parameters():
            assert param.grad is not None, (step_nr, name)

        for k, head in enumerate(model.target_heads.heads):
            assert head.codewords.grad.any() == (k in kept), (step_nr, k)

        # Without the head on the last layer nothing needs the layers above 2.
        assert model.encoder.layers[3].ffn.inner_proj.weight.grad.any() == (2 in kept)
        assert model.encoder.layers[1].ffn.inner_proj.weight.grad.any()

        seen.add(tuple(kept))

    assert seen == {(0, 1), (0, 2), (1, 2)}


def test_gradients_reach_every_parameter_of_the_released_architecture() -> None:
    """The layers, taps and heads of ``ms_hubert_base``, narrow."""
    heads = [HubertHeadConfig(label_set=f"km{size}", size=size) for size in (25, 50, 125, 250, 500, 1000)]

    torch.manual_seed(0)

    model = create_hubert_model(
        tiny_config(num_layers=12, heads=heads, head_layers="spread", swap=True, num_dropped_heads=2)
    ).train()

    sizes = [h.size for h in heads]

    reached: dict[str, bool] = {}

    for step_nr in range(8):
        model.zero_grad(set_to_none=True)

        compute(model, make_batch([8_000, 8_000], sizes=sizes), step_nr=step_nr).total.backward()

        for name, param in model.named_parameters():
            assert param.grad is not None, name

            reached[name] = reached.get(name, False) or bool(param.grad.any())

    assert [n for n, ok in reached.items() if not ok] == []


def test_parameters_and_taps_are_those_of_the_paper() -> None:
    config = get_dependency_resolver().resolve(ModelFamily, key="hubert").maybe_get_arch_config("ms_hubert_base")

    assert isinstance(config, HubertConfig)

    with torch.device("meta"):
        model = create_hubert_model(config)

    assert sum(p.numel() for p in model.parameters()) == 96_052_096

    assert [(h.size, h.layer) for h in model.target_heads] == [
        (1000, 12), (500, 10), (250, 8), (125, 7), (50, 5), (25, 4)
    ]  # fmt: skip


def test_inference_and_validation_are_those_of_hubert() -> None:
    model, batch = create(num_dropped_heads=1, norm_order="pre"), make()

    plain = create(norm_order="pre")

    plain.config.swap = False

    plain.load_state_dict(model.state_dict())

    model.eval()
    plain.eval()

    for num_layers in (None, 3):
        a, b = (
            m.encode(batch.waveforms, batch.num_samples, num_layers=num_layers, taps=range(4)) for m in (model, plain)
        )

        assert torch.equal(a.output, b.output)
        assert all(torch.equal(a.layers[i], b.layers[i]) for i in range(4))

    ours, theirs = compute(model, batch), compute(plain, batch)

    assert ours.total.item() == theirs.total.item()
    assert ours.num_targets == batch.num_masked
    assert len(ours.masked) == 3  # all heads
