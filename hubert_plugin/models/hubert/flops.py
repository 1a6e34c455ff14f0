"""Floating-point operations of HuBERT, counted from its shapes (FACTS 11; 1 multiply-add = 2 operations)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    # Plans count, too, without torch.
    from hubert_plugin.models.hubert.config import HubertConfig


class EncoderShape(Protocol):
    """What the work of an encoder depends on; a :class:`HubertConfig` is one."""

    @property
    def conv_layers(self) -> Sequence[Sequence[int]]: ...

    @property
    def model_dim(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def ffn_dim(self) -> int: ...

    @property
    def pos_conv_kernel(self) -> int: ...

    @property
    def pos_conv_groups(self) -> int: ...


def count_encoder_flops(shape: EncoderShape, num_samples: int, num_layers: int | None = None) -> dict[str, float]:
    """Count a forward pass of one utterance through the encoder, by its parts.

    Normalisations, activations and softmax are left out, as in FACTS 11.

    :param num_layers: How many Transformer layers run; ``None``: all of them.
    """
    length, input_dim, conv = num_samples, 1, 0.0

    for output_dim, kernel, stride in shape.conv_layers:
        length = (length - kernel) // stride + 1

        conv += 2.0 * length * input_dim * output_dim * kernel

        input_dim = output_dim

    dim = shape.model_dim

    layers = shape.num_layers if num_layers is None else min(num_layers, shape.num_layers)

    return {
        "conv": conv,
        "proj": 2.0 * length * input_dim * dim if input_dim != dim else 0.0,
        "pos_conv": 2.0 * length * dim * (dim // shape.pos_conv_groups) * shape.pos_conv_kernel,
        "linear": layers * 2.0 * length * (4 * dim * dim + 2 * dim * shape.ffn_dim),
        "attention": layers * 4.0 * length * length * dim,
    }


def count_forward_flops(config: HubertConfig, num_samples: int, num_masked: float) -> dict[str, float]:
    """Count a forward pass of one utterance through encoder and heads, of which only masked frames are counted.

    :param num_masked: The masked frames of the utterance.
    """
    final_dim = config.final_dim or config.model_dim

    heads = sum(2.0 * num_masked * final_dim * (config.model_dim + head.size) for head in config.heads)

    return {**count_encoder_flops(config, num_samples), "heads": heads}


def count_training_flops(config: HubertConfig, num_samples: int, num_masked: float) -> float:
    """Count forward and backward pass of one utterance: three times the forward pass (FACTS 11).

    MS-HuBERT's two views pass the convolutions once.
    """
    parts = count_forward_flops(config, num_samples, num_masked)

    if config.swap:
        parts = {name: value if name in ("conv", "proj") else 2.0 * value for name, value in parts.items()}

    return 3.0 * sum(parts.values())
