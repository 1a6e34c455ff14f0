"""Greedy (best-path) decoding: the best symbol of each frame, repeats collapsed, blanks left out (Graves et al., 2006).

Letters: N utterances, T frames, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def greedy(logits: Tensor, lengths: Sequence[int] | None = None, blank: int = 0) -> list[list[int]]:
    """Return the collapsed symbols of each utterance.

    :param logits: Scores of any scale. *Shape:* (N, T, V).
    :param lengths: The number of frames of each row; what lies beyond is never text (fairseq decodes it: trap T22).
        ``None``: no row is padded.
    :param blank: The index of the blank.
    """
    return [
        [path[start] for start, _ in spans]
        for path, spans in ((path, symbol_spans(path, blank)) for path in best_paths(logits, lengths))
    ]


def best_paths(logits: Tensor, lengths: Sequence[int] | None = None) -> list[list[int]]:
    """Return the best symbol of each frame of each utterance; among equal scores the first.

    :param logits: *Shape:* (N, T, V).
    """
    if logits.dim() != 3:
        raise ValueError(f"`logits` must have the shape (N, T, V), but has {tuple(logits.shape)} instead.")

    if lengths is not None and (
        len(lengths) != logits.size(0) or not all(0 <= length <= logits.size(1) for length in lengths)
    ):
        raise ValueError(
            f"`lengths` must be {logits.size(0)} numbers from 0 to {logits.size(1)}, but is {list(lengths)} instead."
        )

    paths: list[list[int]] = logits.argmax(dim=-1).tolist() if logits.size(1) > 0 else [[] for _ in logits]

    if lengths is None:
        return paths

    return [path[:length] for path, length in zip(paths, lengths, strict=True)]


def symbol_spans(path: Sequence[int], blank: int = 0) -> list[tuple[int, int]]:
    """Return where the symbols of a path that are not blank lie: the first frame of each, and one past its last.

    Equal symbols in a row are one, unless a blank stands between them.
    """
    spans: list[tuple[int, int]] = []

    start = 0

    for idx in range(1, len(path) + 1):
        if idx == len(path) or path[idx] != path[start]:
            if path[start] != blank:
                spans.append((start, idx))

            start = idx

    return spans
