"""Which tokens are compared with which.

A *cell* has tokens A and X of one phone and tokens B of another. Within speakers, all come from one speaker; across
speakers, A and B come from one and X from another. Within contexts, all have the same neighbours.

Two options keep the task small, as libri-light and fastabx have them: of the tokens of one phone, context and speaker
at most ``max_size_group`` take part, and against A and B of a speaker at most ``max_x_across`` other speakers' X are
held. Which ones is drawn from a seed (other programs draw others: equal numbers are to be had without these options).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.analysis.abx.items import Items
from hubert_plugin.errors import LabelError

SpeakerMode = Literal["within", "across"]

ContextMode = Literal["within", "any"]

_Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """Tokens to compare, as numbers of items."""

    a: _Tokens

    b: _Tokens

    x: _Tokens
    """Within speakers the same as ``a``; a token is not compared with itself."""

    phone_a: int

    phone_b: int

    speaker: int
    """Of A and B."""

    speaker_x: int


@dataclass(frozen=True)
class AbxTask:
    """The cells of an item file."""

    items: Items

    speaker: SpeakerMode

    cells: list[Cell]

    codes: NDArray[np.int64]
    """All pairs of different tokens whose distance is needed: the lower number times the number of items, plus the
    higher one; sorted. *Shape:* (pairs,)."""

    @property
    def pairs(self) -> NDArray[np.int64]:
        """The pairs of tokens, the lower number first. *Shape:* (pairs, 2)."""
        return np.stack(np.divmod(self.codes, len(self.items)), axis=1)

    def find_pairs(self, x: _Tokens, other: _Tokens) -> NDArray[np.int64]:
        """Return the positions in :attr:`pairs` of the pairs of ``x`` and ``other``; any for a token with itself.

        *Shape:* (…, X, O) for tokens of shape (…, X) and (…, O).
        """
        return np.searchsorted(self.codes, _codes(x, other, len(self.items))).clip(max=len(self.codes) - 1)


def make_task(
    items: Items,
    *,
    speaker: SpeakerMode = "within",
    context: ContextMode = "within",
    max_size_group: int | None = 10,
    max_x_across: int | None = 5,
    seed: int = 0,
) -> AbxTask:
    """Make the cells of an item file.

    :param context: ``any`` compares tokens whatever their neighbours are (for files at phoneme level).
    :raises LabelError: There is not a single cell.
    """
    rng = np.random.default_rng(seed)

    contexts = items.contexts if context == "within" else np.zeros_like(items.contexts)

    by_context = _group(items, contexts, max_size_group, rng)

    make_cells = _cells_within if speaker == "within" else _cells_across

    cells = [cell for groups in by_context for cell in make_cells(groups, max_x_across, rng)]

    if not cells:
        needed = {
            "within": "no speaker has two tokens of one phone and one of another",
            "across": "no speaker has tokens of two phones of which another speaker has one",
        }

        where = " in the same context" if context == "within" else ""

        raise LabelError(
            f"The item file '{items.path}' ({len(items):,} items) has nothing to compare {speaker} speakers: "
            f"{needed[speaker]}{where}."
        )

    codes = np.unique(
        np.concatenate([_codes(cell.x, other, len(items)).ravel() for cell in cells for other in (cell.a, cell.b)])
    )

    first, second = np.divmod(codes, len(items))

    return AbxTask(items, speaker, cells, codes[first != second])


def _codes(x: _Tokens, other: _Tokens, num_items: int) -> NDArray[np.int64]:
    first, second = x[..., :, None], other[..., None, :]

    return np.minimum(first, second) * num_items + np.maximum(first, second)


_Groups = dict[int, dict[int, _Tokens]]
"""Tokens by phone and speaker."""


def _group(items: Items, contexts: NDArray[np.int64], max_size: int | None, rng: np.random.Generator) -> list[_Groups]:
    """Return the tokens of each context by phone and speaker, at most ``max_size`` of each."""
    order = np.lexsort((items.speakers, items.phones, contexts))

    keys = np.stack([contexts[order], items.phones[order], items.speakers[order]], axis=1)

    bounds = np.flatnonzero(np.any(np.diff(keys, axis=0) != 0, axis=1)) + 1

    by_context: dict[int, _Groups] = defaultdict(lambda: defaultdict(dict))

    for start, end in zip([0, *bounds.tolist()], [*bounds.tolist(), len(order)], strict=True):
        tokens = np.sort(order[start:end])

        if max_size is not None and len(tokens) > max_size:
            tokens = np.sort(rng.choice(tokens, max_size, replace=False))

        context, phone, speaker = keys[start].tolist()

        by_context[context][phone][speaker] = tokens

    return list(by_context.values())


def _cells_within(groups: _Groups, _: int | None, rng: np.random.Generator) -> Iterator[Cell]:
    for phone_a, by_speaker in groups.items():
        for speaker, a in by_speaker.items():
            if len(a) < 2:
                continue

            for phone_b in groups:
                if phone_b != phone_a and (b := groups[phone_b].get(speaker)) is not None:
                    yield Cell(a, b, a, phone_a, phone_b, speaker, speaker)


def _cells_across(groups: _Groups, max_x: int | None, rng: np.random.Generator) -> Iterator[Cell]:
    for phone_a, by_speaker in groups.items():
        if len(by_speaker) < 2:
            continue

        for phone_b in groups:
            if phone_b == phone_a:
                continue

            for speaker, a in by_speaker.items():
                if (b := groups[phone_b].get(speaker)) is None:
                    continue

                others = [s for s in by_speaker if s != speaker]

                if max_x is not None and len(others) > max_x:
                    others = [others[i] for i in sorted(rng.choice(len(others), max_x, replace=False).tolist())]

                for speaker_x in others:
                    yield Cell(a, b, by_speaker[speaker_x], phone_a, phone_b, speaker, speaker_x)
