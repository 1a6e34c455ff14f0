"""Muon for the convolutions, AdamW for everything else.

Muon (K. Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the
orthogonal matrix next to it, U Vᵀ of its singular value decomposition U S Vᵀ: all directions of the matrix learn at one
pace. HuBERT's convolutions start as random filters and are slow to learn: on the embedded corpus, 600 updates gave
masked accuracy 13.0 % and PNMI 0.275, 1,000 of AdamW alone 13.4 % and 0.261 (``benchmarks/README.md``, single runs).
The papers' presets use AdamW.

Letters: C_in and C_out channels, k kernel size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import OptimizerSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.frontend import ConvFeatureExtractor, ConvLayer
from hubert_plugin.registry import prepare_section
from hubert_plugin.tasks.cpu import has_bfloat16_units
from hubert_plugin.tasks.rate_limits import optimizer_problems

MUON_OPTIMIZER: Final = "muon"

_MATRICES: Final = "is_matrices"


@dataclass(kw_only=True)
class MuonConfig(Validatable):
    """Holds the configuration of the optimizer ``muon``."""

    lr: float = 1e-3
    """The learning rate of AdamW: of all parameters but the convolutions' weights."""

    betas: tuple[float, float] = (0.9, 0.98)
    """The decay of AdamW's two averages."""

    eps: float = 1e-6
    """What AdamW adds to its denominator."""

    weight_decay: float = 0.01
    """The weight decay of all parameters, times their learning rate."""

    conv_lr: float = 0.02
    """The learning rate of the weights of all convolutions but the first. The root mean square of an update is this
    over √(k C_in)."""

    momentum: float = 0.95
    """The decay of the convolutions' average gradient."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("lr", "conv_lr", "eps", "weight_decay"):
            if getattr(self, name) < 0.0:
                result.add_error(f"`{name}` must not be negative, but is {getattr(self, name)} instead.")

        for name, value in (("betas[0]", self.betas[0]), ("betas[1]", self.betas[1]), ("momentum", self.momentum)):
            if not 0.0 <= value < 1.0:
                result.add_error(f"`{name}` must be at least 0 and below 1, but is {value} instead.")

        return result


@dataclass(kw_only=True)
class HubertOptimizerSection(OptimizerSection, Validatable):
    """Selects an optimizer: one of fairseq2's, or ``muon``. A preset may name another than the default's."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        prepare_section(self, resolver, Optimizer)

        super().structure(resolver)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for problem in optimizer_problems(self.config):
            result.add_error(problem)

        return result


@final
class MuonAdamW(AdamW):
    """Updates the matrices with Muon, everything else with AdamW."""

    def __init__(self, matrices: Sequence[Parameter], others: Sequence[Parameter], config: MuonConfig) -> None:
        """
        :param matrices: What is seen as a matrix, from its first dimension to all others.
        """
        groups: list[dict[str, Any]] = [
            {"params": list(others), _MATRICES: False},
            {"params": list(matrices), _MATRICES: True, "lr": config.conv_lr, "momentum": config.momentum},
        ]

        super().__init__(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

        # Fused AdamW looks for overflows in float16 by itself, Muon does not: the scaler is to skip such updates.
        self._step_supports_amp_scaling = False

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None

        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # AdamW passes over parameters without gradient.
        hidden: list[tuple[Tensor, Tensor]] = []

        for group in self.param_groups:
            if not group[_MATRICES]:
                continue

            for param in group["params"]:
                if param.grad is not None:
                    self._update_matrix(param, param.grad, group)

                    hidden.append((param, param.grad))

                    param.grad = None

        try:
            super().step()
        finally:
            for param, grad in hidden:
                param.grad = grad

        return loss

    def _update_matrix(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]

        if not state:
            state["step"] = torch.zeros(())  # what AdamW wants of every state that is loaded
            state["momentum_buffer"] = torch.zeros_like(param)

        momentum, average = group["momentum"], state["momentum_buffer"]

        average.lerp_(grad, 1.0 - momentum)

        # Nesterov's form.
        update = orthogonalize(grad.lerp(average, momentum).flatten(1))

        num_rows, num_columns = update.shape

        scale = max(1.0, num_rows / num_columns) ** 0.5

        param.mul_(1.0 - group["lr"] * group["weight_decay"])

        param.add_(update.view_as(param), alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about U Vᵀ, where ``matrix`` is U S Vᵀ: five Newton-Schulz iterations.

    The coefficients are those of the source above; singular values end between 0.7 and 1.2. Half precision is enough.

    :param matrix: *Shape:* (R, C).
    :returns: *Shape:* (R, C), in float32.
    """
    half = matrix.device.type != "cpu" or has_bfloat16_units()

    x = matrix.to(torch.bfloat16 if half else torch.float32)

    is_tall = x.size(0) > x.size(1)

    if is_tall:
        x = x.mT

    x = x / x.norm().clamp(min=1e-7)

    for _ in range(5):
        gram = x @ x.mT

        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x

    return (x.mT if is_tall else x).float()


def create_muon(model: Module, config: MuonConfig) -> MuonAdamW:
    """Return the optimizer of ``model``.

    :raises ConfigError: The parameters are sharded (FSDP): no rank has a whole matrix.
    """
    params = list(model.parameters())

    # Of FSDP's two versions, one shards the parameters themselves, the other one wraps modules.
    if any(isinstance(p, DTensor) for p in params) or any(
        isinstance(m, FullyShardedDataParallel) for m in model.modules()
    ):
        raise ConfigError(
            "`optimizer.name` is 'muon', which needs whole matrices, but `trainer.data_parallelism=fsdp` shards them. "
            "Set `optimizer.name=adamw`, or `trainer.data_parallelism=ddp`."
        )

    # The first convolution has a window of ten samples: a vector a channel, not a matrix.
    layers = [layer for m in model.modules() if isinstance(m, ConvFeatureExtractor) for layer in m.layers[1:]]

    matrices = {id(layer.conv.weight) for layer in layers if isinstance(layer, ConvLayer)}

    return MuonAdamW(
        [p for p in params if id(p) in matrices and p.requires_grad],
        [p for p in params if id(p) not in matrices and p.requires_grad],
        config,
    )


def register_muon(container: DependencyContainer) -> None:
    """Register the optimizer under ``muon``."""

    def create(resolver: DependencyResolver, config: MuonConfig) -> Optimizer:
        return create_muon(resolver.resolve(Module), config)

    register_component(container, Optimizer, MUON_OPTIMIZER, MuonConfig, create)
