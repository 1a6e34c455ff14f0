"""A fairseq2 task that runs one function: what the verbs without training are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from fairseq2.task import Task, TaskStopException
from typing_extensions import override

from hubert_plugin.errors import ConfigError


def require_option(value: object, sentence: str) -> None:
    """Refuse a run that lacks an option; called when its task is created.

    A configuration without it is valid, so that ``--dump-config`` shows it to who is about to fill it in.

    :raises ConfigError: ``value`` is empty; says ``sentence``.
    """
    if not value:
        raise ConfigError(sentence)


@final
class FunctionTask(Task):
    """Runs ``function(should_stop)`` once; ``should_stop()`` turns true after SIGUSR1 asked the recipe to stop."""

    def __init__(self, function: Callable[[Callable[[], bool]], None]) -> None:
        self._function = function
        self._stop_requested = False

    @override
    def run(self) -> None:
        self._function(lambda: self._stop_requested)

        if self._stop_requested:
            raise TaskStopException()

    @override
    def request_stop(self) -> None:
        self._stop_requested = True

    @override
    def close(self) -> None:
        pass

    @property
    @override
    def step_nr(self) -> int:
        return 0
