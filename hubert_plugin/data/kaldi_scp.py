"""Kaldi's script files and text tables: where objects lie, and what is said of utterances. Nothing here decodes them.

Script files may hold commands (``sph2pipe … |``), which run on the explicit word only.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO, Final

from hubert_plugin.errors import format_problems

# Python refuses to read numbers of thousands of digits; what has more than these is no number here, but part of a name.
_NUMBER: Final = r"[0-9]{0,99}"

_RANGE: Final = re.compile(rf"\[(?P<rows>{_NUMBER}:?{_NUMBER})(?:,(?P<columns>{_NUMBER}:?{_NUMBER}))?\]$")

_OFFSET: Final = re.compile(r"(?P<path>.+):(?P<offset>[0-9]{1,99})", re.DOTALL)

_GZIP_MARK: Final = b"\x1f\x8b"

ALLOW_PIPES_ADVICE: Final = "set `allow_pipes: true` if you trust this file"
"""What to do about commands, where the caller has that setting."""


class KaldiFormatError(Exception):
    """A kaldi file is missing, cut off or not what was expected. The message is a sentence (or a list of problems)."""


@dataclass(frozen=True)
class ScpEntry:
    """A line of a script file, or the place of an object in an archive."""

    key: str

    path: str
    """The file; for commands the command line, without the bar."""

    offset: int | None = None
    """The byte at which the object begins; ``None``: the file is the object."""

    ranges: tuple[slice, ...] = ()
    """Which rows (and columns) of the matrix are meant."""

    is_command: bool = False
    """Whether ``path`` is a command that writes the object."""

    line: int = 0
    """The line in the script file, from 1 on; 0 if there is none."""

    @property
    def place(self) -> str:
        return self.path if self.offset is None else f"{self.path}:{self.offset}"

    @property
    def range_text(self) -> str:
        """``ranges`` as the script file has them (``[0:9,2:3]``)."""
        ends = [("" if r.start is None else r.start, "" if r.stop is None else r.stop - 1) for r in self.ranges]

        return f"[{','.join(f'{first}:{last}' for first, last in ends)}]"


def read_scp(
    path: Path,
    *,
    allow_pipes: bool = False,
    pipe_advice: str = ALLOW_PIPES_ADVICE,
    on_missing: Callable[[str, str], None] | None = None,
) -> list[ScpEntry]:
    """Read a script file. Nothing it names is opened, and no command runs.

    Relative paths are taken relative to the script file's folder if the file is there, else, as kaldi does, to the
    current folder.

    :param allow_pipes: Whether lines may be commands (``sph2pipe … |``), which are run when the object is read.
    :param pipe_advice: What the error tells to do about commands that are not allowed.
    :param on_missing: Called with the key of each line that names a file which does not exist, and why it is left out.
        ``None``: such lines are an error.
    :raises KaldiFormatError: The file is missing or empty, or lines are malformed, repeated, commands or name files
        that do not exist: all of them at once.
    """
    path = Path(path)
    problems: list[str] = []
    entries: list[ScpEntry] = []
    first: dict[str, int] = {}
    exists: dict[str, str | None] = {}

    for nr, line in _lines(path):
        fields = line.split(maxsplit=1)

        if not fields:
            continue

        place = f"{path}:{nr}"

        if len(fields) == 1:
            problems.append(f"{place}: must be 'utterance path', but is {line!r}")
            continue

        key, target = fields[0], fields[1].strip()

        if (first_nr := first.setdefault(key, nr)) != nr:
            problems.append(f"{place}: '{key}' is also in line {first_nr}")
            continue

        if target.endswith("|") or target.startswith("|"):
            if not allow_pipes or target.startswith("|"):
                # A bar in front takes data, it gives none.
                advice = "" if target.startswith("|") else f"; {pipe_advice}"

                problems.append(f"{place}: '{key}' is a command ({target!r}), which is not run{advice}")
            else:
                entries.append(ScpEntry(key, target[:-1].strip(), is_command=True, line=nr))

            continue

        file, offset, ranges = parse_rxfilename(target)

        if file not in exists:
            exists[file] = _locate(path.parent, file)

        if (located := exists[file]) is None:
            if on_missing is None:
                problems.append(f"{place}: '{key}' lies in '{file}', but there is no such file")
            else:
                on_missing(key, f"{place}: it lies in '{file}', but there is no such file")
        else:
            entries.append(ScpEntry(key, located, offset, ranges, line=nr))

    if not first and not problems:
        problems.append(f"{path}: is empty; it must have a line 'utterance path' for each utterance")

    if problems:
        raise KaldiFormatError(format_problems(f"The kaldi script file '{path}' cannot be used.", problems))

    return entries


def parse_rxfilename(text: str) -> tuple[str, int | None, tuple[slice, ...]]:
    """Split ``path:offset[rows,columns]``; kaldi's ranges include their last element."""
    ranges: tuple[slice, ...] = ()

    if match := _RANGE.search(text):
        text = text[: match.start()]

        ranges = tuple(_to_slice(r) for r in match.groups() if r is not None)

    if match := _OFFSET.fullmatch(text):
        return match["path"], int(match["offset"]), ranges

    return text, None, ranges


