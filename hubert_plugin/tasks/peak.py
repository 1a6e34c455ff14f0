"""The share of a GPU's peak that training reaches: how much there is still to be won."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from fairseq2.gang import Gangs
from fairseq2.recipe.config import TrainerSection

from hubert_plugin import frames
from hubert_plugin.criteria.steps import TrainStep
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.flops import count_training_flops
from hubert_plugin.tasks.batching import BatchingTaskConfig

# Operations a second of dense matrix products in half precision with sums in float32, by the makers' data
# sheets; of several that fit a name, the longest counts.
_PEAKS: Final = {
    "V100": 125e12,
    "T4": 65e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}

_MASKED_SHARE: Final = 0.5
"""The share of frames whose heads are counted: about what 8 % of starts and spans of ten frames mask (the heads are a
thousandth of the work)."""


def observe_peak(
    train_step: TrainStep, gangs: Gangs, config: HubertConfig, task_config: object, section: TrainerSection
) -> None:
    """Let ``train_step`` publish the share of the peak, where it is known."""
    # Tasks of other packages may batch as they like.
    if section.mixed_precision.mode == "off" or not isinstance(task_config, BatchingTaskConfig):
        return

    peak = find_peak(
        gangs.root.device, section.mixed_precision.dtype, config, task_config.batching.max_seconds, gangs.dp.size
    )

    if peak is not None:
        train_step.share_of_peak = peak.share


@dataclass(frozen=True)
class Peak:
    """What a rank could do at best."""

    flops: float
    """Floating-point operations a second."""

    flops_per_audio_second: float
    """What the training of one second of audio takes."""

    num_ranks: int = 1

    def share(self, audio_seconds_per_second: float) -> float:
        """Return the share of the peak of all ranks that a throughput of all ranks is."""
        return audio_seconds_per_second * self.flops_per_audio_second / (self.flops * self.num_ranks)


def find_peak(
    device: torch.device, dtype: torch.dtype, config: HubertConfig, max_seconds: float, num_ranks: int
) -> Peak | None:
    """Return the peak of a device; ``None``: it is not known, or nothing is computed in half precision.

    :param max_seconds: The length that most utterances have; attention's share grows with it.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None

    flops = peak_flops(torch.cuda.get_device_name(device))

    if flops is None:
        return None

    num_samples = int(max_seconds * frames.SAMPLE_RATE)

    work = count_training_flops(config, num_samples, _MASKED_SHARE * frames.num_frames(num_samples))

    return Peak(flops, work / max_seconds, num_ranks)


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a GPU by its name, such as ``NVIDIA H100 80GB HBM3``."""
    words = device_name.replace("-", " ").split()

    def fits(name: str) -> bool:
        wanted = name.split()

        return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))

    found = [name for name in _PEAKS if fits(name)]

    # `NVIDIA H100 PCIe` has both words; `H100 80GB HBM3` only the first.
    return _PEAKS[max(found, key=len)] if found else None
