"""Sizes and initial values: those of the reference implementation (FACTS 1.2, 1.3, 2)."""

from __future__ import annotations

import math

import pytest
import torch
from builders import CONV_LAYERS, make_batch, one_thread, tiny_config  # noqa: F401 - a fixture

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.hub import get_hubert_model_hub
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")

# FACTS 1.3: without mask embedding, with it, pretraining with 504, 500, 104, 100 classes.
COUNTS = {
    "base": (94_370_944, 94_371_712, 94_697_600, 94_696_576, 94_595_200, 94_594_176),
    "large": (315_434_112, 315_435_136, 316_609_408, 316_606_336, 316_302_208, 316_299_136),
    "xlarge": (962_492_544, 962_493_824, 964_321_664, 964_317_568, 963_912_064, 963_907_968),
}


def get_config(arch: str) -> HubertConfig:
    return get_hubert_model_hub().get_arch_config(arch)


def count(config: HubertConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_hubert_model(config).parameters())


@pytest.fixture(scope="module")
def base() -> HubertModel:
    torch.manual_seed(0)

    config = HubertConfig(heads=[HubertHeadConfig(size=504)])

    return create_hubert_model(config).requires_grad_(False)


@pytest.mark.parametrize("arch", list(COUNTS))
def test_parameter_counts_are_fairseqs(arch: str) -> None:
    config = get_config(arch)

    encoder, with_mask, *pretraining = COUNTS[arch]

    assert count(config) == with_mask == encoder + config.model_dim

    for size, expected in zip((504, 500, 104, 100), pretraining, strict=True):
        config.heads = [HubertHeadConfig(size=size)]

        assert count(config) == expected


def test_base_is_the_released_configuration() -> None:
    """What is easily copied wrong: 12 heads (trap T28), no convolution biases (trap T34), no normalised audio (T5)."""
    base, large = get_config("base"), get_config("large")

    assert (base.num_heads, base.conv_bias, base.normalize_audio, base.norm_order) == (12, False, False, "post")
    assert (large.num_heads, large.conv_bias, large.normalize_audio, large.norm_order) == (16, False, True, "pre")
    assert (base.feature_grad_scale, large.feature_grad_scale) == (0.1, 1.0)
    assert (base.layer_drop_p, large.layer_drop_p) == (0.05, 0.0)
    assert (base.final_dim, large.final_dim, get_config("xlarge").final_dim) == (256, 768, 1024)


def test_positional_convolution_starts_with_the_std_of_fairseq(base: HubertModel) -> None:
    """Trap T16: initialising a weight-normed weight does nothing, and leaves 0.00737 instead of 0.006379."""
    conv = base.encoder_frontend.pos_encoder.conv

    v, g = conv.weight_v.detach(), conv.weight_g.detach()

    assert g.shape == (1, 1, 128), "trap T17: the norm is over all dimensions but the last"

    weight = v * (g / v.norm(dim=(0, 1), keepdim=True))

    assert float(weight.std()) == pytest.approx(math.sqrt(4 / (128 * 768)), rel=0.01)
    assert math.sqrt(4 / (128 * 768)) == pytest.approx(0.006379, rel=1e-3)
    assert float(conv.bias.abs().max()) == 0.0


def test_transformer_starts_as_bert(base: HubertModel) -> None:
    for name, param in base.encoder.named_parameters():
        if "_proj.weight" in name:
            assert float(param.std()) == pytest.approx(0.02, rel=0.01), name
            assert abs(float(param.mean())) < 2e-4, name
        elif name.endswith("bias"):
            assert float(param.abs().max()) == 0.0, name
        else:
            assert "layer_norm.weight" in name
            assert bool((param == 1.0).all())


def test_mask_embedding_and_codewords_start_uniform(base: HubertModel) -> None:
    for param in (base.masker.temporal_mask_embed, next(iter(base.target_heads)).codewords):
        assert float(param.min()) >= 0.0
        assert float(param.max()) < 1.0
        assert float(param.mean()) == pytest.approx(0.5, abs=0.05)
        assert float(param.std()) == pytest.approx(math.sqrt(1 / 12), rel=0.05)


def test_projections_outside_the_transformer_start_as_pytorchs(base: HubertModel) -> None:
    for proj, fan_in in ((base.encoder_frontend.model_dim_proj, 512), (next(iter(base.target_heads)).proj, 768)):
        bound = 1 / math.sqrt(fan_in)

        for param in (proj.weight, proj.bias):
            assert float(param.abs().max()) <= bound
            assert float(param.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_convolutions_start_with_kaiming_normal(base: HubertModel) -> None:
    for idx, layer in enumerate(base.encoder_frontend.feature_extractor.layers):
        weight = layer.conv.weight

        assert layer.conv.bias is None
        assert float(weight.std()) == pytest.approx(math.sqrt(2 / (weight.size(1) * weight.size(2))), rel=0.05), idx


def test_first_loss_of_504_units_is_about_nine_bits(base: HubertModel) -> None:
    """FACTS 2: 9.08 bits at the start, log2(504) = 8.98 and a little for the codewords' common direction."""
    base.eval()

    batch = make_batch([32_000, 32_000], sizes=[504])

    criterion = MaskedCrossEntropy(base, base, MaskedCrossEntropyConfig())

    with torch.no_grad():
        loss = criterion.compute_loss(criterion.forward(batch), batch)

    bits = float(loss.masked[0]) / math.log(2) / batch.num_masked

    assert bits == pytest.approx(9.08, abs=0.15)


def test_no_projection_where_the_dimensions_are_equal() -> None:
    """Trap T18."""
    model = create_hubert_model(tiny_config(model_dim=16, num_heads=2, pos_conv_groups=4))

    assert model.encoder_frontend.model_dim_proj is None
    assert not any("model_dim_proj" in name for name in model.state_dict())

    assert model.extract_features([torch.randn(4_000)])[0].shape == (12, 16)


def test_head_without_a_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label set 'km' has no size"):
        create_hubert_model(tiny_config(heads=[HubertHeadConfig(label_set="km")]))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"model_dim": 30, "num_heads": 4}, "`model_dim` (30) must be a multiple of `num_heads` (4)"),
        ({"conv_layers": [(16, 10, 5), (16, 3, 2)]}, "total stride of 320"),
        ({"conv_layers": [(0, 10, 5), *CONV_LAYERS[1:]]}, "`conv_layers[0]` must have at least 1 channel"),
        (
            {"conv_layers": [(8, 10, 5), (8, 1, 2), *[(8, 2, 2)] * 3, (8, 1, 2), (8, 3, 2)]},
            "`conv_layers[1]` must have",
        ),
        ({"final_dim": -3}, "`final_dim` must not be negative, but is -3"),
        ({"layer_drop_p": 1.0}, "`layer_drop_p` must be"),
        ({"feature_grad_scale": -0.1}, "`feature_grad_scale` must be"),
        ({"heads": [HubertHeadConfig(size=3, layer=3)]}, "`heads[0].layer` must be between 1 and `num_layers` (2)"),
        ({"heads": [HubertHeadConfig(size=3, weight=-1.0)]}, "`heads[0].weight` must be finite and at least 0"),
        ({"heads": [HubertHeadConfig(size=3), HubertHeadConfig(size=4)]}, "each label set only once"),
    ],
)
def test_configuration_that_cannot_be_is_explained(overrides: dict[str, object], problem: str) -> None:
    result = tiny_config(**overrides).validate()

    assert result.has_error
    assert problem in str(result)
