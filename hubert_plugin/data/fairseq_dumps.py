"""Reading fairseq's dumps of features: ``SPLIT_<i>_<n>.npy`` with the frames of all utterances, and their numbers in
``.len``.

Letters: *N* utterances, *M* frames of an utterance, *D* features of a frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.kaldi_scp import gzip_problem
from hubert_plugin.errors import UnitModelError, format_problems

_NPY_MARK: Final = b"\x93NUMPY"

_MAX_DIGITS: Final = 12
"""Longer numbers are no numbers of frames: 10¹² frames are 300 years."""


class DumpError(Exception):
    """A file of a dump is missing or damaged. The message names the file and is part of a list of problems."""


def count_shards(folder: Path, split: str) -> int:
    """Return how many shards the dump of a split has; all of them must be there.

    :raises UnitModelError: There are none, some are missing, or they are of more than one cut.
    """
    pattern = re.compile(rf"{re.escape(split)}_(\d+)_(\d+)\.npy")

    try:
        found = {(int(m[1]), int(m[2])) for p in folder.iterdir() if (m := pattern.fullmatch(p.name))}
    except OSError as ex:
        raise UnitModelError(f"The features '{folder}' cannot be read: {ex.strerror or ex}.") from ex

    numbers = sorted({n for _, n in found})

    if not numbers:
        raise UnitModelError(
            f"There are no features of '{split}' in '{folder}': expected '{split}_0_1.npy' and '{split}_0_1.len', or "
            f"all shards '{split}_<i>_<n>'."
        )

    if len(numbers) > 1:
        raise UnitModelError(
            f"'{folder}' holds dumps of '{split}' in {' and in '.join(map(str, numbers))} shards. Keep one of them."
        )

    if missing := [f"{split}_{i}_{numbers[0]}.npy" for i in range(numbers[0]) if (i, numbers[0]) not in found]:
        raise UnitModelError(format_problems(f"Shards of '{split}' are missing in '{folder}':", missing))

    return numbers[0]


def read_shard(paths: Mapping[str, Path]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Open a shard.

    :param paths: Its files (:func:`~hubert_plugin.data.feature_files.feature_paths`).
    :returns: The features, mapped (*Shape:* (sum of M, D)), and the numbers of frames (*Shape:* (N,)).
    :raises DumpError: A file is missing or damaged, or they do not fit each other.
    """
    array, lengths = _open_array(paths["data"]), _read_lengths(paths["counts"])

    if len(array) != (total := int(lengths.sum())):
        hint = "; rows and columns seem to be exchanged" if array.shape[1] == total else ""

        raise DumpError(
            f"{paths['data']}: has {len(array)} frames, but '{paths['counts'].name}' tells of {total}{hint}"
        )

    return array, lengths


def parse_count(text: str) -> int | None:
    """Return the number of frames that ``text`` says, ``None`` if it says none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _open_array(path: Path) -> NDArray[Any]:
    """Map the array of a ``.npy`` file. Pickles are never read."""
    try:
        with path.open("rb") as fp:
            head = fp.read(len(_NPY_MARK))

        array = np.load(path, mmap_mode="r") if head == _NPY_MARK else None
    except FileNotFoundError as ex:
        raise DumpError(f"{path}: there is no such file") from ex
    except OSError as ex:
        raise DumpError(f"{path}: cannot be read: {ex.strerror or ex}") from ex
    except Exception as ex:  # NumPy meets a damaged header with whatever fails first
        if "Python objects" in str(ex):
            raise DumpError(f"{path}: must hold real numbers, but holds Python objects, which are never read") from ex

        raise DumpError(f"{path}: cannot be read, it is cut off or damaged ({ex or type(ex).__name__})") from ex

    if array is None:
        raise DumpError(f"{path}: {_explain_foreign(path, head)}")

    if array.dtype.kind != "f":
        raise DumpError(f"{path}: must hold real numbers such as float32, but holds {array.dtype}")

    if array.ndim != 2 or array.shape[1] == 0:
        raise DumpError(f"{path}: must hold (frames, features), but has the shape {array.shape}")

    return array


def _explain_foreign(path: Path, head: bytes) -> str:
    if head.startswith(b"PK"):
        return "must be one array as `numpy.save` writes it, but is a zip archive, such as `numpy.savez` writes (.npz)"

    if problem := gzip_problem(path, head):
        return problem

    return f"must be an array as `numpy.save` writes it, but begins with {head!r}"


def _read_lengths(path: Path) -> NDArray[np.int64]:
    try:
        lines = path.read_bytes().decode("utf-8-sig", "backslashreplace").splitlines()
    except FileNotFoundError as ex:
        raise DumpError(f"there is no '{path.name}' beside '{path.with_suffix('.npy')}'") from ex
    except OSError as ex:
        raise DumpError(f"{path}: cannot be read: {ex.strerror or ex}") from ex

    lengths = []

    for nr, line in enumerate(lines, start=1):
        for field in line.split():
            if (length := parse_count(field)) is None:
                raise DumpError(f"{path}:{nr}: must be a number of frames, but is {line[:60]!r}")

            lengths.append(length)

    return np.array(lengths, np.int64)
