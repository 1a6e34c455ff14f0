"""Where the time of a step goes: self time of operators, by kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import print_table, synchronize
from hubert_plugin.models.hubert.config import HubertConfig

_KINDS = (
    ("optimizer, clipping", r"adam|foreach|linalg_vector_norm|_fused_"),
    ("attention", r"scaled_dot_product|flash|fmha|bmm|baddbmm|softmax(?!.*log)"),
    ("loss", r"log_softmax|nll_loss|index_select|index_add|embedding"),
    ("convolutions", r"conv"),
    ("linear", r"addmm|aten::mm$|[mM]atmul|linear|gemm|cutlass|nvjet|sm\d+_xmma"),
    ("GELU", r"gelu"),
    ("norms", r"norm"),
    ("dropout", r"dropout|bernoulli|rand"),
    ("casts, copies", r"copy_|_to_copy|clone|contiguous|Memcpy|cat$"),
    ("fill", r"fill_|zero_|Memset"),
    (
        "element-wise",
        r"aten::(add|mul|div|sub|sum|mean|pow|sqrt|rsqrt|where|masked_fill|index_put|neg|square)|elementwise",
    ),
)
"""Kinds and the operators that belong to them; the first match wins."""


def profile_step(step: Callable[[], Any], config: HubertConfig, device: torch.device, calls: int = 1) -> dict[str, Any]:
    """Profile ``calls`` calls of ``step``, warmed up before.

    :returns: The share of each kind, and the operators with the most self time.
    """
    step()

    synchronize(device)

    activities = [ProfilerActivity.CPU]

    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)

    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for _ in range(calls):
            step()

        synchronize(device)

    seconds: dict[str, float] = defaultdict(float)

    operators: dict[str, float] = defaultdict(float)

    pos_conv = [config.model_dim, config.model_dim // config.pos_conv_groups, config.pos_conv_kernel]

    for event in profiler.key_averages(group_by_input_shape=True):
        micros = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total

        kind = _kind(event.key)

        if kind == "convolutions" and pos_conv in [list(s) for s in event.input_shapes or [] if s]:
            kind = "positional convolution"

        seconds[kind] += micros / 1e6 / calls

        operators[event.key] += micros / 1e6 / calls

    total = sum(seconds.values())

    return {
        "seconds": total,
        "kinds": dict(sorted(((k, v / total) for k, v in seconds.items()), key=lambda kv: -kv[1])),
        "operators": dict(sorted(((k, v / total) for k, v in operators.items()), key=lambda kv: -kv[1])[:15]),
    }


def _kind(operator: str) -> str:
    for kind, pattern in _KINDS:
        if re.search(pattern, operator):
            return kind

    return "other"


def print_profile(title: str, result: dict[str, Any]) -> None:
    print(f"\nprofile of {title}: {result['seconds']:.2f} s of operators per step")

    for what in ("kinds", "operators"):
        print_table([what, "share"], [[k, f"{v:.1%}"] for k, v in result[what].items() if v >= 0.002])
