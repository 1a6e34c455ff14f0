"""A data-parallel facade around another one, for what comes between the gradients and the optimizer."""

from __future__ import annotations

from fairseq2.nn.data_parallel import DataParallelFacade
from fairseq2.typing import ContextManager
from torch import Tensor
from typing_extensions import override


class DelegatingFacade(DataParallelFacade):
    """Does what ``inner`` does. fairseq2's trainer clips through it when the gradients of all ranks are in place."""

    def __init__(self, inner: DataParallelFacade) -> None:
        self._inner = inner

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        return self._inner.clip_grad_norm(max_norm)

    @override
    def state_dict(self) -> dict[str, object]:
        return self._inner.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._inner.load_state_dict(state_dict)

    @override
    def no_sync(self) -> ContextManager[None]:
        return self._inner.no_sync()

    @override
    def summon_full_parameters(self) -> ContextManager[None]:
        return self._inner.summon_full_parameters()
