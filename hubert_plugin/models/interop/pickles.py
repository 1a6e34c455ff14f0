"""What a pickle of a stranger asks for, found out without giving it any of that.

A survey reads a pickle with nothing but stand-ins: no class of the file is imported, nothing of it is called, no tensor
is made. It tells which classes there are and how large the tensors claim to be. Only then does PyTorch's restricted
reader (``weights_only=True``) read the file, with :class:`InertRecord` in the place of every class that is not its own.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Final

import torch

from hubert_plugin.errors import CheckpointError

_OPCODE_NAMES: Final = (
    "PROTO STOP GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE "
    "NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1"
)

_OPCODES: Final = _OPCODE_NAMES.split()
"""What PyTorch's restricted reader understands; anything else in a pickle is a reason to refuse it."""

_LATER_OPCODE_NAMES: Final = (
    "FRAME MEMOIZE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 STACK_GLOBAL NEWOBJ_EX ADDITEMS "
    "FROZENSET BYTEARRAY8 NEXT_BUFFER READONLY_BUFFER"
)

_LATER_OPCODES: Final = frozenset(getattr(pickle, name)[0] for name in _LATER_OPCODE_NAMES.split())

_MODULE_NAMES: Final = (
    "asyncio bdb cgi code codeop commands concurrent ctypes dill cloudpickle distutils doctest "
    "importlib io _io joblib linecache marshal multiprocessing nt ntpath os pdb pickle pip pkgutil "
    "platform posix posixpath profile pty pydoc runpy setuptools shelve shutil site smtplib socket sqlite3 "
    "subprocess sys sysconfig urllib venv webbrowser zipimport"
)

_NO_CHECKPOINT_NEEDS: Final = frozenset(_MODULE_NAMES.split())
"""Modules that a file names in order to do something."""

_TYPE_NAMES: Final = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple"

_PLAIN_TYPES: Final = frozenset(_TYPE_NAMES.split())


class InertRecord:
    """Stands in for an instance of a class that is not imported: holds what the file gives it and does nothing."""

    inert_name: str = ""
    """The full name of the class."""

    inert_args: tuple[Any, ...]
    """The arguments of its making; the value of an enumeration."""

    inert_items: dict[Any, Any]
    """The items of a mapping."""

    def __new__(cls, *args: Any, **kwargs: Any) -> InertRecord:
        self = super().__new__(cls)

        self.inert_args = args
        self.inert_items = {}

        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        # With slots, the state is a pair of dictionaries.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.__dict__.update({k: v for k, v in part.items() if isinstance(k, str)})

    def __setitem__(self, key: object, value: object) -> None:
        if self.inert_name.startswith("torch."):
            raise pickle.UnpicklingError("it writes into a tensor")

        self.inert_items[key] = value

    def __repr__(self) -> str:
        return f"<{self.inert_name}>"


@dataclass
class Survey:
    """What a pickle asks for."""

    classes: set[str] = field(default_factory=set)
    """The full names of all classes and functions."""

    storages: dict[str, int] = field(default_factory=dict)
    """The claimed number of bytes of each tensor storage, by key."""

    root: str = ""
    """The name of the outermost object's class, if it is not plain data."""


def survey_pickle(file: BinaryIO) -> Survey:
    """Read one pickle from ``file``, which must be in memory or mapped into it, with stand-ins only.

    :raises pickle.UnpicklingError: It holds operations that checkpoints do not have, or is damaged.
    """
    surveyor = _Surveyor(file)

    try:
        root = surveyor.load()
    except pickle.UnpicklingError:
        raise
    except KeyError as ex:
        if ex.args[0] in _LATER_OPCODES:
            raise pickle.UnpicklingError(
                "it was written with pickle protocol 3 or later, which PyTorch's safe reader does not take: save it "
                "again by `torch.save` as it is, without `pickle_protocol`"
            ) from None

        raise pickle.UnpicklingError(f"KeyError: {ex}") from None
    except Exception as ex:  # any exception at all: the bytes are a stranger's
        raise pickle.UnpicklingError(f"{type(ex).__name__}: {ex}" if str(ex) else type(ex).__name__) from None

    if isinstance(root, InertRecord):
        surveyor.survey.root = root.inert_name

    return surveyor.survey


