"""Devices and number formats named by users."""

from __future__ import annotations

import torch
from fairseq2.data_type import DataType
from fairseq2.device import Device

from hubert_plugin.errors import ConfigError


def parse_device(name: Device | str) -> Device:
    """Return the device ``name``.

    :raises ConfigError: This machine has no such device.
    """
    try:
        device = torch.device(name)

        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as ex:
        # What PyTorch raises for unknown names, missing builds (CUDA asserts), other types, and devices without memory.
        reason = str(ex).splitlines()[0].rstrip(".")

        raise ConfigError(
            f"`device` must be a device of this machine, such as 'cpu' or 'cuda:0', but is '{name}' ({reason})."
        ) from None

    if device.type == "meta":
        raise ConfigError(
            "`device` must be a device of this machine, such as 'cpu' or 'cuda:0', but is 'meta', where tensors have "
            "shapes and no values."
        )

    return device


def check_float_type(dtype: object) -> DataType:
    """Return ``dtype`` if a model can compute in it.

    :raises ConfigError: It is no floating-point type.
    """
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1:
        return dtype

    raise ConfigError(
        f"`dtype` must be torch.float32, torch.bfloat16, torch.float16 or torch.float64, but is {dtype!r}."
    )
