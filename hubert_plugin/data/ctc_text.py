"""Transcripts made ready for CTC: normalised, spelled, and checked against their audio.

CTC emits at most one symbol a frame, and must emit a blank between equal neighbours (Graves et al., 2006, section 3.1):
a transcript of S symbols, R of which repeat the one before, needs S + R frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.ctc_problems import Kind, TextProblem
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.transcripts import Transcripts
from hubert_plugin.text.counts import count
from hubert_plugin.text.normalization import TextConfig, normalize_text
from hubert_plugin.text.tokenizer import CtcTokenizer


@dataclass
class SplitTexts:
    """The transcripts of a split, in the manifest's order."""

    texts: list[str]
    """Normalised words."""

    tokens: list[NDArray[np.int32]]
    """Symbols. *Shape of each:* (S,); empty where the utterance is left out."""

    usable: NDArray[np.int64]
    """The positions of utterances that take part, ascending."""

    num_skipped: dict[Kind, int]
    """How many utterances cannot be used, by reason: ``empty``, ``unspellable``, ``too_long``."""


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
) -> tuple[SplitTexts, list[TextProblem]]:
    """Normalise and spell the transcripts of a split.

    :param candidates: The positions that are asked for; others are not looked at.
    :returns: The transcripts; and those that cannot be used, for
        :func:`~hubert_plugin.data.ctc_problems.judge_texts`, in the order of ``candidates``.
    """
    vocabulary, split = tokenizer.vocabulary, manifest.split

    texts = [""] * len(manifest)

    tokens = [np.zeros(0, dtype=np.int32)] * len(manifest)

    usable: list[int] = []

    problems: list[TextProblem] = []

    for idx in candidates.tolist():
        where = f"{transcripts.path}:{transcripts.lines[idx]}: '{manifest.ids[idx]}'"

        texts[idx] = text = normalize_text(transcripts.texts[idx], config)

        if not text:
            problems.append(TextProblem(split, "empty", f"{where} has an empty transcript."))
        elif outside := vocabulary.find_outside(text):
            sentence = f"{where} has {', '.join(map(repr, outside))}: {_shorten(text)}"

            problems.append(TextProblem(split, "unspellable", sentence, outside))
        else:
            symbols = np.asarray(tokenizer.encode(text), dtype=np.int32)

            needed, available = required_frames(symbols), frames.num_frames(int(manifest.sizes[idx]))

            if needed > available:
                sentence = (
                    f"{where} needs {count(needed, 'frame')} for {count(symbols.size, 'symbol')}, but its audio has "
                    f"{available:,} ({frames.seconds(int(manifest.sizes[idx])):.2f} s): {_shorten(text)}"
                )

                problems.append(TextProblem(split, "too_long", sentence))
            else:
                tokens[idx] = symbols

                usable.append(idx)

    counts: Counter[Kind] = Counter(p.kind for p in problems)

    return SplitTexts(texts, tokens, np.asarray(usable, dtype=np.int64), dict(counts)), problems


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
