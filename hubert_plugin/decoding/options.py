"""What the option sections of this room share."""

from __future__ import annotations

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override


class Options(Validatable):
    """A section of a configuration that can say what is wrong with it."""

    def problems(self) -> list[str]:
        """Return what is wrong with the options, in whole sentences."""
        return []

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for problem in self.problems():
            result.add_error(problem)

        return result
