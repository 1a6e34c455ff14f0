"""What the costs of a refinement are estimated with is what is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hubert_plugin.refinement.cost import PRETRAIN_DEFAULTS, SHAPES, Shape, label_bytes, read_training
from hubert_plugin.refinement.settings import flatten


@pytest.mark.parametrize(
    ("arch", "params", "gflop"),
    [("base", 94_370_944, 15.4), ("large", 315_434_112, 39.9), ("xlarge", 962_492_544, 110.3)],
)
def test_costs_are_those_of_the_shapes(arch: str, params: int, gflop: float) -> None:
    """Parameter counts of fairseq's models, and operations counted layer by layer from the same code."""
    assert SHAPES[arch].num_params() == params
    assert SHAPES[arch].forward_flops() / 1e9 == pytest.approx(gflop, rel=0.02)
    assert SHAPES[arch].training_flops() == pytest.approx(3 * SHAPES[arch].forward_flops())


def test_shapes_are_those_of_the_registered_architectures() -> None:
    from dataclasses import fields

    from hubert_plugin.models.hubert.hub import get_hubert_model_hub

    for arch, shape in SHAPES.items():
        config: Any = get_hubert_model_hub().get_arch_config(arch)

        for field in fields(Shape):
            if field.name == "views":
                assert shape.views == (2 if config.swap else 1)
            elif field.name == "conv_layers":
                assert [tuple(c) for c in shape.conv_layers] == [tuple(c) for c in config.conv_layers]
            else:
                assert getattr(shape, field.name) == getattr(config, field.name), (arch, field.name)


def test_two_views_are_counted_where_they_are_swapped() -> None:
    def flops(arch: str, **options: bool) -> float | None:
        overrides = {f"model.config_overrides.{k}": v for k, v in options.items()}

        return read_training(None, {"model.arch": arch, **overrides}, 1).flops()

    one, two = flops("base"), flops("ms_hubert_base")

    assert one is not None and two is not None and one < two
    assert flops("base", swap=True) == two
    assert flops("ms_hubert_base", swap=False) == one
    assert flops("base", swap=False) == one


def test_the_defaults_of_pretrain_are_those_that_costs_are_estimated_with() -> None:
    from hubert_plugin.recipes.hubert.pretrain.config import HubertPretrainConfig

    config: Any = HubertPretrainConfig()

    for key, value in flatten(PRETRAIN_DEFAULTS).items():
        node = config

        for part in key.split("."):
            node = getattr(node, part)

        assert node == value, key


def test_the_sample_of_unit_models_is_the_one_that_costs_are_estimated_with() -> None:
    from hubert_plugin.refinement.overview import SAMPLE_FRAMES
    from hubert_plugin.units.estimator import ClusteringConfig

    assert ClusteringConfig().max_frames == SAMPLE_FRAMES


def test_text_labels_take_their_digits_and_spaces(tmp_path: Path) -> None:
    labels = tmp_path / "train.km"

    labels.write_text(" ".join(str(100 + i % 400) for i in range(50 * 60)) + "\n")

    assert label_bytes(60.0, 50, [500]) == labels.stat().st_size
