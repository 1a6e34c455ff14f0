"""What makes training on a CPU bearable: memory that is kept between steps, and a precision that the processor has.

Activations are blocks of many megabytes. The C library takes each from the system and gives it back, and the system
fills it with zeros page by page every time: on two cores that was a quarter of a training step of ``base`` (7.3 against
5.2 s in bfloat16, 4 x 7.8 s of audio). Told to keep what is freed, it hands out the same memory again.

oneDNN compiles a kernel for every new shape and keeps the last 1,024: fewer than batches of many lengths need, so that
it compiles the same ones again and again. It is told to keep more.
"""

from __future__ import annotations

import ctypes
import os
import platform

import torch
from fairseq2.logging import log
from fairseq2.recipe.config import TrainerSection

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def suit_cpu(section: TrainerSection) -> None:
    """Prepare this process for training on a CPU.

    Freed memory and compiled kernels are kept. Where bfloat16 is asked for and the processor would emulate it,
    ``section`` is changed to train in float32.
    """
    keep_freed_memory()

    # Read when the first kernel is made.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

    config = section.mixed_precision

    if config.mode != "off" and config.dtype == torch.bfloat16 and not has_bfloat16_units():
        log.info("This processor has no units for bfloat16; training in float32.")

        config.mode = "off"


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for reuse; returns whether it did. Does nothing with other C libraries."""
    if platform.libc_ver()[0] != "glibc":
        return False

    mallopt = ctypes.CDLL(None).mallopt

    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def has_bfloat16_units() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware (AVX-512 BF16 or AMX; Arm's BF16 extension)."""
    if platform.machine() in ("aarch64", "arm64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
