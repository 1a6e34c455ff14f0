"""What the option sections of this room share."""

from __future__ import annotations

import math

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


def not_finite(options: object, *names: str) -> list[str]:
    """Return a sentence for each of the numbers, and of the lists of numbers, ``names`` that is not finite: scores
    would be infinite, or not numbers, and every hypothesis as good as another."""
    problems = []

    for name in names:
        value = getattr(options, name)

        if not all(math.isfinite(x) for x in (value if isinstance(value, (list, tuple)) else (value,))):
            problems.append(f"`{name}` must be finite, but is {value} instead.")

    return problems
