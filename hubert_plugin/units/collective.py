"""The processes that fit together, and what they exchange; one process needs no gang."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.gang import Gang, ReduceOperation
from torch import Tensor


@final
class Ranks:
    """What k-means asks of a gang. All methods are collective: every rank calls them, in one order."""

    def __init__(self, gang: Gang | None = None) -> None:
        """:param gang: ``None`` is a single process."""
        self._gang = gang if gang is not None and gang.size > 1 else None

        self.rank = self._gang.rank if self._gang is not None else 0
        self.size = self._gang.size if self._gang is not None else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors."""
        if self._gang is None:
            return tensor

        value = tensor.to(self._gang.device, copy=True)

        self._gang.all_reduce(value, ReduceOperation.SUM)

        return value.to(tensor.device)

    def max(self, value: float) -> float:
        """Return the largest of the ranks' numbers."""
        return max(self.gather(value))

    def gather(self, value: float) -> list[float]:
        """Return the numbers of all ranks, in order."""
        return [float(t) for t in self.gather_tensors(torch.tensor([value], dtype=torch.float64))]

    def gather_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks, in order; they have one shape."""
        if self._gang is None:
            return [tensor]

        value = tensor.to(self._gang.device).contiguous()

        values = [torch.empty_like(value) for _ in range(self.size)]

        self._gang.all_gather_to_list(values, value)

        return [v.to(tensor.device) for v in values]

    def from_rank_0(self, tensor: Tensor) -> Tensor:
        """Return the tensor of rank 0; the others' have its shape."""
        if self._gang is None:
            return tensor

        value = tensor.to(self._gang.device, copy=True).contiguous()

        self._gang.broadcast(value)

        return value.to(tensor.device)
