"""Layer drop, frozen convolutions, layer features: what the model does beyond the reference's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_batch, one_thread, tiny_config  # noqa: F401 - a fixture
from hypothesis import given, settings
from hypothesis import strategies as st

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.errors import AudioError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.inference import encode_batch, prepare_waveform
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")


def create_model(seed: int = 0, **overrides: Any) -> HubertModel:
    torch.manual_seed(seed)

    return create_hubert_model(tiny_config(**overrides))


def backward(model: HubertModel, lengths: Sequence[int] = (8_000, 8_000)) -> None:
    batch = make_batch(lengths)

    criterion = MaskedCrossEntropy(model, model, MaskedCrossEntropyConfig())

    criterion.compute_loss(criterion.forward(batch), batch).total.backward()


def count_calls(model: HubertModel) -> list[int]:
    """Return a list to which each layer appends its number (1-based) when it runs."""
    calls: list[int] = []

    for nr, layer in enumerate(model.encoder.layers, start=1):
        layer.register_forward_hook(lambda *args, nr=nr: calls.append(nr))

    return calls


def test_dropped_layers_get_zero_gradients_not_none() -> None:
    """Trap T19: data-parallel reduction waits for every parameter."""
    model = create_model(num_layers=4, layer_drop_p=0.5).train()

    calls = count_calls(model)

    for seed in range(20):
        model.zero_grad(set_to_none=True)

        calls.clear()

        torch.manual_seed(seed)

        backward(model)

        if 0 < len(calls) < 4:
            break

    assert 0 < len(calls) < 4, "no seed dropped some layers but not all"

    for nr, layer in enumerate(model.encoder.layers, start=1):
        for name, param in layer.named_parameters():
            assert param.grad is not None, (nr, name)

            if nr not in calls:
                assert not param.grad.any(), (nr, name)

        if nr in calls:
            assert layer.ffn.inner_proj.weight.grad.abs().sum() > 0


def test_layers_are_dropped_as_often_as_asked() -> None:
    model = create_model(num_layers=4, layer_drop_p=0.25).train()

    calls = count_calls(model)

    batch = make_batch([1_600])

    torch.manual_seed(0)

    for _ in range(50):
        with torch.no_grad():
            model.encode(batch.waveforms)

    # 200 draws: the standard deviation of the share is 0.03.
    assert 1 - len(calls) / 200 == pytest.approx(0.25, abs=0.1)


def test_a_model_whose_layers_are_all_dropped_passes_its_input_on() -> None:
    model = create_model(num_layers=2, layer_drop_p=0.999).train()

    waveforms = torch.randn(2, 4_000)

    with torch.no_grad():
        features = model.encode(waveforms, taps=[0, 1, 2])

    torch.testing.assert_close(features.output, features.layers[0])


def test_evaluation_and_feature_extraction_never_drop_layers() -> None:
    model = create_model(num_layers=3, layer_drop_p=0.999, dropout_p=0.5).train()

    calls = count_calls(model)

    waveform = torch.randn(4_000)

    first, second = (model.extract_features([waveform])[0] for _ in range(2))

    assert calls == [1, 2, 3] * 2
    assert torch.equal(first, second), "dropout was on"
    assert model.training, "the mode was not restored"

    model.eval()

    with torch.no_grad():
        model.encode(waveform[None])

    assert calls == [1, 2, 3] * 3


def test_gradient_scale_of_zero_freezes_the_convolutions() -> None:
    """Trap T10: neither loss nor penalty moves them; all else learns."""
    model = create_model(feature_grad_scale=0.0).train()

    backward(model)

    for name, param in model.named_parameters():
        if "feature_extractor" in name:
            assert param.grad is None or not param.grad.any(), name
        elif "k_proj.bias" not in name:
            assert param.grad is not None and param.grad.any(), name


def test_gradient_scale_scales_the_gradients_of_the_convolutions_only() -> None:
    """Trap T10, the penalty's gradients included."""
    grads = []

    for scale in (1.0, 0.1):
        model = create_model(feature_grad_scale=scale).train()

        backward(model)

        grads.append({n: p.grad for n, p in model.named_parameters()})

    for name, full in grads[0].items():
        expected = 0.1 * full if "feature_extractor" in name else full

        torch.testing.assert_close(grads[1][name], expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 12_000), min_size=2, max_size=5),
    conv_norm=st.sampled_from(["layer", "group"]),
    norm_order=st.sampled_from(["pre", "post"]),
    normalize=st.booleans(),
    layer=st.sampled_from([None, 0, 1, 2]),
)
def test_features_do_not_depend_on_the_batch(
    lengths: list[int], conv_norm: str, norm_order: str, normalize: bool, layer: int | None
) -> None:
    """Trap T4: with statistics over valid samples, group normalisation is no exception."""
    model = create_model(conv_norm=conv_norm, norm_order=norm_order, normalize_audio=normalize)

    rng = np.random.default_rng(len(lengths))

    waveforms = [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in lengths]

    # One batch of all: `extract_features` itself only batches what is of similar length.
    prepared = [prepare_waveform(model, w) for w in waveforms]

    model.eval()

    with torch.inference_mode():
        together = [outputs[layer] for outputs in encode_batch(model, prepared, [layer])]

    for waveform, features, public in zip(waveforms, together, model.extract_features(waveforms, layer), strict=True):
        (alone,) = model.extract_features([waveform], layer)

        assert alone.shape == (frames.num_frames(waveform.size), model.config.model_dim)

        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(public, alone, atol=1e-5, rtol=1e-5)


