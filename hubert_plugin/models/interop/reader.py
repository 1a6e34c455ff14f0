"""Reads checkpoint files of strangers without running anything in them.

PyTorch's zip files and its older format are surveyed first (``pickles.py``), then read in PyTorch's restricted mode,
which builds tensors and plain data only; every other class is an inert record. safetensors files hold no code.
Sizes that a file claims are held against the size of the file before anything is allocated.
"""

from __future__ import annotations

import io
import json
import mmap
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, cast

import torch
from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.interop.pickles import InertRecord, Survey, stand_ins, survey_pickle

__all__ = ["InertRecord", "read_checkpoint", "read_json"]

MAX_EXPANSION: Final = 4
"""How many times larger than the file its contents may claim to be. PyTorch does not compress."""

_SLACK: Final = 1 << 20

_ZIP_MAGIC: Final = b"PK\x03\x04"

_OLD_MAGIC: Final = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The first bytes of PyTorch's older format: a pickle of its magic number."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a PyTorch or safetensors file, tensors on the CPU.

    Metadata of a safetensors file is dropped.

    :raises CheckpointError: The file is missing, damaged, larger inside than outside, or asks for things that no
        checkpoint needs.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint file at '{path}'.")

    try:
        with path.open("rb") as fp:
            head = fp.read(16)
    except OSError as ex:
        raise CheckpointError(f"The checkpoint '{path}' cannot be opened: {ex.strerror or ex}.") from None

    if _is_safetensors(path, head):
        return cast(dict[str, Any], _read_safetensors(path))

    try:
        survey = _survey(path, head)

        classes = stand_ins(survey, f"The checkpoint '{path}'")

        if survey.root and survey.root != "collections.OrderedDict":
            raise CheckpointError(
                f"The checkpoint '{path}' must hold a dictionary, but holds a {survey.root} object. Save its "
                "parameters instead: `torch.save(model.state_dict(), …)`."
            )

        with torch.serialization.safe_globals(classes):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as ex:
        reason = str(ex).splitlines()[0]

        raise CheckpointError(
            f"The checkpoint '{path}' cannot be read safely: it is damaged, or it holds objects that are neither "
            f"tensors nor plain data ({reason})."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, MemoryError, zipfile.BadZipFile) as ex:
        _raise_damaged(path, ex)

    if not isinstance(content, dict):
        raise CheckpointError(f"The checkpoint '{path}' must hold a dictionary, but holds a {type(content).__name__}.")

    _check_views(content, path)

    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    :raises CheckpointError: It cannot be read, or is not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as ex:
        reason = str(ex).splitlines()[0] if str(ex) else type(ex).__name__

        raise CheckpointError(f"'{path}' cannot be read as JSON: {reason}.") from None

    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, but holds a {type(content).__name__}.")

    return content


def _survey(path: Path, head: bytes) -> Survey:
    size = path.stat().st_size

    # By its first bytes, as PyTorch decides; the rest of a zip file may follow anything.
    if head.startswith(_ZIP_MAGIC) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            claimed = sum(info.file_size for info in archive.infolist())

            if claimed > MAX_EXPANSION * size + _SLACK:
                _refuse_size(path, size, claimed)

            names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]

            if len(names) != 1:
                raise CheckpointError(
                    f"'{path}' is a zip file, but not a PyTorch checkpoint: one 'data.pkl' was looked for, "
                    f"{len(names)} were found."
                )

            survey = survey_pickle(io.BytesIO(archive.read(names[0])))

            held = {info.filename: info.file_size for info in archive.infolist()}

        folder = names[0].removesuffix("data.pkl")

        # PyTorch takes the claimed number of bytes from wherever the record begins.
        for key, claimed in survey.storages.items():
            if claimed > (stored := held.get(f"{folder}data/{key}", 0)):
                raise CheckpointError(
                    f"'{path}' claims {claimed:,} bytes for the tensor storage '{key}', but {stored:,} are stored. It "
                    "is damaged or hostile; nothing in it was read. Get the checkpoint from its publisher."
                )

        return survey

    if not head.startswith(_OLD_MAGIC):
        _refuse_unknown(path, size, head)

    with path.open("rb") as fp, mmap.mmap(fp.fileno(), 0, access=mmap.ACCESS_READ) as data:
        file = cast(BinaryIO, data)

        for _ in range(3):  # the magic number, the version of the format, the machine
            survey_pickle(file)

        survey = survey_pickle(file)

    if (claimed := sum(survey.storages.values())) > size:
        _refuse_size(path, size, claimed)

    return survey


def _check_views(content: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that claim more values than are stored, as broadcast views do."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            _check_views(value, path)
        elif isinstance(value, Tensor) and not value.is_sparse and value.layout == torch.strided:
            claimed = value.numel() * value.element_size()

            stored = 0 if value.is_meta else value.untyped_storage().nbytes()

            if claimed > stored:
                raise CheckpointError(
                    f"The tensor '{key}' in '{path}' claims {claimed:,} bytes, but only {stored:,} are stored."
                )


def _is_safetensors(path: Path, head: bytes) -> bool:
    """A safetensors file is the length of a JSON object in 8 bytes, that object, and the data."""
    if path.suffix == ".safetensors":
        return True

    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, KeyError) as ex:
        _raise_damaged(path, ex)


def _raise_damaged(path: Path, ex: BaseException) -> NoReturn:
    reason = str(ex).splitlines()[0] if str(ex) else type(ex).__name__

    raise CheckpointError(
        f"The checkpoint '{path}' ({path.stat().st_size:,} bytes) cannot be read: it is cut off or damaged ({reason}). "
        "Copy it again, or use another one."
    ) from None


def _refuse_size(path: Path, size: int, claimed: int) -> NoReturn:
    raise CheckpointError(
        f"The checkpoint '{path}' cannot be read: it has {size:,} bytes, but claims to hold {claimed:,}. It is cut "
        "off, damaged or hostile; copy it again, or use another one."
    )


def _refuse_unknown(path: Path, size: int, head: bytes) -> NoReturn:
    # One of PyTorch's, cut off, begins otherwise.
    if size > len(_OLD_MAGIC) and head.startswith(b"\x80"):
        raise CheckpointError(
            f"'{path}' ({size:,} bytes) is a pickle, but not one of PyTorch's: nothing in it was read. Save parameters "
            "by `torch.save(model.state_dict(), …)`."
        )

    # A zip file that was cut off has lost the table at its end, by which it is known.
    if size == 0 or head.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(
            f"The checkpoint '{path}' ({size:,} bytes) cannot be read: it is cut off or damaged. Copy it again, or use "
            "another one."
        )

    kinds = {b"<": "a web page", b"{": "JSON", b"version https": "a pointer of Git LFS, not the file itself"}

    kind = next((f" It looks like {v}." for k, v in kinds.items() if head.lstrip().startswith(k)), "")

    raise CheckpointError(
        f"'{path}' ({size:,} bytes) is not a checkpoint: a PyTorch file (zip or the older format) or a safetensors "
        f"file was looked for, but it begins with {head[:8]!r}.{kind}"
    )
