"""n-gram language models on disk: which words they know, and opening them with KenLM.

KenLM comes inside the wheel of flashlight-text, so no compiler is needed. It reads ARPA files, also compressed ones,
and its own binaries; its words are looked up here first, because KenLM maps what it does not know to ``<unk>`` in
silence.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final

from hubert_plugin.errors import DecodingError, MissingDependencyError

_BINARY_MAGIC: Final = b"mmap lm http://kheafield.com/code"

_COMPRESSED: Final = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}

_UNKNOWN_WORD: Final = b"<unk>\0"

# Of KenLM's ``lm/binary_format.hh``, format version 5: after 88 bytes that tell the machine's number formats come the
# parameters, with a flag in byte 12, and from byte 20 on the numbers of n-grams.
_HAS_WORDS_AT: Final = 88 + 12
_NUM_WORDS_AT: Final = 88 + 20


@dataclass(frozen=True)
class NgramFile:
    """An n-gram model on disk."""

    path: Path

    is_binary: bool
    """Whether it is KenLM's own format rather than ARPA."""

    @cached_property
    def words(self) -> list[str] | None:
        """The entries of the model's vocabulary, ``<s>`` and its like included; ``None``: the file does not say (a
        binary without its words).

        :raises DecodingError: The file is no model or is truncated.
        """
        return _binary_words(self.path) if self.is_binary else _arpa_words(self.path)

    def may_know(self, word: str) -> bool:
        """Return whether ``word`` is in the model's vocabulary, as everything may be where the file does not say."""
        return self._known is None or word in self._known

    @cached_property
    def _known(self) -> frozenset[str] | None:
        return None if self.words is None else frozenset(self.words)


def open_ngram_file(path: Path) -> NgramFile:
    """Look at an n-gram model.

    :raises DecodingError: There is no such file, or it is neither an ARPA file nor a binary of KenLM.
    """
    path = Path(path).expanduser()

    try:
        with path.open("rb") as fp:
            head = fp.read(len(_BINARY_MAGIC))
    except FileNotFoundError:
        raise DecodingError(f"There is no language model '{path}'.") from None
    except OSError as ex:
        raise DecodingError(f"The language model '{path}' cannot be read: {ex.strerror or ex}.") from ex

    if head == _BINARY_MAGIC:
        return NgramFile(path, is_binary=True)

    with _open_text(path) as fp:
        try:
            first = next((line for line in iter(lambda: fp.readline(1 << 16), b"") if line.strip()), b"")
        except (OSError, EOFError, lzma.LZMAError) as ex:
            raise _damaged(path, str(ex)) from ex

    if first.strip() != b"\\data\\":
        found = repr(first.strip()[:40].decode("utf-8", "replace")) if first else "an empty file"

        raise DecodingError(
            f"'{path}' is not a language model: expected an ARPA file, which begins with \\data\\, or a binary of "
            f"KenLM, found {found}."
        )

    return NgramFile(path, is_binary=False)


def load_kenlm(file: NgramFile, words: Sequence[str]) -> Any:
    """Load a model with KenLM, as a language model of flashlight.

    :param words: What the decoder calls 0, 1, 2, …
    :raises DecodingError: KenLM cannot read the file.
    :raises MissingDependencyError: flashlight-text is not installed.
    """
    import_flashlight()

    try:
        from flashlight.lib.text.decoder.kenlm import KenLM
    except ImportError as ex:
        raise MissingDependencyError(
            "This build of flashlight-text has no KenLM, which reads n-gram models. The wheels on PyPI have it: "
            f"`pip install --force-reinstall flashlight-text`. ({ex})"
        ) from ex

    from flashlight.lib.text.dictionary import Dictionary

    try:
        return KenLM(str(file.path), Dictionary(list(words)))
    except (RuntimeError, ValueError) as ex:
        # KenLM says where in its own sources it failed, then what it found.
        reason = str(ex).strip().splitlines()[-1]

        raise DecodingError(
            f"KenLM cannot read the language model '{file.path}': {reason.rstrip('.')}. Copy or make it again."
        ) from ex


def import_flashlight() -> Any:
    """Return flashlight's module of decoders.

    :raises MissingDependencyError: It is not installed.
    """
    try:
        from flashlight.lib.text import decoder
    except ImportError as ex:
        raise MissingDependencyError(
            "Beam search needs the package `flashlight-text`, which is not installed. Install it with `pip install "
            "'fairseq2-hubert[lm]'` (in a checkout: `pip install '.[lm]'`), or set `decoder.name=greedy`."
        ) from ex

    return decoder


def _open_text(path: Path) -> IO[bytes]:
    with path.open("rb") as fp:
        head = fp.read(6)

    for magic, opener in _COMPRESSED.items():
        if head.startswith(magic):
            return opener(path, "rb")  # type: ignore[operator, no-any-return]

    return path.open("rb")


def _arpa_words(path: Path) -> list[str]:
    """Return the unigrams of an ARPA file."""
    words: list[str] = []

    expected: int | None = None

    is_inside = False

    try:
        with _open_text(path) as fp:
            for number, raw in enumerate(fp, start=1):
                line = raw.strip()

                if line.startswith(b"ngram 1="):
                    expected = int(line[8:])
                elif line == b"\\1-grams:":
                    is_inside = True
                elif is_inside and line.startswith(b"\\"):
                    break
                elif is_inside and line:
                    fields = line.split()

                    if len(fields) not in (2, 3) or not _is_number(fields[0]):
                        raise _damaged(path, f"line {number}: expected a probability and a word, found {line[:60]!r}")

                    words.append(fields[1].decode("utf-8"))
            else:
                raise _damaged(path, "it ends within its unigrams")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError, ValueError) as ex:
        raise _damaged(path, str(ex)) from ex

    if expected != len(words):
        raise _damaged(path, f"its head announces {expected} unigrams, but there are {len(words)}")

    return words


def _binary_words(path: Path) -> list[str] | None:
    """Return the words of a binary of KenLM, which stand at its end, ended by zero bytes, ``<unk>`` first."""
    with path.open("rb") as fp, mmap.mmap(fp.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) < _NUM_WORDS_AT + 8:
            raise _damaged(path, "it ends within its head")

        if not data[_HAS_WORDS_AT]:
            return None

        # Without an entry for unknown words KenLM adds one.
        num_words = int.from_bytes(data[_NUM_WORDS_AT : _NUM_WORDS_AT + 8], "little")

        start = data.rfind(_UNKNOWN_WORD)

        words = data[start:].rstrip(b"\0").split(b"\0") if start >= 0 else []

        if len(words) not in (num_words, num_words + 1):
            raise _damaged(path, f"its head announces {num_words:,} words, but {len(words):,} are there")

        return [w.decode("utf-8", errors="replace") for w in words]


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False

    return True


def _damaged(path: Path, reason: str) -> DecodingError:
    return DecodingError(
        f"The language model '{path}' is damaged or cut off: {reason.rstrip('.')}. Copy or make it again."
    )