def test_group_norm_with_padding_differs_as_in_fairseq_only_on_request() -> None:
    """The other side of trap T4: fairseq's behaviour is there, for those who compare with it."""
    waveforms = torch.randn(2, 8_000)

    waveforms[1, 3_000:] = 0.0

    outputs = []

    for include_padding in (False, True):
        model = create_model(group_norm_includes_padding=include_padding).eval()

        with torch.no_grad():
            padded = model.encode(waveforms, [8_000, 3_000]).output[1, :9]
            alone = model.encode(waveforms[1:, :3_000]).output[0]

        outputs.append(float((padded - alone).abs().max()))

    assert outputs[0] < 1e-5
    assert outputs[1] > 1e-2


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_layers_are_numbered_from_the_input_and_never_normed(norm_order: str) -> None:
    """DESIGN, decision 6: layer L is the output of block L; layer 0 goes into block 1 (trap T36)."""
    model = create_model(num_layers=3, norm_order=norm_order).eval()

    inputs: dict[int, torch.Tensor] = {}
    outputs: dict[int, torch.Tensor] = {}

    for nr, layer in enumerate(model.encoder.layers, start=1):
        layer.register_forward_pre_hook(lambda m, args, nr=nr: inputs.update({nr: args[0]}))
        layer.register_forward_hook(lambda m, args, out, nr=nr: outputs.update({nr: out}))

    waveform = torch.randn(5_000)

    (final,) = model.extract_features([waveform])

    expected = {0: inputs[1][0].clone(), **{nr: out[0].clone() for nr, out in outputs.items()}}

    for nr, value in expected.items():
        (features,) = model.extract_features([waveform], layer=nr)

        torch.testing.assert_close(features, value)

    if norm_order == "pre":
        assert model.encoder.layer_norm is not None

        torch.testing.assert_close(final, model.encoder.layer_norm(expected[3]))
        assert not torch.allclose(final, expected[3])
    else:
        torch.testing.assert_close(final, expected[3])


def test_layers_after_the_one_that_was_asked_for_do_not_run() -> None:
    model = create_model(num_layers=4)

    calls = count_calls(model)

    for layer in (0, 2):
        calls.clear()

        model.extract_features([torch.randn(2_000)], layer=layer)

        assert calls == list(range(1, layer + 1))


def test_waveform_too_short_or_not_mono_is_refused() -> None:
    model = create_model()

    with pytest.raises(AudioError, match=r"Waveform 1 must have at least 400 samples .* has 399"):
        model.extract_features([torch.randn(400), torch.randn(399)])

    with pytest.raises(AudioError, match=r"mono.*\(2, 800\)"):
        model.extract_features([torch.randn(2, 800)])

    assert model.extract_features([torch.randn(400)])[0].shape == (1, 32)
    assert model.extract_features([]) == []


@pytest.mark.parametrize("layer", [-1, 3])
def test_layer_out_of_range_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"`layer` must be between 0 and 2, but is {layer}"):
        create_model().extract_features([torch.randn(400)], layer=layer)


def test_features_are_normalised_per_utterance_where_the_model_says_so() -> None:
    """Trap T5: level and offset of one waveform change nothing; torchaudio's bundles normalise the batch (trap T29)."""
    waveforms = [torch.randn(4_000), torch.randn(4_000)]

    moved = [0.1 * waveforms[0] + 0.3, 2.0 * waveforms[1] - 1.0]

    # Layer norm in the convolutions: group norm would hide level and offset by itself.
    normalizing = create_model(normalize_audio=True, conv_norm="layer")
    plain = create_model(normalize_audio=False, conv_norm="layer")

    expected = plain.extract_features([(w - w.mean()) / (w.var(correction=0) + 1e-5).sqrt() for w in waveforms])

    for a, b, c in zip(
        normalizing.extract_features(waveforms), normalizing.extract_features(moved), expected, strict=True
    ):
        torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(b, c, atol=5e-3, rtol=0.0)  # at a level of 0.1 the epsilon is a thousandth

    for a, b in zip(plain.extract_features(waveforms), plain.extract_features(moved), strict=True):
        assert float((a - b).abs().max()) > 0.5


def test_masked_frames_hide_their_audio() -> None:
    """Trap T8: the mask embedding takes the place of the projected frame, before positions are added."""
    model = create_model(pos_conv_kernel=16).eval()

    mask = torch.zeros(1, frames.num_frames(8_000), dtype=torch.bool)

    mask[0, 5:15] = True

    seen = {}

    model.encoder_frontend.pos_encoder.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))

    with torch.no_grad():
        model.encode(torch.randn(1, 8_000), temporal_mask=mask)

    embedding = model.masker.temporal_mask_embed

    assert torch.equal(seen["x"][mask], embedding.expand(10, -1))
    assert not (seen["x"][~mask] == embedding).all(dim=-1).any()
