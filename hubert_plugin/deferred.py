"""Imports fairseq2 without two libraries that it brings and hardly any command uses.

fairseq2 0.8.1 imports transformers, for its Hugging Face models, and wandb, for one of its metric recorders, whether
they are used or not: half of the time a command takes to begin. While the command imports fairseq2, stand-ins take the
place of both; what fairseq2 keeps of these imports the library when it is called, read or asked whether something is
an instance of it. Whoever imports the libraries afterwards gets them as they are.

``import hubert_plugin`` does none of that: it is for the commands of :mod:`hubert_plugin.cli`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final, final

SWITCH: Final = "HUBERT_DEFERRED"
"""The environment variable that says, by ``0``, that fairseq2 is to import everything at once."""

LIBRARIES: Final = ("transformers", "wandb")

_TRIED_WITH: Final = ("0.8.1",)
"""The versions of fairseq2 that are known to do no more than name things of these libraries while they are imported."""


def import_fairseq2() -> None:
    """Import what all commands need of fairseq2, with stand-ins for those of :data:`LIBRARIES` not imported yet.

    That is all of fairseq2 that imports them: its container tells parts by their types, and a stand-in is another one.
    """
    import torch  # noqa: F401, as it imports much itself, which stand-ins are none of the business of

    with _stand_ins(_find_deferrable()):
        import fairseq2.composition
        import fairseq2.recipe.cli
        import fairseq2.recipe.composition  # noqa: F401


def _find_deferrable() -> list[str]:
    try:
        known = version("fairseq2") in _TRIED_WITH
    except PackageNotFoundError:
        known = False

    if not known or os.environ.get(SWITCH) == "0":
        return []

    return [name for name in LIBRARIES if name not in sys.modules and find_spec(name) is not None]


@contextmanager
def _stand_ins(libraries: Sequence[str]) -> Iterator[None]:
    """Let imports of ``libraries`` give stand-ins, for as long as this lasts."""
    finder = _Finder(libraries)

    sys.meta_path.insert(0, finder)

    try:
        yield
    finally:
        finder.active = False

        sys.meta_path.remove(finder)

        for name in [name for name in sys.modules if finder.is_for(name)]:
            del sys.modules[name]


@final
class _Finder(MetaPathFinder, Loader):
    def __init__(self, libraries: Sequence[str]) -> None:
        self._libraries = tuple(libraries)

        self.active = True
        """Whether modules that are imported are stand-ins."""

    def is_for(self, name: str) -> bool:
        return name.partition(".")[0] in self._libraries

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if self.is_for(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        pass


@final
class _StandInModule(ModuleType):
    """A module that is not imported yet: gives stand-ins at first, later what the module really has."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)

        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if not self._finder.active:
            return getattr(import_module(self.__name__), name)

        if name.startswith("__"):
            raise AttributeError(name)

        # `except` takes exceptions only. It looks at what a class really is: the library's own are not caught by it.
        base = Exception if name.endswith("Error") else object

        stand_in = _StandIn(name, (base,), {"__module__": self.__name__})

        setattr(self, name, stand_in)  # types are told apart by identity

        return stand_in


class _StandIn(type):
    """Makes classes that stand for those (or functions) of a module that is not imported yet."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        return getattr(_real(cls), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _real(cls)(*args, **kwargs)

    # What is not imported has neither instances nor subclasses.

    def __instancecheck__(cls, instance: Any) -> bool:
        return _is_imported(cls) and isinstance(instance, _real(cls))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or (_is_imported(cls) and issubclass(subclass, _real(cls)))


def _is_imported(cls: type) -> bool:
    library = sys.modules.get(cls.__module__.partition(".")[0])

    return library is not None and not isinstance(library, _StandInModule)


def _real(cls: type) -> Any:
    return getattr(import_module(cls.__module__), cls.__name__)
