"""Target heads: from encoder outputs to logits over units.

A cosine head projects a frame to *d* dimensions and scores each unit by the cosine to its codeword, divided by a
temperature (paper eq. 3; fairseq ``hubert.py:384-394``). fairseq writes the logits as a [C+1, S, d] tensor with the
positive first; over all codewords it is the same softmax, computed here as one normalised matrix product in float32
(FACTS 2; DESIGN, decision 2).

Letters: S frames to predict, M model dimension, C units, d projected dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

import torch
from fairseq2.nn import Linear
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from torch.nn import Module, ModuleList, Parameter
from torch.nn.functional import linear, normalize
from typing_extensions import override

from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.registry import TargetHead, register_target_head


class TargetHeadBuilder(Protocol):
    """Makes a head; ``shared_proj`` is the projection of all heads where ``config.tie_final_proj`` is set."""

    def __call__(
        self, config: HubertConfig, head_config: HubertHeadConfig, shared_proj: Linear | None
    ) -> TargetHead: ...


@final
class CosineHead(TargetHead):
    """Scores units by the cosine between projected frame and codeword."""

    codewords: Parameter

    def __init__(self, config: HubertConfig, head_config: HubertHeadConfig, shared_proj: Linear | None) -> None:
        super().__init__()

        self.label_set = head_config.label_set
        self.size = head_config.size
        self.layer = head_config.layer or config.num_layers
        self.weight = head_config.weight
        self.temperature = config.logit_temp
        self.init = config.codeword_init

        dim = config.final_dim or config.model_dim

        self.proj: Linear | None

        self.register_module("proj", Linear(config.model_dim, dim, bias=True) if shared_proj is None else None)

        # In a tuple, so that the shared module is not registered once more under this head.
        self._shared = (shared_proj,)

        self.codewords = Parameter(torch.empty(head_config.size, dim))

        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.init == "uniform":
            torch.nn.init.uniform_(self.codewords)  # fairseq hubert.py:326-329
        else:
            torch.nn.init.normal_(self.codewords)

    @override
    def forward(self, seqs: Tensor) -> Tensor:
        proj = self.proj if self.proj is not None else self._shared[0]

        assert proj is not None

        projected = proj(seqs)

        # Cosine, temperature and everything after in float32 under any autocast (trap T35).
        with torch.autocast(device_type=seqs.device.type, enabled=False):
            x = normalize(projected.float(), dim=-1)

            e = normalize(self.codewords.float(), dim=-1)

            # The temperature goes into the smaller factor.
            return linear(x, e / self.temperature)

    @override
    def extra_repr(self) -> str:
        return f"label_set={self.label_set}, size={self.size}, layer={self.layer}, temperature={self.temperature:G}"


@final
class LinearHead(TargetHead):
    """Scores units by a plain linear layer: the usual softmax classifier, for comparison."""

    def __init__(self, config: HubertConfig, head_config: HubertHeadConfig, shared_proj: Linear | None) -> None:
        super().__init__()

        self.label_set = head_config.label_set
        self.size = head_config.size
        self.layer = head_config.layer or config.num_layers
        self.weight = head_config.weight

        self.proj = Linear(config.model_dim, head_config.size, bias=True)

    @override
    def forward(self, seqs: Tensor) -> Tensor:
        return self.proj(seqs).float()  # type: ignore[no-any-return]


@final
class TargetHeads(Module):
    """All heads of a model."""

    heads: ModuleList

    def __init__(self, heads: Sequence[TargetHead], shared_proj: Linear | None) -> None:
        super().__init__()

        self.heads = ModuleList(heads)

        self.shared_proj: Linear | None

        self.register_module("shared_proj", shared_proj)

    def taps(self, heads: Sequence[int] | None = None) -> set[int]:
        """Return the encoder layers that the heads of these indices (``None``: all) read."""
        return {h.layer for h in self._select(heads)}

    def _select(self, heads: Sequence[int] | None) -> list[TargetHead]:
        every: list[TargetHead] = list(self)

        return every if heads is None else [every[i] for i in heads]

    def parameters_without(self, heads: Sequence[int]) -> list[Parameter]:
        """Return the parameters that are not of the heads of these indices, the shared projection among them.

        Whether a head uses that one, only the head knows.
        """
        own = {id(p) for head in self._select(heads) for p in head.parameters()}

        return [p for p in self.parameters() if id(p) not in own]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def forward(
        self, layer_outputs: dict[int, Tensor], indices: Tensor, heads: Sequence[int] | None = None
    ) -> list[Tensor]:
        """
        :param layer_outputs: The outputs of the tapped layers. *Shape of each:* (N, T, M).
        :param indices: The flat indices (into N * T) of the frames to predict. *Shape:* (S).
        :param heads: The indices of the heads that are asked; ``None``: all.
        :returns: For each of these heads, logits in float32. *Shape of each:* (S, C).
        """
        gathered = {layer: layer_outputs[layer].flatten(0, 1).index_select(0, indices) for layer in self.taps(heads)}

        return [head(gathered[head.layer]) for head in self._select(heads)]

    if TYPE_CHECKING:
        __call__ = forward


@dataclass(kw_only=True)
class CosineHeadConfig:
    """The cosine head has no options of its own: dimension, temperature and start are the model's."""


@dataclass(kw_only=True)
class LinearHeadConfig:
    """The linear head has no options."""


def register_hubert_heads(container: DependencyContainer) -> None:
    """Register the kinds of target heads: ``cosine`` and ``linear``."""

    def cosine(resolver: DependencyResolver, config: CosineHeadConfig) -> TargetHeadBuilder:
        return CosineHead

    def linear_(resolver: DependencyResolver, config: LinearHeadConfig) -> TargetHeadBuilder:
        return LinearHead

    register_target_head(container, "cosine", CosineHeadConfig, cosine)
    register_target_head(container, "linear", LinearHeadConfig, linear_)
