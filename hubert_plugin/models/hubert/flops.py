"""Floating-point operations of HuBERT, counted from its shapes (FACTS 11; 1 multiply-add = 2 operations)."""

from __future__ import annotations

from hubert_plugin.models.hubert.config import HubertConfig


def count_forward_flops(config: HubertConfig, num_samples: int, num_masked: float) -> dict[str, float]:
    """Count a forward pass of one utterance.

    Normalisations, activations and softmax are left out, as in FACTS 11. Only masked frames are counted for the heads.

    :param num_masked: The masked frames of the utterance.
    """
    length, input_dim, conv = num_samples, 1, 0.0

    for output_dim, kernel, stride in config.conv_layers:
        length = (length - kernel) // stride + 1

        conv += 2.0 * length * input_dim * output_dim * kernel

        input_dim = output_dim

    dim = config.model_dim

    proj = 2.0 * length * input_dim * dim if input_dim != dim else 0.0

    pos_conv = 2.0 * length * dim * (dim // config.pos_conv_groups) * config.pos_conv_kernel

    linear = config.num_layers * 2.0 * length * (4 * dim * dim + 2 * dim * config.ffn_dim)

    attention = config.num_layers * 4.0 * length * length * dim

    final_dim = config.final_dim or dim

    heads = sum(2.0 * num_masked * final_dim * (dim + head.size) for head in config.heads)

    return {
        "conv": conv,
        "proj": proj,
        "pos_conv": pos_conv,
        "linear": linear,
        "attention": attention,
        "heads": heads,
    }


def count_training_flops(config: HubertConfig, num_samples: int, num_masked: float) -> float:
    """Count forward and backward pass of one utterance: three times the forward pass (FACTS 11).

    MS-HuBERT's two views pass the convolutions once.
    """
    parts = count_forward_flops(config, num_samples, num_masked)

    if config.swap:
        parts = {name: value if name in ("conv", "proj") else 2.0 * value for name, value in parts.items()}

    return 3.0 * sum(parts.values())
