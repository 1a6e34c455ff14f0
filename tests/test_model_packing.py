"""Padded batches whose frames are packed: every utterance gets what it gets alone, and padding costs nothing.

An utterance alone is never packed, so it is the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from builders import one_thread, tiny_config  # noqa: F401 - a fixture
from fairseq2.nn import BatchLayout
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Module

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.models.hubert.attention import HubertSDPA
from hubert_plugin.models.hubert.compile import compile_hubert
from hubert_plugin.models.hubert.encoder import HubertEncoder
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertFeatures, HubertModel
from hubert_plugin.models.hubert.packing import FramePacking

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [4_000, 6_000, 6_100, 2_000]


def create(**overrides: Any) -> HubertModel:
    torch.manual_seed(0)

    return create_hubert_model(tiny_config(**overrides)).double().eval()


def make_waveforms(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)

    return [torch.randn(n, dtype=torch.float64, generator=generator) for n in lengths]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    # The first convolution takes its waveforms in float32 (`first_conv.py`).
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def encode_padded(model: HubertModel, waveforms: Sequence[Tensor], width: int | None = None) -> HubertFeatures:
    lengths = [w.numel() for w in waveforms]

    batch = torch.zeros((len(waveforms), width or max(lengths)), dtype=torch.float64)

    for row, waveform in zip(batch, waveforms, strict=True):
        row[: waveform.numel()] = waveform

    return model.encode(batch, lengths, taps=range(3))


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(400, 8_000), min_size=1, max_size=5),
    extra=st.integers(0, 2_000),
    conv_norm=st.sampled_from(["group", "layer"]),
    norm_order=st.sampled_from(["post", "pre"]),
)
def test_an_utterance_of_a_padded_batch_gets_what_it_gets_alone(
    lengths: list[int], extra: int, conv_norm: str, norm_order: str
) -> None:
    model = create(conv_norm=conv_norm, norm_order=norm_order)

    waveforms = make_waveforms(lengths)

    together = encode_padded(model, waveforms, max(lengths) + extra)

    for idx, waveform in enumerate(waveforms):
        alone = model.encode(waveform.unsqueeze(0), taps=range(3))

        size = frames.num_frames(waveform.numel())

        assert_close(together.output[idx, :size], alone.output[0])

        for layer in range(3):
            assert_close(together.layers[layer][idx, :size], alone.layers[layer][0])

        assert together.conv_features is not None and alone.conv_features is not None

        assert_close(together.conv_features[idx, :size], alone.conv_features[0])

        assert not together.conv_features[idx, size:].any()


def test_gradients_are_those_of_the_utterances_alone() -> None:
    model = create(conv_norm="layer")

    waveforms = make_waveforms(LENGTHS)

    sizes = [frames.num_frames(n) for n in LENGTHS]

    def gradients(loss: Tensor) -> list[Tensor]:
        params = [p for n, p in model.named_parameters() if not n.startswith(("masker", "target_heads"))]

        return list(torch.autograd.grad(loss, params))

    output = encode_padded(model, waveforms).output

    together = gradients(torch.stack([output[i, :size].pow(3).sum() for i, size in enumerate(sizes)]).sum())

    alone = gradients(torch.stack([model.encode(w.unsqueeze(0)).output.pow(3).sum() for w in waveforms]).sum())

    for actual, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_and_convolutions_see_no_padding(dtype: torch.dtype) -> None:
    model = create().to(torch.float32)

    seen: list[int] = []

    def count(_: object, args: tuple[Tensor, ...], output: object) -> None:
        seen.append(args[0].numel() // args[0].size(-1))

    for layer in model.encoder.layers:
        layer.ffn.register_forward_hook(count)

    model.encoder_frontend.feature_extractor.layers[-1].register_forward_hook(count)

    batch = torch.randn(len(LENGTHS), max(LENGTHS))

    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model.encode(batch, LENGTHS)

    num_frames = sum(frames.num_frames(n) for n in LENGTHS)

    # Two spare frames of each utterance, two rows each before the last stride.
    assert seen == [2 * (num_frames + 2 * len(LENGTHS)), num_frames, num_frames]


def test_dropout_falls_on_packed_attention() -> None:
    torch.manual_seed(0)

    sdpa = HubertSDPA(dropout_p=0.5).train()

    lengths = [3, 3, 5]

    layout = BatchLayout((11,), lengths, packed=True)

    q, k, v = (torch.randn(11, 2, 4, dtype=torch.float64) for _ in range(3))

    def attend() -> Tensor:
        output, _ = sdpa(q, layout, k, layout, v, None)

        return output

    assert not torch.equal(attend(), attend())

    mean = torch.stack([attend() for _ in range(4000)]).mean(dim=0)

    sdpa.eval()

    torch.testing.assert_close(mean, attend(), atol=0.15, rtol=0.0)


def test_where_attention_cannot_pack_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create()

    waveforms = make_waveforms(LENGTHS)

    packed = encode_padded(model, waveforms).output

    monkeypatch.setattr(HubertSDPA, "supports_packing", lambda *_: False)

    padded = encode_padded(model, waveforms).output

    for idx, length in enumerate(LENGTHS):
        size = frames.num_frames(length)

        torch.testing.assert_close(packed[idx, :size], padded[idx, :size])

    # That the first was packed at all shows in the padding.
    assert not packed[-1, frames.num_frames(LENGTHS[-1]) :].any()

    assert padded[-1, frames.num_frames(LENGTHS[-1]) :].any()


def test_packing_is_known_to_be_possible_on_cpus_only_without_flash_attention() -> None:
    sdpa = HubertSDPA(dropout_p=0.0)

    assert sdpa.supports_packing(torch.device("cpu"))

    assert not sdpa.supports_packing(torch.device("cuda"))


def test_layers_that_are_not_known_to_take_packed_frames_get_padded_ones() -> None:
    class Layer(Module):
        """As a plugin may bring it: looks at the frames of a row."""

        def forward(self, seqs: Tensor, layout: BatchLayout, bias_cache: object) -> Tensor:
            assert seqs.dim() == 3

            return seqs + 1.0

    known = create().encoder.layers[0]

    encoder = HubertEncoder([known, Layer()], None, layer_drop_p=0.0)  # type: ignore[list-item]

    seqs = torch.randn(2, 5, 32, dtype=torch.float64)

    output, _ = encoder(seqs, BatchLayout((2, 5), [5, 3]))

    assert output.shape == seqs.shape


def test_a_compiled_model_is_not_packed() -> None:
    model = create()

    compile_hubert(model, backend="eager")

    assert not model.encoder.pack


@given(data=st.data(), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), extra=st.integers(0, 3))
def test_a_permutation_of_valid_frames_is_that_of_packed_ones(
    data: st.DataObject, lengths: list[int], extra: int
) -> None:
    width = max(lengths) + extra

    packing = FramePacking(BatchLayout((len(lengths), width), lengths))

    valid = [row * width + step for row, size in enumerate(lengths) for step in range(size)]

    permutation = torch.arange(len(lengths) * width)

    permutation[valid] = torch.tensor(data.draw(st.permutations(valid)))

    seqs = torch.randn(len(lengths), width, 3)

    moved = seqs.flatten(0, 1)[permutation].view_as(seqs)

    packed = packing.pack(seqs)[packing.pack_permutation(permutation)]

    assert torch.equal(packed, packing.pack(moved))

    unpacked = packing.unpack(packed)

    for row, size in enumerate(lengths):
        assert torch.equal(unpacked[row, :size], moved[row, :size])

        assert not unpacked[row, size:].any()
