"""What happens to transcripts before they are spelled: only what the configuration says, and all of it is here.

Runs of white space become one space in any case; everything else is asked for. Nothing is guessed: text that the
vocabulary cannot spell after this is reported with its utterance.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Final

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

CASES: Final = ("upper", "lower", "none")

UNICODE_FORMS: Final = ("NFC", "NFD", "NFKC", "NFKD", "none")


@dataclass(kw_only=True)
class TextConfig(Validatable):
    """How transcripts are normalised, in this order."""

    unicode_form: str = "NFC"
    """The Unicode normal form: ``NFC``, ``NFD``, ``NFKC``, ``NFKD`` or ``none``. With NFC, an accented letter is one
    character."""

    replace: dict[str, str] = field(default_factory=dict)
    """What is replaced by what, such as ``{’: "'"}``."""

    case: str = "upper"
    """``upper``, ``lower``, or ``none``: as it is."""

    drop_punctuation: bool = False
    """If true, characters of Unicode's punctuation and symbols are dropped, except those of ``keep``. A hyphen or dash
    between letters becomes a space."""

    keep: str = "'"
    """The punctuation that is kept."""

    drop: str = ""
    """Further characters that are dropped."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.case not in CASES:
            result.add_error(f"`case` must be one of {', '.join(CASES)}, but is '{self.case}' instead.")

        if self.unicode_form not in UNICODE_FORMS:
            result.add_error(
                f"`unicode_form` must be one of {', '.join(UNICODE_FORMS)}, but is '{self.unicode_form}' instead."
            )

        if "" in self.replace:
            result.add_error("`replace` must not replace the empty text.")

        return result


def normalize_text(text: str, config: TextConfig) -> str:
    """Return the words of ``text``, normalised, separated by one space."""
    if config.unicode_form != "none":
        text = unicodedata.normalize(config.unicode_form, text)  # type: ignore[arg-type]

    for old, new in config.replace.items():
        text = text.replace(old, new)

    if config.case == "upper":
        text = text.upper()
    elif config.case == "lower":
        text = text.lower()

    if config.drop_punctuation:
        text = "".join(_without_punctuation(c, config.keep) for c in text)

    if config.drop:
        text = text.translate(dict.fromkeys(map(ord, config.drop)))

    return " ".join(text.split())


def _without_punctuation(char: str, keep: str) -> str:
    category = unicodedata.category(char)

    if category[0] not in "PS" or char in keep:
        return char

    return " " if category == "Pd" else ""
