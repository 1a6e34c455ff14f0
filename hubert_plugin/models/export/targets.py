"""Where an export goes: nothing half-written is left, and nothing that belongs to somebody else is replaced."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError

from hubert_plugin.errors import OutputDirError, StorageError
from hubert_plugin.files import atomic_path, is_torch_write_error
from hubert_plugin.models.interop.huggingface import OWN_SECTION

_MAX_LISTED: Final = 5


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends well.

    :raises OutputDirError: There is something at ``path`` that must not be replaced.
    :raises StorageError: The file system refuses to write.
    """
    check_file(path, overwrite=overwrite)

    with atomic_path(path) as tmp:
        try:
            yield tmp
        except RuntimeError as ex:
            if not is_torch_write_error(ex):
                raise

            raise OSError(errno.ENOSPC, "the file system took only a part of it (is it full?)") from ex


def check_file(path: Path, *, overwrite: bool) -> None:
    """:raises OutputDirError: There is something at ``path`` that must not be replaced."""
    if path.is_dir():
        raise OutputDirError(f"'{path}' must be the name of a file to write, but is a folder. Name a file in it.")

    if path.exists() and not overwrite:
        raise OutputDirError(f"'{path}' exists already. Remove it, or choose another name (or say `overwrite`).")


def save_torch(content: object, path: Path, *, overwrite: bool) -> None:
    """Write plain data and tensors with ``torch.save``."""
    with new_file(path, overwrite=overwrite) as tmp, tmp.open("wb") as fp:
        torch.save(content, fp)


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends well.

    :raises OutputDirError: There is something at ``path`` that must not be replaced.
    :raises StorageError: The file system refuses to write.
    """
    check_folder(path, overwrite=overwrite)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)

        _remove_leftovers(path)

        tmp = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as ex:
        raise _storage_error(path, ex) from ex

    try:
        try:
            try:
                yield tmp
            except SafetensorError as ex:
                if "I/O error" not in str(ex):
                    raise

                raise OSError(errno.ENOSPC, str(ex).partition("I/O error: ")[2]) from ex

            tmp.chmod(0o755)  # `mkdtemp` makes folders private

            if path.exists():
                # A folder cannot be replaced in one step; a kill between the two leaves the earlier export aside, and
                # the next run replaces nothing but makes it anew.
                old = path.with_name(f".{path.name}.old.tmp")

                path.rename(old)
                tmp.rename(path)

                shutil.rmtree(old, ignore_errors=True)
            else:
                tmp.rename(path)
        except OSError as ex:
            raise _storage_error(path, ex) from ex
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def check_folder(path: Path, *, overwrite: bool) -> None:
    """:raises OutputDirError: There is something at ``path`` that must not be replaced."""
    if path.is_file():
        raise OutputDirError(f"'{path}' must be the name of a folder to write, but is a file. Choose another name.")

    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []

    if not names:
        return

    if not _is_own_export(path):
        shown = ", ".join(names[:_MAX_LISTED]) + (" …" if len(names) > _MAX_LISTED else "")

        raise OutputDirError(
            f"The folder '{path}' holds something else than an earlier export ({shown}). Nothing was written; choose "
            "another folder."
        )

    if not overwrite:
        raise OutputDirError(
            f"The folder '{path}' holds an earlier export. Remove it, or choose another (or say `overwrite`)."
        )


def _is_own_export(path: Path) -> bool:
    try:
        return OWN_SECTION in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _remove_leftovers(path: Path) -> None:
    for other in path.parent.glob(f".{path.name}.*.tmp"):
        if other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def _storage_error(path: Path, ex: OSError) -> StorageError:
    return StorageError(
        f"'{path}' cannot be written: {ex.strerror or ex}. What stood there before is untouched; free space or choose "
        "another folder, then run the same command again."
    )
