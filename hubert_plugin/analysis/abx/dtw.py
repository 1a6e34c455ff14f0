"""The distance of two tokens: angles between frames, along the best alignment of the two.

The distance of two frames is the angle between them divided by π, so between 0 and 1. The distance of two tokens is the
mean along the path of dynamic time warping (steps down, right or both) with the least sum: of several such paths, the
one that, from its end, goes diagonally where it can, else the shorter way (libri-light and fastabx take the first of
the two others; only repeated frames can tell).

Letters: P pairs, N and M frames of their tokens, F frames in all, D features of a frame.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAX_NUMBERS: Final = 1 << 24
"""How many numbers a batch of pairs may have in any array (64 MB)."""


def normalize_frames(frames: Tensor) -> Tensor:
    """Scale frames to length 1; a frame of zeros stays, at a right angle to all others. *Shape:* (F, D)."""
    return frames / frames.norm(dim=1, keepdim=True).clamp_min(torch.finfo(frames.dtype).tiny)


def token_distances(
    frames: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the distance of each pair of tokens.

    :param frames: Of length 1 each. *Shape:* (F, D).
    :param starts: Where the frames of each token begin in ``frames``. *Shape:* (I,).
    :param lengths: How many frames each token has. *Shape:* (I,).
    :param pairs: *Shape:* (P, 2).
    :returns: *Shape:* (P,).
    """
    result = np.empty(len(pairs))

    device = frames.device

    # Pairs of like lengths together: what a batch is padded with is computed for nothing.
    shapes = np.sort(lengths[pairs], axis=1)

    order = np.lexsort((shapes[:, 0], shapes[:, 1]))

    # The longer token first: the distance is the same.
    longer_first = np.where((lengths[pairs[:, 0]] >= lengths[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])

    dim = frames.size(1)

    position = 0

    while position < len(order):
        # The order is by the longer length: a few steps find how many pairs fit.
        count = len(order) - position

        while True:
            width = int(shapes[order[position + count - 1], 1])

            fits = _MAX_NUMBERS // max(width * 2 * dim, width * 2 * width)

            if count <= max(fits, 1):
                break

            count = max(fits, 1)

        chosen = order[position : position + count]

        first, second = longer_first[chosen].T

        distances = _batch_distances(
            frames,
            torch.from_numpy(starts[first]).to(device),
            torch.from_numpy(lengths[first]).to(device),
            torch.from_numpy(starts[second]).to(device),
            torch.from_numpy(lengths[second]).to(device),
        )

        result[chosen] = distances.double().cpu().numpy()

        position += count

    return result


def _batch_distances(
    frames: Tensor, starts_x: Tensor, lengths_x: Tensor, starts_y: Tensor, lengths_y: Tensor
) -> Tensor:
    x, y = _gather(frames, starts_x, lengths_x), _gather(frames, starts_y, lengths_y)

    angles = torch.bmm(x, y.transpose(1, 2)).clamp_(-1.0, 1.0).acos_().div_(math.pi)  # (P, N, M)

    return dtw(angles, lengths_x, lengths_y)


def _gather(frames: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    indices = starts[:, None] + torch.arange(int(lengths.max()), device=frames.device)

    # Beyond a token, whatever comes next in memory is taken, and not used.
    return frames[indices.clamp_max_(len(frames) - 1)]


def dtw(distances: Tensor, lengths_x: Tensor, lengths_y: Tensor) -> Tensor:
    """Return the mean distance along the best path, for each pair.

    All pairs advance together, one anti-diagonal of their tables after another. What is beyond a pair's lengths does
    not flow back into it, since paths only go forward.

    :param distances: Between the frames of each pair. *Shape:* (P, N, M).
    :param lengths_x: *Shape:* (P,).
    :param lengths_y: *Shape:* (P,).
    :returns: *Shape:* (P,).
    """
    num_pairs, num_x, num_y = distances.shape

    inf = float("inf")

    # Row i is moved i places to the right, so that an anti-diagonal is a column. Padding rows with N numbers and
    # reading them back as rows that are one shorter does that.
    skewed = torch.nn.functional.pad(distances, (0, num_x), value=inf).flatten(1)[:, :-num_x]

    skewed = skewed.view(num_pairs, num_x, num_x + num_y - 1)

    columns = skewed.permute(2, 0, 1).contiguous()  # (N + M - 1, P, N)

    last_row, last_column = (lengths_x - 1)[:, None], (lengths_x + lengths_y - 2)

    # Cost and length of the best path to each cell of the last two anti-diagonals, with one more row before the first.
    blank = distances.new_full((num_pairs, num_x + 1), inf)

    cost, cost_before = blank.clone(), blank.clone()

    length, length_before = torch.zeros_like(blank), torch.zeros_like(blank)

    cost_before[:, 0] = 0.0  # the path that has not begun: diagonally before the first cell

    result = distances.new_zeros(num_pairs)

    for k, column in enumerate(columns):
        best, best_length = cost_before[:, :-1], length_before[:, :-1]

        # Of the steps down and to the right the cheaper one, of equal ones the shorter path; the diagonal is first
        # among equals.
        down, right = cost[:, :-1], cost[:, 1:]
        down_length, right_length = length[:, :-1], length[:, 1:]

        is_down = (down < right) | ((down == right) & (down_length < right_length))

        straight = torch.where(is_down, down, right)

        is_straight = straight < best

        new_cost, new_length = blank.clone(), torch.zeros_like(blank)

        new_cost[:, 1:] = column + torch.where(is_straight, straight, best)
        new_length[:, 1:] = 1.0 + torch.where(is_straight, torch.where(is_down, down_length, right_length), best_length)

        cost_before, length_before, cost, length = cost, length, new_cost, new_length

        ends = last_column == k

        mean = cost[:, 1:].gather(1, last_row)[:, 0] / length[:, 1:].gather(1, last_row)[:, 0]

        result = torch.where(ends, mean, result)

    return result
