"""Accumulates gradients of sharded parameters (FSDP 2) without summing them over ranks for every batch.

fairseq2 0.8.1 (``nn/fsdp/fsdp2.py``) asks for ``set_requires_grad_sync``; PyTorch calls it
``set_requires_gradient_sync``. So an update of more than one batch with ``trainer.grad_accumulation.no_sync`` would end
in an ``AttributeError``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.typing import ContextManager
from torch.distributed.fsdp import FSDPModule
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.tasks.facade import DelegatingFacade


def let_shards_accumulate(module: Module) -> None:
    """Let ``no_sync`` work if ``module`` is sharded by FSDP 2. Call before the trainer is created.

    :param module: What is trained: the model, or its data-parallel wrapper.
    """
    if isinstance(module, FSDPModule):
        set_data_parallel_facade(module, _Fsdp2Facade(get_data_parallel_facade(module), module))


@final
class _Fsdp2Facade(DelegatingFacade):
    """Asks PyTorch, by its own name, to sum no gradients."""

    def __init__(self, inner: DataParallelFacade, module: FSDPModule) -> None:
        super().__init__(inner)

        self._module = module

    @override
    def no_sync(self) -> ContextManager[None]:
        return self._no_sync()

    @contextmanager
    def _no_sync(self) -> Iterator[None]:
        self._module.set_requires_gradient_sync(False)

        try:
            yield
        finally:
            self._module.set_requires_gradient_sync(True)
