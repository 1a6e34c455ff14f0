"""Says why utterances take no part in training for recognition, how many, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from hubert_plugin import frames
from hubert_plugin.data.ctc_problems import REMEDIES, Kind
from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.text.counts import count


@final
@dataclass(frozen=True)
class LeftOut:
    """How many utterances of a split take no part, by reason other than their transcripts."""

    num_short: int = 0
    """Shorter than ``min_seconds``."""

    num_long: int = 0
    """Longer than ``max_seconds``."""

    num_undrawn: int = 0
    """Not drawn for ``train_minutes``."""


def describe_left_out(
    left_out: LeftOut,
    texts: Mapping[Kind, int],
    batching: BatchConfig,
    train_minutes: float | None,
) -> tuple[str, str]:
    """Return what leaves utterances out and how many, and what to change; both empty where all take part.

    :param texts: How many transcripts cannot be used, by reason.
    """
    # As `usable_utterances` has it: less than a frame is too short in any case.
    shortest = max(batching.min_seconds, frames.seconds(frames.RECEPTIVE_FIELD))

    entries = [
        (
            left_out.num_long,
            f"longer than `task.config.batching.max_seconds` ({batching.max_seconds:g} s)",
            "raise `task.config.batching.max_seconds` (`batch_seconds` must not be smaller) or cut the audio into "
            "shorter utterances",
        ),
        (
            left_out.num_short,
            f"shorter than `task.config.batching.min_seconds` ({shortest:g} s)",
            "lower `task.config.batching.min_seconds`",
        ),
        (
            left_out.num_undrawn,
            f"not drawn for `dataset.train_minutes` ({train_minutes or 0:g})",
            "raise `dataset.train_minutes`",
        ),
        (texts.get("empty", 0), "with an empty transcript", REMEDIES["empty"]),
        (texts.get("unspellable", 0), "with characters that the vocabulary lacks", REMEDIES["unspellable"]),
        (texts.get("too_long", 0), "with more symbols than frames", REMEDIES["too_long"]),
    ]

    found = [(f"{number:,} {what}", remedy) for number, what, remedy in entries if number]

    return ", ".join(what for what, _ in found), ", ".join(remedy for _, remedy in found)


def none_takes_part(num_utterances: int, where: str, what: str, remedies: str) -> str:
    """Return the sentences for a split of which nothing is left.

    :param where: The split and its folder.
    :param what: From :func:`describe_left_out`, as is ``remedies``.
    """
    return (
        f"None of the {count(num_utterances, 'utterance')} of {where} takes part. Left out: {what}. To change that, "
        f"{remedies}."
    )
