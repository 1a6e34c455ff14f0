"""The errors a user can mend.

Every exception here carries one or more complete sentences: what was expected, what was found, where, and what to do.
The command answers each of them with that text on the log and exit code 2 (``extension.py`` registers the handlers, so
that fairseq2's own recipe runner does the same). Nothing in this module imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_SHOWN_PROBLEMS: Final = 20
"""How many problems of one file are printed; the rest is counted (DESIGN, decision 8)."""


def printable(text: str) -> str:
    """Return ``text`` as it can be shown: bytes of file names that are no UTF-8 are escaped, as :func:`repr` does."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class HubertError(Exception):
    """Base of all errors that are answered with a sentence and exit code 2."""

    def __str__(self) -> str:
        # Sentences name files, whose names may be no UTF-8: the log could not write them.
        return printable(super().__str__())


class ConfigError(HubertError):
    """A configuration key or value, preset or recipe name cannot be used."""


class ManifestError(HubertError):
    """A manifest, or the folder it was to be made from, is missing or malformed."""


class AudioError(HubertError):
    """An audio file cannot be used: missing, truncated, wrong rate, too short, not finite."""


class LabelError(HubertError):
    """A label file or label store does not fit its manifest, audio, dictionary or unit model."""


class TextError(HubertError):
    """Transcripts, a vocabulary or a tokenizer cannot be used, or do not fit together."""


class DecodingError(HubertError):
    """A language model, a lexicon or a decoder's option cannot be used, or does not fit the recogniser."""


class UnitModelError(HubertError):
    """A unit model cannot be fitted, read or used."""


class CheckpointError(HubertError):
    """A model checkpoint is missing, damaged or of another shape than expected."""


class OutputDirError(HubertError):
    """An output folder holds something that must not be overwritten."""


class MissingDependencyError(HubertError):
    """An optional package is needed for what was asked."""


class TrainingError(HubertError):
    """Training cannot go on: losses that are not finite, or not enough memory for a batch."""


class StorageError(HubertError):
    """A file could not be written (for example: the disk is full); what stood there before is untouched."""


class ReportError(HubertError):
    """The numbers of a report cannot be read, or do not belong together."""


def format_problems(head: str, problems: Sequence[str]) -> str:
    """Join ``problems`` under the sentence ``head``: the first 20, one a line, then how many more there are."""
    lines = [head, *(f"  - {p}" for p in problems[:MAX_SHOWN_PROBLEMS])]

    if (num_left := len(problems) - MAX_SHOWN_PROBLEMS) > 0:
        lines.append(f"  … and {num_left} more.")

    return printable("\n".join(lines))