def check_key(key: str) -> str | None:
    """Return why ``key`` cannot name an utterance in kaldi's files; ``None`` if it can."""
    if not key or key.split() != [key] or "\0" in key:
        return f"{key!r} is empty or holds white space, which a kaldi key cannot"

    return None


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and the rest of each line of a text table (``utt2spk``, ``text``, ``utt2num_frames``).

    :raises KaldiFormatError: The file cannot be read.
    """
    for nr, line in _lines(Path(path)):
        if fields := line.split(maxsplit=1):
            yield nr, fields[0], fields[1].strip() if len(fields) == 2 else ""


def run_command(entry: ScpEntry) -> bytes:
    """Run the command of ``entry`` and return what it wrote. Only for entries that were read with ``allow_pipes``.

    :raises KaldiFormatError: The command fails or writes nothing.
    """
    result = subprocess.run(entry.path, shell=True, stdin=subprocess.DEVNULL, capture_output=True)

    if result.returncode != 0 or not result.stdout:
        reason = result.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it wrote nothing"]

        raise KaldiFormatError(
            f"The command of '{entry.key}' ({entry.path!r}) ended with {result.returncode}: {reason[0]}"
        )

    return result.stdout


def open_file(path: Path | str) -> BinaryIO:
    """Open a file to read its bytes.

    :raises KaldiFormatError: It cannot be opened, or is compressed with gzip.
    """
    try:
        fp = open(path, "rb")  # noqa: SIM115 - the caller closes it
    except OSError as ex:
        raise unreadable(Path(path), ex) from ex

    try:
        head = fp.peek(len(_GZIP_MARK))

        if problem := gzip_problem(Path(path), head):
            raise KaldiFormatError(problem)
    except OSError as ex:
        fp.close()

        raise unreadable(Path(path), ex) from ex
    except KaldiFormatError:
        fp.close()

        raise

    return fp


def gzip_problem(path: Path, head: bytes) -> str | None:
    """Return the sentence that says that ``path``, which begins with ``head``, is compressed with gzip; ``None`` if it
    is not."""
    if not head.startswith(_GZIP_MARK):
        return None

    target = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.stem}.unpacked{path.suffix}")

    # kaldi's alignments are called `ali.1.gz`: an archive is known by its name.
    if target.suffix[1:].isdecimal():
        target = target.with_name(f"{target.name}.ark")

    return (
        f"'{path}' is compressed with gzip: unpack it (`gunzip -c {shlex.quote(str(path))} > "
        f"{shlex.quote(str(target))}`)."
    )


def unreadable(path: Path, ex: OSError) -> KaldiFormatError:
    """Return the error that says why ``path`` could not be read."""
    if isinstance(ex, FileNotFoundError):
        return KaldiFormatError(f"There is no file '{path}'.")

    return KaldiFormatError(f"'{path}' cannot be read: {ex.strerror or ex}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # Editors of some systems put a byte order mark at the start.
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="surrogateescape", newline="\n") as fp:
            yield from enumerate(fp, start=1)
    except OSError as ex:
        raise unreadable(path, ex) from ex


def _to_slice(text: str) -> slice:
    start, colon, stop = text.partition(":")

    if not colon:
        return slice(int(start), int(start) + 1) if start else slice(None)

    return slice(int(start) if start else None, int(stop) + 1 if stop else None)


def _locate(folder: Path, file: str) -> str | None:
    beside = folder / file

    if beside.is_file():
        return str(beside)

    return file if os.path.isfile(file) else None
