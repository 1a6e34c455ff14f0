"""Estimates small n-gram models: interpolated Kneser-Ney, written as ARPA files.

For models of some thousand sentences, as the demo's. Larger ones are a task for KenLM's ``lmplz`` or SRILM, whose files
can be used as well.

The estimate is that of Kneser and Ney (1995) in the interpolated form of Chen and Goodman (1999, section 4.1.6):

    p(w | h) = max(c(hw) - D, 0) / c(h) + D N(h) / c(h) · p(w | h'),

with N(h) the number of different words after the context h, and h' the context without its first word. Orders below
the highest count in how many contexts an n-gram was seen (N(·hw)) instead of how often, unless it begins the sentence;
the lowest is interpolated with the uniform distribution, from which ``<unk>`` gets its share. The discount of an order
is D = n₁ / (n₁ + 2 n₂) (Ney et al., 1994), n₁ and n₂ being how many n-grams count 1 and 2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from hubert_plugin.errors import DecodingError
from hubert_plugin.files import write_text_atomic

Ngram: TypeAlias = tuple[str, ...]

_BEGIN: Final = "<s>"
_END: Final = "</s>"
_UNKNOWN: Final = "<unk>"

_DEFAULT_DISCOUNT: Final = 0.5
"""Where too few n-grams count 1 or 2 to estimate it."""

_LOG_ZERO: Final = -99.0
"""What ARPA files write for the probability of ``<s>``, which is never predicted."""


class NgramEstimate:
    """Probabilities and back-off weights of all n-grams that were seen."""

    def __init__(self, sentences: Iterable[Sequence[str]], order: int = 3) -> None:
        """
        :param sentences: The words of each sentence.
        :param order: The length of the longest n-grams.
        :raises DecodingError: There is no word, a word is a control word or has a blank in it, or the order is below 2,
            which KenLM cannot read.
        """
        if order < 2:
            raise DecodingError(f"The order of a language model must be at least 2, but is {order} instead.")

        counts = _count(sentences, order)

        self.order = order

        self.probabilities: list[dict[Ngram, float]] = []
        """By order, from 1 on."""

        self.backoffs: dict[Ngram, float] = {}
        """The weight D N(h) / c(h) of the shorter context, by context."""

        # `<s>` is never predicted; `<unk>` is, though it was never seen.
        num_words = sum(1 for ngram in counts[0] if ngram != (_BEGIN,)) + 1

        for n, grams in enumerate(counts, start=1):
            self.probabilities.append(self._estimate_order(n, grams, num_words))

    def _estimate_order(self, n: int, grams: Counter[Ngram], num_words: int) -> dict[Ngram, float]:
        grams = Counter({g: c for g, c in grams.items() if g != (_BEGIN,)})

        discount = _discount(grams)

        totals: Counter[Ngram] = Counter()
        followers: Counter[Ngram] = Counter()

        for gram, count in grams.items():
            totals[gram[:-1]] += count
            followers[gram[:-1]] += 1

        weights = {h: discount * followers[h] / totals[h] for h in totals}

        if n > 1:
            self.backoffs |= weights

        def lower(gram: Ngram) -> float:
            return 1.0 / num_words if n == 1 else self.probabilities[n - 2][gram[1:]]

        result = {
            gram: (count - discount) / totals[gram[:-1]] + weights[gram[:-1]] * lower(gram)
            for gram, count in grams.items()
        }

        if n == 1:
            result[_UNKNOWN,] = weights[()] / num_words

        return result

    def save(self, path: Path) -> None:
        """Write the model as an ARPA file, atomically.

        :raises StorageError: The file cannot be written.
        """
        lines = ["\\data\\"]

        tables = [dict(table) for table in self.probabilities]

        tables[0][_BEGIN,] = 0.0

        lines += [f"ngram {n}={len(table)}" for n, table in enumerate(tables, start=1)]

        for n, table in enumerate(tables, start=1):
            lines += ["", f"\\{n}-grams:"]

            for gram in sorted(table):
                fields = [_log10(table[gram]), " ".join(gram)]

                if gram in self.backoffs:
                    fields.append(_log10(self.backoffs[gram]))

                lines.append("\t".join(fields))

        write_text_atomic(path, "\n".join([*lines, "", "\\end\\", ""]))


def _count(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[Ngram]]:
    """Return the counts of each order: of the highest how often, of the others in how many contexts."""
    raw: list[Counter[Ngram]] = [Counter() for _ in range(order)]

    for sentence in sentences:
        for word in sentence:
            if word in (_BEGIN, _END, _UNKNOWN) or word.split() != [word]:
                raise DecodingError(f"'{word}' cannot be a word of a language model.")

        words = (_BEGIN, *sentence, _END)

        for n in range(1, order + 1):
            raw[n - 1].update(words[i : i + n] for i in range(len(words) - n + 1))

    if not raw[0]:
        raise DecodingError("A language model needs at least one sentence to be estimated from.")

    counts = []

    for n in range(1, order):
        contexts = Counter(gram[1:] for gram in raw[n])

        # What begins a sentence has no context before it.
        counts.append(Counter({g: c if g[0] == _BEGIN else contexts[g] for g, c in raw[n - 1].items()}))

    return [*counts, raw[-1]]


def _discount(grams: Counter[Ngram]) -> float:
    once, twice = (sum(1 for c in grams.values() if c == k) for k in (1, 2))

    return once / (once + 2 * twice) if once and twice else _DEFAULT_DISCOUNT


def _log10(value: float) -> str:
    return f"{math.log10(value):.7f}" if value > 0.0 else f"{_LOG_ZERO:g}"
