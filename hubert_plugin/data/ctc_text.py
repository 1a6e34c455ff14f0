"""Transcripts made ready for CTC: normalised, spelled, and checked against their audio, all problems at once.

CTC emits at most one symbol a frame, and must emit a blank between equal neighbours (Graves et al., 2006, section 3.1):
a transcript of S symbols, R of which repeat the one before, needs S + R frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from fairseq2.logging import log
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.transcripts import Transcripts
from hubert_plugin.errors import TextError, format_problems
from hubert_plugin.text.normalization import TextConfig, normalize_text
from hubert_plugin.text.tokenizer import CtcTokenizer

Policy = Literal["raise", "skip"]


@dataclass
class SplitTexts:
    """The transcripts of a split, in the manifest's order."""

    texts: list[str]
    """Normalised words."""

    tokens: list[NDArray[np.int32]]
    """Symbols. *Shape of each:* (S,); empty where the utterance is left out."""

    usable: NDArray[np.int64]
    """The positions of utterances that take part, ascending."""

    num_skipped: dict[str, int]
    """How many utterances are left out, by reason: ``empty``, ``unspellable``, ``too_long``."""


def required_frames(symbols: Sequence[int] | NDArray[np.int32]) -> int:
    """Return how many frames CTC needs to emit ``symbols``."""
    array = np.asarray(symbols)

    return int(array.size + np.count_nonzero(array[1:] == array[:-1]))


def prepare_texts(
    manifest: Manifest,
    transcripts: Transcripts,
    tokenizer: CtcTokenizer,
    config: TextConfig,
    *,
    candidates: NDArray[np.int64],
    on_bad_text: Policy,
    on_long_text: Policy,
) -> SplitTexts:
    """Normalise and spell the transcripts of a split.

    :param candidates: The positions that are asked for; others are not looked at.
    :param on_bad_text: What to do with transcripts that are empty or have characters outside of the vocabulary.
    :param on_long_text: What to do with transcripts of more symbols than their audio has frames.
    :raises TextError: There are such transcripts, and the policy is ``raise``; names all of them, or the first and how
        many more.
    """
    vocabulary = tokenizer.vocabulary

    texts = [""] * len(manifest)

    tokens = [np.zeros(0, dtype=np.int32)] * len(manifest)

    empty, unspellable, too_long, usable = [], [], [], []

    outside_all: set[str] = set()

    for idx in candidates.tolist():
        where = f"{transcripts.path}:{transcripts.lines[idx]}: '{manifest.ids[idx]}'"

        texts[idx] = text = normalize_text(transcripts.texts[idx], config)

        if not text:
            empty.append(f"{where} has an empty transcript.")
        elif outside := vocabulary.find_outside(text):
            outside_all.update(outside)

            unspellable.append(f"{where} has {', '.join(map(repr, outside))}: {_shorten(text)}")
        else:
            symbols = np.asarray(tokenizer.encode(text), dtype=np.int32)

            needed, available = required_frames(symbols), frames.num_frames(int(manifest.sizes[idx]))

            if needed > available:
                too_long.append(
                    f"{where} needs {needed} frames for {symbols.size} symbols, but its audio has {available} "
                    f"({frames.seconds(int(manifest.sizes[idx])):.2f} s): {_shorten(text)}"
                )
            else:
                tokens[idx] = symbols

                usable.append(idx)

    split = manifest.split

    remedy = "or leave such utterances out with "

    _judge(
        unspellable,
        f"{len(unspellable):,} transcripts of the split '{split}' have characters that the vocabulary lacks "
        f"({' '.join(sorted(outside_all)[:40])}){_case_hint(tokenizer, outside_all)}. Normalise the text "
        f"(`task.config.text`), take another tokenizer, {remedy}`dataset.on_bad_text=skip`:",
        on_bad_text,
    )

    _judge(
        empty,
        f"{len(empty):,} transcripts of the split '{split}' are empty. Complete them, {remedy}"
        "`dataset.on_bad_text=skip`:",
        on_bad_text,
    )

    _judge(
        too_long,
        f"{len(too_long):,} transcripts of the split '{split}' have more symbols than their audio has frames; CTC "
        f"cannot emit them. Correct audio or transcripts, {remedy}`dataset.on_long_text=skip`:",
        on_long_text,
    )

    counts = {"empty": len(empty), "unspellable": len(unspellable), "too_long": len(too_long)}

    return SplitTexts(texts, tokens, np.asarray(usable, dtype=np.int64), {k: n for k, n in counts.items() if n})


def _judge(problems: Sequence[str], head: str, policy: Policy) -> None:
    if not problems:
        return

    message = format_problems(head, problems)

    if policy == "raise":
        raise TextError(message)

    log.warning("Left out: {}", message)


def _case_hint(tokenizer: CtcTokenizer, outside: set[str]) -> str:
    """Say it where only the case is wrong."""
    vocabulary = tokenizer.vocabulary

    folded: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower}

    fold = folded.get(vocabulary.case)

    if fold is None or any(vocabulary.find_outside(fold(c)) for c in outside):
        return ""

    return f"; its letters are all {vocabulary.case} case: set `task.config.text.case={vocabulary.case}`"


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