class _Surveyor(pickle._Unpickler):  # type: ignore[misc,name-defined]
    # The implementation in Python: its memo is a dictionary, which a file cannot make huge by a large index.
    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code]  # type: ignore[attr-defined]
        for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

        self.survey = Survey()

    def find_class(self, module: str, name: str) -> type[InertRecord]:
        full_name = modern_name(module, name)

        if full_name != "collections.OrderedDict":
            self.survey.classes.add(full_name)

        return make_inert_class(full_name)

    def persistent_load(self, pid: object) -> None:
        if isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[4], int):
            storage = getattr(pid[1], "inert_name", "").removeprefix("torch.").removeprefix("storage.")

            if pid[4] < 0:
                raise pickle.UnpicklingError("a tensor storage of negative size")

            key, size = str(pid[2]), pid[4] * _ITEM_SIZES.get(storage, 16)

            # A reader takes the first of several claims for a key, or the last: the largest is looked at.
            self.survey.storages[key] = max(size, self.survey.storages.get(key, 0))
        elif not isinstance(pid, int):
            raise pickle.UnpicklingError(f"a reference to something outside of the file ({str(pid)[:60]!r})")


_ITEM_SIZES: Final = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip


def modern_name(module: str, name: str) -> str:
    """Return the full name of a class, Python 2's module names brought up to date as the unpickler does."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    elif module in IMPORT_MAPPING:
        module = IMPORT_MAPPING[module]

    return f"{module}.{name}"


def make_inert_class(full_name: str) -> type[InertRecord]:
    """Return a class that stands in for ``full_name``."""
    module, _, name = full_name.rpartition(".")

    return type(name, (InertRecord,), {"__module__": module, "inert_name": full_name})


def stand_ins(survey: Survey, where: str) -> list[tuple[type[InertRecord], str]]:
    """Return stand-ins for the classes that PyTorch's restricted reader does not know, for
    ``torch.serialization.safe_globals``.

    :param where: What the file is called in errors.
    :raises CheckpointError: The file names something that no checkpoint needs.
    """
    hostile = sorted(name for name in survey.classes if _is_hostile(name))

    if hostile:
        raise CheckpointError(
            f"{where} cannot be read safely: it asks for {', '.join(map(repr, hostile[:5]))}, which no checkpoint "
            "needs. It is hostile or damaged; nothing in it was run. Get the checkpoint from its publisher."
        )

    known = _torch_names()

    return [(make_inert_class(name), name) for name in sorted(survey.classes) if name not in known]


def _is_hostile(full_name: str) -> bool:
    module, _, name = full_name.rpartition(".")

    if module == "builtins":
        # Some versions of Python write enumerations as `getattr(class, name)`; here that is a record like any other.
        return name not in _PLAIN_TYPES and name != "getattr"

    return module.partition(".")[0] in _NO_CHECKPOINT_NEEDS or module.startswith("torch.hub")


def _torch_names() -> frozenset[str]:
    from torch._weights_only_unpickler import _get_allowed_globals

    return frozenset(_get_allowed_globals())


def to_plain(value: object, depth: int = 0) -> object:
    """Return nested configurations as plain dictionaries, lists and scalars.

    Inert records of ``omegaconf`` give their contents, of ``argparse.Namespace`` and the like their attributes, of
    enumerations their value.

    :raises CheckpointError: The nesting is too deep to be a configuration.
    """
    if depth > 30:
        raise CheckpointError("A configuration is nested more than 30 levels deep.")

    if isinstance(value, InertRecord):
        return to_plain(_content_of(value), depth + 1)

    if isinstance(value, Mapping):
        return {to_plain(k, depth + 1): to_plain(v, depth + 1) for k, v in value.items()}

    if isinstance(value, (list, tuple)):
        return [to_plain(v, depth + 1) for v in value]

    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")

    return value if value is None or isinstance(value, (str, int, float, bool, torch.Tensor)) else str(value)


def _content_of(record: InertRecord) -> object:
    attributes = {k: v for k, v in vars(record).items() if not k.startswith("inert_")}

    # omegaconf's containers and nodes
    for name in ("_content", "_val"):
        if name in attributes:
            return attributes[name]

    if attributes:
        return attributes

    if record.inert_items:
        return record.inert_items

    if record.inert_name == "builtins.getattr" and len(record.inert_args) == 2:
        return record.inert_args[1]

    # an enumeration is made from its value
    return record.inert_args[0] if len(record.inert_args) == 1 else list(record.inert_args)
