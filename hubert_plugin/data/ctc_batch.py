"""A batch of recognition: waveforms, padded and never cut, masks, and the symbols of the transcripts.

Letters: N utterances, n samples of the widest one, T frames, M model dimension, S symbols of all transcripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from fairseq2.device import Device
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.data.batch import SpeechBatch, mover_to, pad_waveforms


@final
@dataclass
class CtcBatch(SpeechBatch):
    """A batch of :class:`~hubert_plugin.models.hubert_ctc.model.HubertCtcModel`."""

    waveforms: Tensor
    """*Shape:* (N, n), float32; zero where padded."""

    num_samples: list[int]
    """The length of each waveform."""

    temporal_mask: Tensor | None
    """True at masked frames, never at padding; ``None``: nothing is masked. *Shape:* (N, T)."""

    channel_mask: Tensor | None
    """True at masked channels; ``None``: nothing is masked. *Shape:* (N, M)."""

    targets: Tensor
    """The symbols of all transcripts, one after another. *Shape:* (S), int64."""

    target_lengths: list[int]
    """The number of symbols of each transcript."""

    texts: list[str]
    """The normalised transcripts."""

    ids: list[str]
    """The utterance ids."""

    num_skipped: int = 0
    """How many utterances of the batch could not be read and were left out."""

    @property
    def num_frames(self) -> list[int]:
        """The number of frames of each utterance."""
        return [frames.num_frames(n) for n in self.num_samples]

    @property
    def num_symbols(self) -> int:
        return sum(self.target_lengths)

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        if device.type == "cpu":
            return

        move = mover_to(device, non_blocking)

        self.waveforms = move(self.waveforms)
        self.targets = move(self.targets)

        if self.temporal_mask is not None:
            self.temporal_mask = move(self.temporal_mask)

        if self.channel_mask is not None:
            self.channel_mask = move(self.channel_mask)


def collate_ctc(
    waveforms: Sequence[NDArray[np.float32]],
    targets: Sequence[NDArray[np.int64]],
    texts: Sequence[str],
    ids: Sequence[str],
    *,
    temporal_masks: Sequence[NDArray[np.bool_]] | None = None,
    channel_masks: Sequence[NDArray[np.bool_]] | None = None,
    num_skipped: int = 0,
) -> CtcBatch:
    """Put utterances into a batch, padded with zeros to the widest.

    :param waveforms: *Shape of each:* (n,).
    :param targets: The symbols of each transcript. *Shape of each:* (S,).
    :param temporal_masks: *Shape of each:* (T,).
    :param channel_masks: *Shape of each:* (M,).
    """
    num_samples = [w.size for w in waveforms]

    seqs = pad_waveforms(waveforms)

    temporal_mask = None

    if temporal_masks is not None:
        temporal_mask = np.zeros((len(waveforms), frames.num_frames(seqs.shape[1])), dtype=bool)

        for row, mask in enumerate(temporal_masks):
            temporal_mask[row, : mask.size] = mask

    return CtcBatch(
        waveforms=torch.from_numpy(seqs),
        num_samples=num_samples,
        temporal_mask=None if temporal_mask is None else torch.from_numpy(temporal_mask),
        channel_mask=None if channel_masks is None else torch.from_numpy(np.stack(channel_masks)),
        targets=torch.from_numpy(np.concatenate(targets)),
        target_lengths=[t.size for t in targets],
        texts=list(texts),
        ids=list(ids),
        num_skipped=num_skipped,
    )
