"""Random small models against independent implementations that pip installs: Transformers and torchaudio.

The golden data (``test_model_golden.py``) is fairseq's own; here the shapes are random: widths, depths, kernels,
groups, lengths, both normalisations, padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from builders import CONV_LAYERS, one_thread, tiny_config  # noqa: F401 - a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def configs(draw: st.DrawFn) -> HubertConfig:
    heads = draw(st.sampled_from([1, 2, 4]))

    groups = draw(st.sampled_from([1, 2, 4]))

    channels = draw(st.sampled_from([8, 12, 16]))

    # Transformers and torchaudio pair group norm with post-norm and layer norm with pre-norm, as the released models.
    conv_norm, norm_order = draw(st.sampled_from([("group", "post"), ("layer", "pre")]))

    return tiny_config(
        model_dim=16 * draw(st.integers(1, 2)) + 8,  # never the number of channels: they always project (trap T18)
        num_heads=heads,
        num_layers=draw(st.integers(1, 3)),
        ffn_dim=draw(st.sampled_from([24, 40])),
        conv_layers=[(channels, k, s) for _, k, s in CONV_LAYERS],
        conv_norm=conv_norm,
        norm_order=norm_order,
        conv_bias=draw(st.booleans()) and conv_norm == "layer",
        pos_conv_kernel=draw(st.sampled_from([5, 8, 16])),
        pos_conv_groups=groups,
        heads=[],
    )


def create_model(config: HubertConfig, seed: int) -> HubertModel:
    torch.manual_seed(seed)

    model = create_hubert_model(config).eval()

    with torch.no_grad():
        for param in model.parameters():
            # No zeros and ones: every parameter must matter.
            param.add_(0.05 * torch.randn_like(param))

    return model


def theirs_of_ours(model: HubertModel) -> dict[str, Tensor]:
    """Map our names to those that Transformers' HubertModel and torchaudio's encoder have in common.

    Written out on its own, from FACTS 5.1, not through the tables that it is to check.
    """
    config, ours = model.config, model.state_dict()

    theirs: dict[str, Tensor] = {}

    def take(new: str, old: str) -> None:
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in ours:
                theirs[f"{new}.{kind}"] = ours[f"{old}.{kind}"]

    for i in range(len(config.conv_layers)):
        old = f"encoder_frontend.feature_extractor.layers.{i}"

        take(f"conv.{i}.conv", f"{old}.conv")
        take(f"conv.{i}.layer_norm", f"{old}.{config.conv_norm}_norm")

    take("projection.layer_norm", "encoder_frontend.post_extract_layer_norm")
    take("projection.projection", "encoder_frontend.model_dim_proj")

    for kind in ("weight_g", "weight_v", "bias"):
        theirs[f"pos.{kind}"] = ours[f"encoder_frontend.pos_encoder.conv.{kind}"]

    take("norm", "encoder_frontend.layer_norm" if config.norm_order == "post" else "encoder.layer_norm")

    for i in range(config.num_layers):
        old = f"encoder.layers.{i}"

        for name in "qkv":
            take(f"layers.{i}.attention.{name}_proj", f"{old}.self_attn.{name}_proj")

        take(f"layers.{i}.attention.out_proj", f"{old}.self_attn.output_proj")
        take(f"layers.{i}.layer_norm", f"{old}.self_attn_layer_norm")
        take(f"layers.{i}.feed_forward.intermediate_dense", f"{old}.ffn.inner_proj")
        take(f"layers.{i}.feed_forward.output_dense", f"{old}.ffn.output_proj")
        take(f"layers.{i}.final_layer_norm", f"{old}.ffn_layer_norm")

    return theirs


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    def new_name(name: str) -> str:
        head, _, rest = name.partition(".")

        return f"{prefixes[head]}.{rest}"

    return {new_name(k): v for k, v in state.items()}


def create_transformers(model: HubertModel) -> Any:
    from transformers import HubertConfig as TransformersConfig
    from transformers import HubertModel as TransformersModel

    config = model.config

    dims, kernels, strides = zip(*config.conv_layers, strict=True)

    peer = TransformersModel(
        TransformersConfig(
            hidden_size=config.model_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_dim,
            feat_extract_norm=config.conv_norm,
            do_stable_layer_norm=config.norm_order == "pre",
            conv_dim=dims,
            conv_kernel=kernels,
            conv_stride=strides,
            conv_bias=config.conv_bias,
            num_conv_pos_embeddings=config.pos_conv_kernel,
            num_conv_pos_embedding_groups=config.pos_conv_groups,
            mask_time_prob=0.0,
        )
    ).eval()

    prefixes = {
        "conv": "feature_extractor.conv_layers",
        "projection": "feature_projection",
        "pos": "encoder.pos_conv_embed.conv",
        "norm": "encoder.layer_norm",
        "layers": "encoder.layers",
    }

    state = rename(theirs_of_ours(model), prefixes)

    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if f"encoder.pos_conv_embed.conv.{old}" not in peer.state_dict():
            state[f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"] = state.pop(
                f"encoder.pos_conv_embed.conv.{old}"
            )

    result = peer.load_state_dict(state, strict=False)

    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"masked_spec_embed"}

    return peer


def create_torchaudio(model: HubertModel) -> Any:
    from torchaudio.models import wav2vec2_model

    config = model.config

    peer = wav2vec2_model(
        extractor_mode="group_norm" if config.conv_norm == "group" else "layer_norm",
        extractor_conv_layer_config=[tuple(c) for c in config.conv_layers],
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.model_dim,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.pos_conv_kernel,
        encoder_pos_conv_groups=config.pos_conv_groups,
        encoder_num_layers=config.num_layers,
        encoder_num_heads=config.num_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.norm_order == "pre",
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()

    prefixes = {
        "conv": "feature_extractor.conv_layers",
        "projection": "encoder.feature_projection",
        "pos": "encoder.transformer.pos_conv_embed.conv",
        "norm": "encoder.transformer.layer_norm",
        "layers": "encoder.transformer.layers",
    }

    state = rename(theirs_of_ours(model), prefixes)

    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        key = f"encoder.transformer.pos_conv_embed.conv.{old}"

        if key not in peer.state_dict():
            state[f"encoder.transformer.pos_conv_embed.conv.parametrizations.weight.{new}"] = state.pop(key)

    peer.load_state_dict(state)

    return peer


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(config=configs(), num_samples=st.integers(400, 9_000), batch_size=st.integers(1, 3), seed=st.integers(0, 99))
def test_hidden_states_equal_transformers(config: HubertConfig, num_samples: int, batch_size: int, seed: int) -> None:
    model = create_model(config, seed)

    waveforms = torch.randn(batch_size, num_samples)

    with torch.no_grad():
        ours = model.encode(waveforms, taps=range(config.num_layers + 1))

        theirs = create_transformers(model)(waveforms, output_hidden_states=True)

    assert_close(ours.output, theirs.last_hidden_state)

    # Transformers 4 norms the last hidden state of pre-norm models, here it is block N's output (FACTS 5.3).
    for layer in range(config.num_layers):
        assert_close(ours.layers[layer], theirs.hidden_states[layer])


@settings(max_examples=6, deadline=None)
@given(
    config=configs().filter(lambda c: c.conv_norm == "layer"),
    lengths=st.lists(st.integers(400, 9_000), min_size=2, max_size=3),
    seed=st.integers(0, 99),
)
def test_padded_batches_equal_transformers(config: HubertConfig, lengths: list[int], seed: int) -> None:
    """Only for layer-norm extractors: Transformers takes no attention mask for group norm (FACTS, trap T4)."""
    model = create_model(config, seed)

    waveforms = torch.randn(len(lengths), max(lengths))

    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    waveforms[~valid] = 0.0

    with torch.no_grad():
        ours = model.encode(waveforms, lengths).output

        theirs = create_transformers(model)(waveforms, attention_mask=valid.long()).last_hidden_state

    for row, length in enumerate(lengths):
        num_frames = frames.num_frames(length)

        assert_close(ours[row, :num_frames], theirs[row, :num_frames])


@settings(max_examples=10, deadline=None)
@given(config=configs(), num_samples=st.integers(400, 9_000), batch_size=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_layer_equals_torchaudio(config: HubertConfig, num_samples: int, batch_size: int, seed: int) -> None:
    """torchaudio's list holds the raw outputs of all blocks: fairseq's convention, the last one included."""
    model = create_model(config, seed)

    waveforms = torch.randn(batch_size, num_samples)

    peer = create_torchaudio(model)

    with torch.no_grad():
        ours = model.encode(waveforms, taps=range(config.num_layers + 1))

        theirs, _ = peer.extract_features(waveforms)

        final, _ = peer(waveforms)

    for layer in range(1, config.num_layers + 1):
        assert_close(ours.layers[layer], theirs[layer - 1])

    assert_close(ours.output, final)
