"""What a training step gets: waveforms, masks and targets, counted on the CPU.

Letters: N utterances, n samples of the widest one, T frames, S_m masked and S_u unmasked frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from fairseq2.device import Device, SupportsDeviceTransfer
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from hubert_plugin import frames


class SpeechBatch(SupportsDeviceTransfer):
    """What all batches have: waveforms, and where they are from."""

    waveforms: Tensor

    num_samples: list[int]

    ids: list[str]

    num_skipped: int

    @property
    def num_examples(self) -> int:
        return len(self.num_samples)

    @property
    def padded(self) -> bool:
        return min(self.num_samples) != self.waveforms.size(1)

    @property
    def audio_seconds(self) -> float:
        return frames.seconds(sum(self.num_samples))

    @property
    def padded_seconds(self) -> float:
        return frames.seconds(self.waveforms.numel() - sum(self.num_samples))


@final
@dataclass
class HubertBatch(SpeechBatch):
    """A batch of :class:`~hubert_plugin.models.hubert.model.HubertModel`."""

    waveforms: Tensor
    """*Shape:* (N, n), float32; zero where padded."""

    num_samples: list[int]
    """The length of each waveform."""

    temporal_mask: Tensor
    """True at masked frames, never at padding. *Shape:* (N, T)."""

    masked_indices: Tensor
    """The flat indices of masked frames that have labels. *Shape:* (S_m)."""

    unmasked_indices: Tensor
    """The flat indices of unmasked, valid frames that have labels. *Shape:* (S_u)."""

    masked_targets: list[Tensor]
    """For each label set, the units of masked frames. *Shape of each:* (S_m), int64."""

    unmasked_targets: list[Tensor]
    """For each label set, the units of unmasked frames. *Shape of each:* (S_u), int64."""

    ids: list[str]
    """The utterance ids."""

    num_skipped: int = 0
    """How many utterances of the batch could not be read and were left out."""

    @property
    def num_masked(self) -> int:
        return self.masked_indices.numel()

    @property
    def num_unmasked(self) -> int:
        return self.unmasked_indices.numel()

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        if device.type == "cpu":
            return

        move = mover_to(device, non_blocking)

        self.waveforms = move(self.waveforms)
        self.temporal_mask = move(self.temporal_mask)
        self.masked_indices = move(self.masked_indices)
        self.unmasked_indices = move(self.unmasked_indices)
        self.masked_targets = [move(t) for t in self.masked_targets]
        self.unmasked_targets = [move(t) for t in self.unmasked_targets]


def mover_to(device: Device, non_blocking: bool) -> Callable[[Tensor], Tensor]:
    """Return what moves a tensor to ``device``; to a GPU from pinned memory, so that the host need not wait."""

    def move(tensor: Tensor) -> Tensor:
        if device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()

        return tensor.to(device, non_blocking=non_blocking)

    return move


def pad_waveforms(waveforms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return waveforms of *shape* (n,) as rows of one array, padded with zeros. *Shape:* (N, n)."""
    # In numpy, as all that loading threads do: where one has PyTorch copy, OpenMP starts a team of threads for it; with
    # more such threads than cores, those of the training step no longer wait awake (46 -> 57 s of audio per second).
    seqs = np.zeros((len(waveforms), max(w.size for w in waveforms)), dtype=np.float32)

    for row, waveform in enumerate(waveforms):
        seqs[row, : waveform.size] = waveform

    return seqs


def collate(
    waveforms: Sequence[NDArray[np.float32]],
    labels: Sequence[Sequence[NDArray[np.int32]]],
    masks: Sequence[NDArray[np.bool_]],
    ids: Sequence[str],
    num_skipped: int = 0,
) -> HubertBatch:
    """Put utterances into a batch, padded with zeros to the widest.

    :param waveforms: *Shape of each:* (n,).
    :param labels: For each utterance, for each label set, the units of its frames. *Shape of each:* (T,).
    :param masks: *Shape of each:* (T,).
    """
    num_samples = [w.size for w in waveforms]

    seqs = pad_waveforms(waveforms)

    frame_width = frames.num_frames(seqs.shape[1])

    temporal_mask = np.zeros((len(waveforms), frame_width), dtype=bool)

    valid = np.zeros_like(temporal_mask)

    for row, mask in enumerate(masks):
        temporal_mask[row, : mask.size] = mask

        valid[row, : mask.size] = True

    num_sets = len(labels[0])

    targets = np.zeros((num_sets, *temporal_mask.shape), dtype=np.int64)

    for row, sets in enumerate(labels):
        for idx, units in enumerate(sets):
            targets[idx, row, : units.size] = units

    flat_mask, flat_valid = temporal_mask.reshape(-1), valid.reshape(-1)

    masked = np.flatnonzero(flat_mask & flat_valid)
    unmasked = np.flatnonzero(~flat_mask & flat_valid)

    flat_targets = targets.reshape(num_sets, -1)

    return HubertBatch(
        waveforms=torch.from_numpy(seqs),
        num_samples=num_samples,
        temporal_mask=torch.from_numpy(temporal_mask),
        masked_indices=torch.from_numpy(masked),
        unmasked_indices=torch.from_numpy(unmasked),
        masked_targets=[torch.from_numpy(t[masked]) for t in flat_targets],
        unmasked_targets=[torch.from_numpy(t[unmasked]) for t in flat_targets],
        ids=list(ids),
        num_skipped=num_skipped,
    )
