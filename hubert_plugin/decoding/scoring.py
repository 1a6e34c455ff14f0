"""How wrong hypotheses are: word and character error rates, their intervals, and what is mistaken for what."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from hubert_plugin.decoding.bootstrap import bootstrap_interval
from hubert_plugin.decoding.distance import EditCounts, align, edit_counts
from hubert_plugin.decoding.texts import Pair
from hubert_plugin.errors import TextError

NOTHING: Final = ""
"""What stands for a word that is not there."""

UTTERANCE_HEAD: Final = (
    "id",
    "wer",
    "cer",
    "words",
    "substitutions",
    "insertions",
    "deletions",
    "reference",
    "hypothesis",
    "errors",
)


@dataclass(frozen=True)
class UtteranceScore:
    """The errors of an utterance."""

    pair: Pair

    words: EditCounts

    characters: EditCounts
    """Of the words joined by single spaces; spaces count."""

    errors: tuple[tuple[str, str], ...]
    """What was said and what was written instead; one of them is empty for deletions and insertions."""


@dataclass(frozen=True)
class Rate:
    """An error rate and the limits of its confidence interval."""

    counts: EditCounts
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "rate": self.counts.rate,
            "low": self.low,
            "high": self.high,
            "substitutions": self.counts.substitutions,
            "insertions": self.counts.insertions,
            "deletions": self.counts.deletions,
            "reference_length": self.counts.reference_length,
        }


@dataclass(frozen=True)
class Evaluation:
    """The errors of a set of utterances."""

    utterances: list[UtteranceScore]

    level: float = 0.95
    """The level of confidence intervals."""

    num_draws: int = 1000

    seed: int = 0

    @cached_property
    def wer(self) -> Rate:
        """The word error rate."""
        return self._rate([u.words for u in self.utterances])

    @cached_property
    def cer(self) -> Rate:
        """The character error rate."""
        return self._rate([u.characters for u in self.utterances])

    def _rate(self, counts: Sequence[EditCounts]) -> Rate:
        total = sum(counts, EditCounts())

        interval = bootstrap_interval(counts, level=self.level, num_draws=self.num_draws, seed=self.seed)

        return Rate(total, *interval)

    @property
    def sentence_error_rate(self) -> float:
        """The share of utterances with at least one wrong word."""
        return sum(u.words.edits > 0 for u in self.utterances) / len(self.utterances)

    @property
    def num_empty_references(self) -> int:
        """How many references are empty; what was written for them are insertions."""
        return sum(u.words.reference_length == 0 for u in self.utterances)

    @property
    def num_empty_hypotheses(self) -> int:
        """For how many utterances nothing was written."""
        return sum(not u.pair.hypothesis for u in self.utterances)

    def confusions(self, count: int) -> list[tuple[str, str, int]]:
        """Return the most frequent errors: what was said, what was written, how often."""
        errors = Counter(e for u in self.utterances for e in u.errors)

        ranked = sorted(errors.items(), key=lambda item: (-item[1], item[0]))

        return [(said, written, number) for (said, written), number in ranked[:count]]

    def to_dict(self, num_confusions: int) -> dict[str, Any]:
        """Return the results as plain data."""
        return {
            "num_utterances": len(self.utterances),
            "num_empty_references": self.num_empty_references,
            "num_empty_hypotheses": self.num_empty_hypotheses,
            "wer": self.wer.to_dict(),
            "cer": self.cer.to_dict(),
            "sentence_error_rate": self.sentence_error_rate,
            "interval": {"level": self.level, "draws": self.num_draws, "seed": self.seed, "over": "utterances"},
            "confusions": [{"said": s, "written": w, "count": n} for s, w, n in self.confusions(num_confusions)],
        }

    def utterance_table(self) -> str:
        """Return the errors of each utterance as tab-separated values with a head line."""
        rows = ["\t".join(UTTERANCE_HEAD)]

        for u in self.utterances:
            c = u.words

            errors = "; ".join(f"{said or '*'} > {written or '*'}" for said, written in u.errors)

            numbers = [c.reference_length, c.substitutions, c.insertions, c.deletions]

            rows.append(
                "\t".join(
                    [
                        u.pair.id,
                        _ratio(c.rate),
                        _ratio(u.characters.rate),
                        *map(str, numbers),
                        u.pair.reference,
                        u.pair.hypothesis,
                        errors,
                    ]
                )
            )

        return "".join(f"{row}\n" for row in rows)

    def tables(self, num_confusions: int, real_time_factor: float | None = None) -> list[Table]:
        """Return the results as tables for a terminal."""
        rates = Table("", "%", f"{self.level:.0%} interval", "S", "I", "D", "of", title="Error rates")

        for name, rate in (("words (WER)", self.wer), ("characters (CER)", self.cer)):
            c = rate.counts

            rates.add_row(
                name,
                f"{100 * c.rate:.2f}",
                f"{100 * rate.low:.2f} - {100 * rate.high:.2f}",
                *(f"{n:,}" for n in (c.substitutions, c.insertions, c.deletions, c.reference_length)),
            )

        wrong = sum(u.words.edits > 0 for u in self.utterances)

        rates.add_row(
            "utterances (SER)",
            f"{100 * self.sentence_error_rate:.2f}",
            "",
            *("", "", ""),
            f"{wrong:,} of {len(self.utterances):,}",
        )

        if real_time_factor is not None:
            rates.add_row("real-time factor", f"{real_time_factor:.4f}", *[""] * 5)

        tables = [rates]

        if confusions := self.confusions(num_confusions):
            table = Table("said", "written", "times", title="Most frequent errors")

            for said, written, number in confusions:
                # Not as markup: words may be in brackets.
                table.add_row(Text(said or "*"), Text(written or "*"), f"{number:,}")

            tables.append(table)

        return tables


def evaluate_pairs(pairs: Sequence[Pair], *, level: float = 0.95, num_draws: int = 1000, seed: int = 0) -> Evaluation:
    """Score utterances.

    :raises TextError: There is none, or all references are empty.
    """
    if not any(p.reference for p in pairs):
        raise TextError(
            f"All {len(pairs):,} references are empty: there is nothing to measure against. Name the file with the "
            "words that were said."
        )

    return Evaluation([score_pair(p) for p in pairs], level, num_draws, seed)


def score_pair(pair: Pair) -> UtteranceScore:
    """Count the errors of an utterance."""
    said, written = pair.reference.split(), pair.hypothesis.split()

    words = edit_counts(said, written)

    errors = [
        (NOTHING if i is None else said[i], NOTHING if j is None else written[j])
        for i, j in (align(said, written) if words.edits else [])
        if i is None or j is None or said[i] != written[j]
    ]

    return UtteranceScore(pair, words, edit_counts(" ".join(said), " ".join(written)), tuple(errors))


def _ratio(rate: float) -> str:
    return f"{rate:.4f}" if math.isfinite(rate) else "inf"
