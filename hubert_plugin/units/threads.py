"""Threads that each compute with one thread of PyTorch's and NumPy's own: for many small, equal pieces of work.

What a piece yields then depends on the piece alone, neither on how many threads there are nor on how they share a
matrix product.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from types import TracebackType
from typing import TypeVar, final

import torch
from typing_extensions import Self

A = TypeVar("A")

B = TypeVar("B")


@final
class Workers:
    """A pool of threads to be used in a ``with`` block."""

    def __init__(self, num_threads: int | None = None) -> None:
        """:param num_threads: ``None`` is as many as PyTorch uses, and no more than this process has cores."""
        self._num_threads = num_threads or min(torch.get_num_threads(), num_usable_cores())
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def num_threads(self) -> int:
        return self._num_threads

    def __enter__(self) -> Self:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

        with ExitStack() as stack:
            # Threads that each share out a product of NumPy's wait for one another.
            stack.enter_context(threadpool_limits(1, user_api="blas"))

            # torch hands the setting of any thread on to threads born later, hence the restoring at the end.
            stack.enter_context(one_thread())

            if self._num_threads > 1:
                self._pool = stack.enter_context(
                    ThreadPoolExecutor(self._num_threads, "units", initializer=torch.set_num_threads, initargs=(1,))
                )

            self._stack = stack.pop_all()

        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

        self._stack.close()

    def map(self, fn: Callable[[A], B], items: Sequence[A]) -> list[B]:
        """Return ``fn(item)`` for each item, in order. Not to be called by ``fn``, which could wait for itself."""
        if self._pool is None or len(items) < 2:
            return [fn(item) for item in items]

        if len(items) > self._num_threads:
            return list(self._pool.map(fn, items))

        # The first is for this thread, which would wait otherwise: to wake another takes a tenth of a millisecond.
        others = [self._pool.submit(fn, item) for item in items[1:]]

        try:
            first = fn(items[0])
        finally:
            # What they write to is the caller's again afterwards, unless Ctrl-C ends the waiting.
            for other in others:
                other.exception()

        return [first, *(other.result() for other in others)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread in the block: matrix products that threads share round otherwise than alone."""
    before = torch.get_num_threads()

    if before == 1:  # as in the threads of a feature stream, which must not meddle with a setting that all share
        yield

        return

    torch.set_num_threads(1)

    try:
        yield
    finally:
        torch.set_num_threads(before)


def num_usable_cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def split_range(num_items: int, num_parts: int) -> list[slice]:
    """Split ``range(num_items)`` into at most ``num_parts`` neighbouring slices of nearly one length, none empty."""
    bounds = [num_items * i // num_parts for i in range(num_parts + 1)]

    return [slice(a, b) for a, b in pairwise(bounds) if a < b]


def blocks_of(num_items: int, size: int) -> list[slice]:
    """Split ``range(num_items)`` into slices of ``size``; the last one may be shorter."""
    return [slice(i, min(i + size, num_items)) for i in range(0, num_items, size)]
