"""The valid frames of a padded batch, one utterance after another, so that nothing is computed on padding.

Everything in a Transformer layer but attention sees one frame at a time; attention sees one utterance at a time
(``attention.py``). Measurements are in ``benchmarks/README.md``.

Letters: N utterances, T frames of the longest, R valid frames in all, M model dimension.
"""

from __future__ import annotations

from typing import final

import torch
from fairseq2.nn import BatchLayout
from torch import Tensor


@final
class FramePacking:
    """Where the valid frames of a padded batch stand once they are packed."""

    layout: BatchLayout
    """The layout of the packed frames."""

    def __init__(self, padded: BatchLayout) -> None:
        """
        :param padded: The layout of the padded batch.
        """
        lengths, width = padded.seq_lens, padded.width

        device = padded.seq_lens_pt.device

        self._shape = (len(lengths), width)

        # From the lengths, which are known on the CPU: no host synchronisation.
        indices = torch.cat([torch.arange(row * width, row * width + n) for row, n in enumerate(lengths)])

        self._indices = indices.to(device, non_blocking=True)

        self.layout = BatchLayout((sum(lengths),), lengths, packed=True, device=device)

    def pack(self, seqs: Tensor) -> Tensor:
        """Return the valid frames of ``seqs`` (N, T, M). *Shape:* (R, M)."""
        return seqs.flatten(0, 1).index_select(0, self._indices)

    def unpack(self, packed: Tensor) -> Tensor:
        """Return ``packed`` (R, M) with zeros for padding. *Shape:* (N, T, M)."""
        batch_size, width = self._shape

        seqs = packed.new_zeros((batch_size * width, packed.size(1)))

        return seqs.index_copy(0, self._indices, packed).unflatten(0, (batch_size, width))

    def pack_permutation(self, permutation: Tensor) -> Tensor:
        """Return a permutation of valid frames, given as flat indices into N * T, for the packed frames.

        :param permutation: Padding stays where it is. *Shape:* (N * T).
        :returns: *Shape:* (R).
        """
        num_packed = self._indices.numel()

        places = torch.zeros_like(permutation)

        places[self._indices] = torch.arange(num_packed, device=permutation.device)

        return places[permutation[self._indices]]
