"""The share of a GPU's peak in the log: its arithmetic, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from builders import tiny_config
from fairseq2.runtime.dependency import get_dependency_resolver

from hubert_plugin.criteria.steps import TrainStep
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.flops import count_training_flops
from hubert_plugin.tasks.peak import find_peak, peak_flops


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10G", None),
        ("Quadro of tomorrow", None),
    ],
)
def test_peaks_are_found_by_name(name: str, tera: float | None) -> None:
    assert peak_flops(name) == (None if tera is None else tera * 1e12)


def test_share_is_work_over_what_all_ranks_could_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    base = get_dependency_resolver().resolve(HubertConfig, key="base")

    peak = find_peak(torch.device("cuda"), torch.bfloat16, base, 15.625, 2)

    assert peak is not None

    # FACTS 11: 46.1 GFLOP for training on a second of audio; a target of 4,300 s on one GPU is 20 % of its peak.
    assert peak.flops_per_audio_second == pytest.approx(46.1e9, rel=0.02)
    assert peak.share(2 * 4_300) == pytest.approx(0.20, abs=0.005)


def test_there_is_none_on_cpus_in_float32_and_on_unknown_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()

    assert find_peak(torch.device("cpu"), torch.bfloat16, config, 5.0, 1) is None

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    assert find_peak(torch.device("cuda"), torch.float32, config, 5.0, 1) is None

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")

    assert find_peak(torch.device("cuda"), torch.float16, config, 5.0, 1) is None


def test_two_views_pass_the_convolutions_once() -> None:
    one, two = (count_training_flops(tiny_config(swap=swap), 80_000, 100.0) for swap in (False, True))

    assert one < two < 2.0 * one


def test_the_step_publishes_it_with_the_throughput() -> None:
    step = TrainStep(SimpleNamespace(process_metric_values=lambda values: None), lambda: 0.0)  # type: ignore[arg-type]

    def watch(seconds: float) -> Any:
        return SimpleNamespace(get_elapsed_time=lambda: seconds)

    step.observe(SimpleNamespace(_data_watch=watch(0.5), _compute_watch=watch(1.5)))  # type: ignore[arg-type]

    values: dict[str, object] = {"audio_seconds": 30.0}

    step.process_metric_values(values)

    assert "share_of_peak" not in values

    step.share_of_peak = lambda throughput: throughput / 60.0

    step.process_metric_values(values)

    assert (values["audio_seconds_per_second"], values["share_of_peak"]) == (15.0, 0.25)
