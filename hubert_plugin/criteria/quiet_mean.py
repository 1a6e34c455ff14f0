"""A mean of which nothing may have been counted."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.metrics import Mean
from torch import Tensor
from typing_extensions import override


@final
class QuietMean(Mean):
    """fairseq2's, but 0 without a word where there was nothing, as for a head that took no part.

    torcheval's logs a warning for every mean that is 0, and waits for the device to know.
    """

    weighted_sum: Tensor
    weights: Tensor

    @override
    @torch.inference_mode()
    def compute(self) -> Tensor:
        return self.weighted_sum / torch.where(self.weights == 0.0, torch.ones_like(self.weights), self.weights)
