"""Which layers heads read, and which heads take part in an update."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.criteria.masked_cross_entropy import draw_heads
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig, resolve_head_layers


def test_draw_of_heads_depends_on_the_update_alone() -> None:
    draws = []

    for seed in (0, 1):
        torch.manual_seed(seed)

        draws.append([draw_heads(6, 2, step) for step in range(300)])

    assert draws[0] == draws[1]

    assert all(len(kept) == 4 and kept == sorted(set(kept)) for kept in draws[0])

    # 15 pairs, and each head is dropped in a third of the updates.
    assert len({tuple(kept) for kept in draws[0]}) == 15

    for head in range(6):
        assert 0.25 < sum(head not in kept for kept in draws[0]) / 300 < 0.42


@pytest.mark.parametrize(
    ("num_layers", "sizes", "kind", "expected"),
    [
        (12, (25, 50, 125, 250, 500, 1000), "spread", [4, 5, 7, 8, 10, 12]),
        (12, (1000, 500, 250, 125, 50, 25), "spread", [12, 10, 8, 7, 5, 4]),
        (12, (25, 50, 125, 250, 500, 1000), "spread_reverse", [12, 10, 8, 7, 5, 4]),
        (12, (50, 100, 500), "spread", [4, 8, 12]),
        (12, (50, 100, 500), "last", [12, 12, 12]),
        (12, (500,), "spread", [12]),
        (2, (3, 4, 5), "spread", [1, 1, 2]),
        (1, (3, 4), "spread", [1, 1]),
    ],
)
def test_heads_spread_over_layers_from_coarse_to_fine(
    num_layers: int, sizes: Sequence[int], kind: str, expected: list[int]
) -> None:
    heads = [HubertHeadConfig(label_set=f"km{i}", size=size) for i, size in enumerate(sizes)]

    config = HubertConfig(num_layers=num_layers, heads=heads, head_layers=kind)  # type: ignore[arg-type]

    assert resolve_head_layers(config) == expected


def test_layer_that_a_head_names_goes_before_the_rule() -> None:
    heads = [HubertHeadConfig(label_set="a", size=3, layer=6), HubertHeadConfig(label_set="b", size=5)]

    assert resolve_head_layers(HubertConfig(heads=heads, head_layers="spread")) == [6, 12]
    assert resolve_head_layers(HubertConfig(heads=heads)) == [6, 12]


@pytest.mark.parametrize("num_dropped", [-1, 2, 3])
def test_dropping_no_or_all_heads_is_refused(num_dropped: int) -> None:
    heads = [HubertHeadConfig(label_set=name, size=3) for name in "ab"]

    (error,) = HubertConfig(heads=heads, num_dropped_heads=num_dropped).validate().errors

    assert "num_dropped_heads" in error and str(num_dropped) in error
