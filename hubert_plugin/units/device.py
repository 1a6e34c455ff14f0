"""Devices named in configurations."""

from __future__ import annotations

import torch

from hubert_plugin.errors import ConfigError


def parse_device(name: str | None, default: torch.device) -> torch.device:
    """Return the device ``name``, ``default`` if there is no name.

    :raises ConfigError: There is no such device.
    """
    if name is None:
        return default

    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"`device` must be a device such as 'cpu' or 'cuda', but is '{name}'.") from None

    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"`device` is '{name}', but PyTorch finds no CUDA device. Use 'cpu'.")

    return device
