"""The configuration of a HuBERT model and the architectures ``tiny``, ``base``, ``large``, ``xlarge`` and
``ms_hubert_base``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult

from hubert_plugin.frames import SAMPLE_RATE

HUBERT_FAMILY: Final = "hubert"
"""The name of the model family in asset cards and recipe configurations."""

ConvDesc = tuple[int, int, int]
"""Output channels, kernel size and stride of a convolution."""


def _default_conv_layers() -> list[ConvDesc]:
    # FACTS 1.1: total stride 320, receptive field 400.
    return [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]


@dataclass(kw_only=True)
class HubertHeadConfig:
    """One target head: which label set it predicts, from which layer, with how many units."""

    kind: str = "cosine"
    """The name under which the kind of head is registered."""

    label_set: str = "km"
    """The name of the label set."""

    size: int = 0
    """The number of units. 0 means: taken from the labels when training starts."""

    rate: int = 50
    """The rate of the labels in Hz: 50 or 100."""

    layer: int | None = None
    """The 1-based encoder layer whose output is read. ``None``: as ``head_layers`` of the model says."""

    weight: float = 1.0
    """The weight of this head in the loss."""

    options: dict[str, object] = field(default_factory=dict)
    """The configuration of the kind of head."""


@dataclass(kw_only=True)
class HubertConfig(Validatable):
    """Holds the configuration of a HuBERT model. The defaults are those of ``base`` (FACTS 1.1, fairseq
    ``hubert_base_librispeech.yaml``), with no target head."""

    model_dim: int = 768
    """The dimension M of the Transformer."""

    num_layers: int = 12
    """The number of Transformer layers."""

    num_heads: int = 12
    """The number of attention heads. The paper's Table I prints 8 for base; code and released weights use 12."""

    ffn_dim: int = 3072
    """The inner dimension of the feed-forward networks."""

    norm_order: Literal["post", "pre"] = "post"
    """``post``: layer normalisation after each sub-layer (base); ``pre``: before it, and once after the last layer."""

    conv_layers: list[ConvDesc] = field(default_factory=_default_conv_layers)
    """Output channels, kernel size and stride of each convolution. Total stride and receptive field must be 320,
    400."""

    conv_bias: bool = False
    """If true, the convolutions have biases."""

    conv_norm: Literal["group", "layer"] = "group"
    """``group``: group normalisation of the first convolution only (base); ``layer``: layer normalisation of all."""

    group_norm_includes_padding: bool = False
    """If true, group normalisation sees padded samples as fairseq does; else statistics are over valid samples only, so
    that a padded batch gives the results of single utterances."""

    always_project_features: bool = False
    """If true, the convolutions' output is projected to the model dimension even where the dimensions are equal, as
    torchaudio and Transformers do; else only where they differ, as fairseq does (trap T18)."""

    feature_grad_scale: float = 0.1
    """The factor on gradients that enter the convolutions. 0 freezes them."""

    pos_conv_kernel: int = 128
    """The kernel size of the positional convolution, in frames."""

    pos_conv_groups: int = 16
    """The number of groups of the positional convolution."""

    dropout_p: float = 0.1
    """The dropout probability before the first layer and on the outputs of sub-layers."""

    attn_dropout_p: float = 0.1
    """The dropout probability on attention weights."""

    ffn_inner_dropout_p: float = 0.0
    """The dropout probability inside the feed-forward networks (fairseq ``activation_dropout``)."""

    input_dropout_p: float = 0.1
    """The dropout probability on projected features before masking (fairseq ``dropout_input``)."""

    layer_drop_p: float = 0.05
    """The probability of skipping a layer during training."""

    final_dim: int = 256
    """The dimension in which units are compared with projected frames. 0: the model dimension."""

    logit_temp: float = 0.1
    """The temperature by which cosines are divided."""

    tie_final_proj: bool = False
    """If true, all heads share one projection; else each has its own (fairseq ``untie_final_proj`` negated)."""

    codeword_init: Literal["uniform", "normal"] = "uniform"
    """How the codewords start: U[0, 1) as fairseq does, or N(0, 1), whose directions are spread evenly."""

    heads: list[HubertHeadConfig] = field(default_factory=list)
    """The target heads; none for a model that only extracts features."""

    head_layers: Literal["last", "spread", "spread_reverse"] = "last"
    """Which layers heads without a ``layer`` read. ``last``: all the last one (HuBERT, cluster ensembles). ``spread``:
    equidistant layers from 0.4 of the depth to the last, the head with the fewest units lowest (the multicluster
    prediction of MS-HuBERT). ``spread_reverse``: the same layers, the head with the most units lowest."""

    num_dropped_heads: int = 0
    """How many heads, drawn anew for every update and alike on all ranks, take no part in it (MS-HuBERT: 2 of 6)."""

    swap: bool = False
    """If true, training runs a masked and an unmasked view of each utterance and exchanges them at masked frames after
    every layer (MS-HuBERT). Inference and validation are those of HuBERT."""

    swap_loss: Literal["both", "masked", "unmasked"] = "both"
    """Which view's frames are predicted where ``swap`` is set; the frames are those that stand in the view after the
    exchange."""

    normalize_audio: bool = False
    """If true, the model expects each waveform with zero mean and unit variance (fairseq ``task.normalize``)."""

    sample_rate: int = 16_000
    """The sample rate of the waveforms, in Hz."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("model_dim", "num_layers", "num_heads", "ffn_dim", "pos_conv_kernel", "pos_conv_groups"):
            if getattr(self, name) < 1:
                result.add_error(f"`{name}` must be greater than or equal to 1, but is {getattr(self, name)} instead.")

        if self.num_heads > 0 and self.model_dim % self.num_heads != 0:
            result.add_error(f"`model_dim` ({self.model_dim}) must be a multiple of `num_heads` ({self.num_heads}).")

        if self.pos_conv_groups > 0 and self.model_dim % self.pos_conv_groups != 0:
            result.add_error(
                f"`model_dim` ({self.model_dim}) must be a multiple of `pos_conv_groups` ({self.pos_conv_groups})."
            )

        if self.final_dim < 0:
            result.add_error(f"`final_dim` must not be negative, but is {self.final_dim} instead.")

        stride, field_ = 1, 1

        for idx, (channels, kernel, step) in enumerate(self.conv_layers):
            # What no window covers would have no part, and our backward pass needs that every row has one.
            if channels < 1 or not 1 <= step <= kernel:
                result.add_error(
                    f"`conv_layers[{idx}]` must have at least 1 channel and a stride from 1 to its kernel size, but "
                    f"has {channels} channels, kernel size {kernel} and stride {step} instead."
                )

            field_ += (kernel - 1) * stride
            stride *= step

        if (stride, field_) != (320, 400):
            result.add_error(
                f"`conv_layers` must have a total stride of 320 and a receptive field of 400 samples, but has {stride} "
                f"and {field_} instead."
            )

        if self.sample_rate != SAMPLE_RATE:
            result.add_error(f"`sample_rate` must be {SAMPLE_RATE} Hz, but is {self.sample_rate} instead.")

        if not 0.0 <= self.feature_grad_scale <= 1.0:
            result.add_error(f"`feature_grad_scale` must be between 0 and 1, but is {self.feature_grad_scale} instead.")

        for name in ("dropout_p", "attn_dropout_p", "ffn_inner_dropout_p", "input_dropout_p", "layer_drop_p"):
            if not 0.0 <= getattr(self, name) < 1.0:
                result.add_error(f"`{name}` must be at least 0 and below 1, but is {getattr(self, name)} instead.")

        if self.logit_temp <= 0.0:
            result.add_error(f"`logit_temp` must be greater than 0, but is {self.logit_temp} instead.")

        for idx, head in enumerate(self.heads):
            if head.layer is not None and not 1 <= head.layer <= self.num_layers:
                result.add_error(
                    f"`heads[{idx}].layer` must be between 1 and `num_layers` ({self.num_layers}), but is {head.layer} "
                    "instead."
                )

            if head.size < 0:
                result.add_error(f"`heads[{idx}].size` must not be negative, but is {head.size} instead.")

            if not 0.0 <= head.weight < math.inf:
                result.add_error(
                    f"`heads[{idx}].weight` must be finite and at least 0 (less would unlearn), but is {head.weight} "
                    "instead."
                )

        if len({h.label_set for h in self.heads}) != len(self.heads):
            result.add_error("`heads` must name each label set only once.")

        if self.num_dropped_heads < 0 or (self.heads and self.num_dropped_heads >= len(self.heads)):
            result.add_error(
                f"`num_dropped_heads` must be at least 0 and below the number of heads ({len(self.heads)}), but is "
                f"{self.num_dropped_heads} instead."
            )

        return result


def resolve_head_layers(config: HubertConfig) -> list[int]:
    """Return the 1-based layer that each head reads.

    ``spread`` is the "equidistant between the last layer and one intermediate layer" of the MS-HuBERT paper; how its
    predecessor's code reads it is ``linspace`` from 0.4 N to N (FACTS 7). N = 12 and six heads give 4, 5, 7, 8, 10, 12;
    one head reads the last layer.
    """
    last, count = config.num_layers, len(config.heads)

    lowest = max(1, int(0.4 * last))

    spread = [lowest + idx * (last - lowest) // (count - 1) for idx in range(count)] if count > 1 else [last]

    # By size; equal sizes keep their order.
    order = sorted(range(count), key=lambda i: config.heads[i].size)

    if config.head_layers == "spread_reverse":
        order.reverse()

    default = dict(zip(order, spread, strict=False)) if config.head_layers != "last" else dict.fromkeys(order, last)

    return [head.layer or default[idx] for idx, head in enumerate(config.heads)]


def register_hubert_configs(container: DependencyContainer) -> None:
    """Register the architectures of the family with fairseq2."""
    arch = ConfigRegistrar(container, HubertConfig)

    @arch("tiny")
    def tiny() -> HubertConfig:
        # A toy for the embedded corpus and for tests: layer norm first, convolutions that widen as rows get fewer.
        return HubertConfig(
            model_dim=256,
            num_layers=4,
            num_heads=4,
            ffn_dim=1024,
            norm_order="pre",
            # The first layers, which have many rows, would take most of the time. Wide last ones learn in 800 updates
            # of the demo what 128 channels learn in 1,500 (masked accuracy 12.7 %).
            conv_layers=[(32, 10, 5), (64, 3, 2), (128, 3, 2), (192, 3, 2), (256, 3, 2), (256, 2, 2), (256, 2, 2)],
            conv_norm="group",
            feature_grad_scale=1.0,
            pos_conv_kernel=32,
            # A few hundred updates do not learn 36 speakers by heart.
            dropout_p=0.0,
            attn_dropout_p=0.0,
            input_dropout_p=0.0,
            layer_drop_p=0.0,
            final_dim=128,
            codeword_init="normal",
        )

    @arch("base")
    def base() -> HubertConfig:
        return HubertConfig()

    @arch("large")
    def large() -> HubertConfig:
        # FACTS 1.1, fairseq hubert_large_librivox.yaml
        return HubertConfig(
            model_dim=1024,
            num_layers=24,
            num_heads=16,
            ffn_dim=4096,
            norm_order="pre",
            conv_norm="layer",
            feature_grad_scale=1.0,
            dropout_p=0.0,
            attn_dropout_p=0.0,
            input_dropout_p=0.0,
            layer_drop_p=0.0,
            final_dim=768,
            normalize_audio=True,
        )

    @arch("xlarge")
    def xlarge() -> HubertConfig:
        # FACTS 1.1, fairseq hubert_xlarge_librivox.yaml
        config = large()

        config.model_dim = 1280
        config.num_layers = 48
        config.ffn_dim = 5120
        config.final_dim = 1024

        return config

    @arch("ms_hubert_base")
    def ms_hubert_base() -> HubertConfig:
        # FACTS 7: 96,052,096 parameters with these heads. The paper's units: 1000 clusters of features, then 500 of the
        # 1000 centroids, 250 of the 500, and so on.
        return HubertConfig(
            heads=[HubertHeadConfig(label_set=f"km{size}", size=size) for size in (1000, 500, 250, 125, 50, 25)],
            head_layers="spread",
            num_dropped_heads=2,
            swap=True,
        )
