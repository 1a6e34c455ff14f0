"""What is said when a step fails: the end of its log, and the command that repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hubert_plugin.errors import HubertError
from hubert_plugin.refinement.execute import tail
from hubert_plugin.refinement.steps import Step


class StepFailedError(HubertError):
    """A step's command failed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)

        self.exit_code = exit_code
        """2 if the command ended with 2 (a user can mend it), else 1."""


def log_path(out: Path, step: Step) -> Path:
    """Return where the output of a step's command goes."""
    return out / "logs" / f"{step.key.replace('/', '-')}.log"


def describe_failure(step: Step, code: int, log: Path, shown: str, out: Path) -> str:
    """Say how a step failed, and what to do.

    :param shown: Its command, as it can be typed.
    """
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"

    lines: Sequence[str] = [f"  | {line}" for line in tail(log)]

    return "\n".join(
        [
            f"{step.title} {how}. What was done before stays. The end of its log, '{log.relative_to(out)}':",
            *lines,
            "To repeat this step alone:",
            f"  {shown}",
            "To go on when the cause is mended, run the same `iterate` command again.",
        ]
    )
