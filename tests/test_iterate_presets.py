"""The presets of a refinement: each can be used, and those of papers do what the papers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubert_plugin.recipes.hubert.iterate.config import HubertIterateConfig
from hubert_plugin.refinement.cost import read_training
from hubert_plugin.refinement.load import load_config
from hubert_plugin.refinement.presets import verb_presets
from hubert_plugin.refinement.units import label_set_names, num_units


def test_every_preset_can_be_used_and_refers_to_presets_that_are_there(tmp_path: Path) -> None:
    presets = verb_presets("iterate") or {}

    assert set(presets) == {"demo", "base_960h", "large_60kh", "xlarge_60kh", "ms_hubert", "adapt"}

    for name, file in presets.items():
        with_data = [] if name == "demo" else [f"dataset.manifest_dir={tmp_path}"]

        with_model = ["model=a_card"] if name in ("adapt", "large_60kh", "xlarge_60kh") else []

        config = load_config(HubertIterateConfig, file, [*with_data, *with_model])

        assert config.rounds


def preset(name: str, tmp_path: Path, *overrides: str) -> HubertIterateConfig:
    files = verb_presets("iterate") or {}

    return load_config(HubertIterateConfig, files[name], [f"dataset.manifest_dir={tmp_path}", *overrides])


def test_base_960h_is_the_papers(tmp_path: Path) -> None:
    """arXiv:2106.07447, IV-B and IV-C: MFCC, 100 clusters, 250k updates; layer 6, 500 clusters, 400k updates."""
    config = preset("base_960h", tmp_path)

    first, second = config.rounds

    assert (config.features_of(0).name, num_units(config.units_of(0))) == ("mfcc", 100)
    assert (config.features_of(1).model, config.features_of(1).layer) == ("previous", 6)
    assert num_units(config.units_of(1)) == 500
    assert (first.pretrain.preset, second.pretrain.preset) == ("base_it1", "base_it2")

    presets = verb_presets("pretrain") or {}

    trainings = [read_training(presets[str(r.pretrain.preset)], {}, 1) for r in config.rounds]

    assert [t.num_updates for t in trainings] == [250_000, 400_000]
    assert [t.update_seconds for t in trainings] == [2800.0, 2800.0]


@pytest.mark.parametrize("name", ["large", "xlarge"])
def test_large_models_learn_units_of_layer_9_of_the_second_base_model(tmp_path: Path, name: str) -> None:
    config = preset(f"{name}_60kh", tmp_path)

    assert len(config.rounds) == 1
    assert (config.features_of(0).model, config.features_of(0).layer) == ("published", 9)
    assert num_units(config.units_of(0)) == 500
    assert config.rounds[0].pretrain.preset == name
    assert config.model  # a card


def test_ms_hubert_learns_a_hierarchy_of_units(tmp_path: Path) -> None:
    config = preset("ms_hubert", tmp_path)

    assert label_set_names(config.units_of(len(config.rounds) - 1)) == [
        *("km1000", "km500", "km250", "km125", "km50", "km25"),
    ]
    assert config.rounds[-1].pretrain.preset == "ms_hubert_base"
