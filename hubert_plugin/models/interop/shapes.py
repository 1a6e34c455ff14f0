"""What the shapes of parameters say of a model: most of its configuration.

Two things they do not say: the number of attention heads, known for the published dimensions, and the strides of the
convolutions, which for every published HuBERT follow from the kernel sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Final, Literal

from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.interop.keys import has_prefix

NUM_HEADS: Final = {768: 12, 1024: 16, 1280: 16}
"""The numbers of attention heads of the published models, by model dimension (FACTS 1.1)."""

_STRIDES: Final = {10: 5, 3: 2, 2: 2}

ARCHITECTURE_FIELDS: Final = (
    "model_dim",
    "num_layers",
    "num_heads",
    "ffn_dim",
    "norm_order",
    "conv_layers",
    "conv_bias",
    "conv_norm",
    "pos_conv_kernel",
    "pos_conv_groups",
)
"""The fields of a configuration that parameters must fit; the rest is about training and the input."""

_CONV: Final = "encoder_frontend.feature_extractor.layers"


def infer_config(
    state_dict: Mapping[str, Tensor],
    norm_order: Literal["post", "pre"],
    *,
    num_heads: int | None = None,
    hint: HubertConfig | None = None,
) -> HubertConfig:
    """Return the configuration that parameters under our names describe.

    :param num_heads: The number of attention heads, where it is known.
    :param hint: A configuration that gives what shapes do not say: heads, strides, dropout, normalisation.
    :raises CheckpointError: A parameter is missing, or the number of heads cannot be told.
    """
    base = hint or _training_defaults(norm_order)

    pos_weight = _get(state_dict, "encoder_frontend.pos_encoder.conv.weight_v")

    model_dim = pos_weight.size(0)

    conv_layers, conv_bias, conv_norm = _infer_convolutions(state_dict, hint)

    layers = {int(m[1]) for k in state_dict if (m := re.match(r"encoder\.layers\.(\d+)\.", k))}

    if not layers or layers != set(range(len(layers))):
        raise CheckpointError(
            f"The Transformer layers must be numbered from 0 without gaps, but those found are {sorted(layers)}."
        )

    num_heads = num_heads or (hint.num_heads if hint else None) or NUM_HEADS.get(model_dim)

    normalize = base.normalize_audio if hint else conv_norm == "layer"

    config = replace(
        base,
        model_dim=model_dim,
        num_layers=len(layers),
        num_heads=num_heads or 1,
        ffn_dim=_get(state_dict, "encoder.layers.0.ffn.inner_proj.weight").size(0),
        norm_order=norm_order,
        conv_layers=conv_layers,
        conv_bias=conv_bias,
        conv_norm=conv_norm,
        pos_conv_kernel=pos_weight.size(2),
        pos_conv_groups=model_dim // pos_weight.size(1),
        always_project_features=(
            conv_layers[-1][0] == model_dim and "encoder_frontend.model_dim_proj.weight" in state_dict
        ),
        heads=_infer_heads(state_dict),
        final_dim=_infer_final_dim(state_dict, base),
        tie_final_proj="target_heads.shared_proj.weight" in state_dict,
        normalize_audio=normalize,
    )

    if num_heads is None:
        raise CheckpointError(
            f"The parameters do not say how many attention heads a model of dimension {model_dim} has (known for "
            f"{', '.join(map(str, NUM_HEADS))}). Give a configuration that does: `load_hubert(…, config=HubertConfig("
            f"num_heads=…, {_differences(config)}))`, or a card with these as `model_config_overrides`."
        )

    return config


def _differences(config: HubertConfig) -> str:
    """Return, as arguments, what parameters say of a configuration that is not the default, but for heads."""
    default = HubertConfig()

    names = [f.name for f in fields(config) if f.name not in ("num_heads", "heads")]

    values = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}

    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def describe_size(config: HubertConfig) -> str:
    """Return the size in words, such as ``12 layers of 768, 12 heads (base)``."""
    sizes = {(768, 12): " (base)", (1024, 24): " (large)", (1280, 48): " (xlarge)"}

    name = sizes.get((config.model_dim, config.num_layers), "")

    return f"{config.num_layers} layers of {config.model_dim}{name}"


def compare_architectures(found: HubertConfig, expected: HubertConfig) -> list[str]:
    """Return a phrase for each field of the architecture in which two configurations differ."""
    problems = []

    for name in ARCHITECTURE_FIELDS:
        theirs, ours = getattr(found, name), getattr(expected, name)

        if name == "conv_layers":
            theirs, ours = [tuple(c) for c in theirs], [tuple(c) for c in ours]

        if theirs != ours:
            problems.append(f"{name}: expected {ours}, found {theirs}")

    return problems


def _training_defaults(norm_order: str) -> HubertConfig:
    if norm_order == "post":
        return HubertConfig()

    # FACTS 1.1: the pre-norm models are trained without dropout and with whole gradients.
    return HubertConfig(
        feature_grad_scale=1.0, dropout_p=0.0, attn_dropout_p=0.0, input_dropout_p=0.0, layer_drop_p=0.0
    )


def _infer_convolutions(
    state_dict: Mapping[str, Tensor], hint: HubertConfig | None
) -> tuple[list[tuple[int, int, int]], bool, Literal["group", "layer"]]:
    conv_layers: list[tuple[int, int, int]] = []

    pattern = re.compile(rf"{re.escape(_CONV)}\.(\d+)\.")

    num_layers = 1 + max((int(m[1]) for k in state_dict if (m := pattern.match(k))), default=0)

    for idx in range(num_layers):
        weight = _get(state_dict, f"{_CONV}.{idx}.conv.weight")

        kernel = weight.size(2)

        if hint is not None and idx < len(hint.conv_layers) and hint.conv_layers[idx][1] == kernel:
            stride = hint.conv_layers[idx][2]
        elif kernel in _STRIDES:
            stride = _STRIDES[kernel]
        else:
            raise CheckpointError(
                f"The parameters do not say the stride of a convolution of kernel size {kernel} (known for "
                f"{', '.join(map(str, _STRIDES))}). Give a configuration with `conv_layers`."
            )

        conv_layers.append((weight.size(0), kernel, stride))

    conv_norm: Literal["group", "layer"] = "group" if has_prefix(state_dict, f"{_CONV}.0.group_norm.") else "layer"

    return conv_layers, f"{_CONV}.0.conv.bias" in state_dict, conv_norm


def _infer_heads(state_dict: Mapping[str, Tensor]) -> list[HubertHeadConfig]:
    heads: list[HubertHeadConfig] = []

    while (rows := state_dict.get(f"target_heads.heads.{len(heads)}.codewords")) is not None:
        name = "km" if not heads else f"km{len(heads) + 1}"

        heads.append(HubertHeadConfig(label_set=name, size=rows.size(0)))

    return heads


def _infer_final_dim(state_dict: Mapping[str, Tensor], base: HubertConfig) -> int:
    rows = state_dict.get("target_heads.heads.0.codewords")

    return base.final_dim if rows is None else rows.size(1)


def _get(state_dict: Mapping[str, Tensor], key: str) -> Tensor:
    try:
        return state_dict[key]
    except KeyError:
        raise CheckpointError(f"The parameters do not describe a HuBERT: '{key}' is missing.") from None


def shape_of(value: object) -> tuple[int, ...] | None:
    """Return the shape of a tensor, or ``None``."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def list_sizes(heads: Sequence[HubertHeadConfig]) -> str:
    """Return label sets and their sizes in words."""
    return ", ".join(f"{h.label_set} ({h.size} units)" for h in heads) or "none"
