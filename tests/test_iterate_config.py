"""What a refinement's configuration may say, and what is answered where it cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refinement import FAKE_VERBS, Refinement, two_rounds, write_manifests
from ruamel.yaml import YAML

from hubert_plugin.errors import ConfigError
from hubert_plugin.recipes.hubert.iterate.config import HubertIterateConfig
from hubert_plugin.refinement.config import UnitsSection
from hubert_plugin.refinement.load import load_config
from hubert_plugin.refinement.presets import verb_presets
from hubert_plugin.refinement.settings import apply_overrides, dump_yaml, flatten, flow_yaml, merge, unstructure
from hubert_plugin.refinement.units import label_set_names, num_units

UNITS = {"units": {"config": {"num_clusters": 10}}}


def load(tmp_path: Path, config: Mapping[str, Any], *overrides: str) -> HubertIterateConfig:
    file = tmp_path / "config.yaml"

    file.write_text(dump_yaml(dict(config)))

    return load_config(HubertIterateConfig, file, overrides)


def refused(tmp_path: Path, config: Mapping[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, config, *overrides)

    return str(caught.value)


def data(**rounds: Any) -> dict[str, Any]:
    return {"dataset": {"manifest_dir": "data"}, "rounds": [merge(UNITS, rounds)]}


@pytest.mark.parametrize(
    ("config", "phrases"),
    [
        ({"dataset": {"demo": {}}}, ["`rounds` must list at least one round"]),
        ({"rounds": [UNITS]}, ["`dataset.manifest_dir` must be the folder that holds the manifests"]),
        (
            {"dataset": {"manifest_dir": "a", "demo": {}}, "rounds": [UNITS]},
            ["one origin of audio, but has 2: manifest_dir, demo"],
        ),
        ({"dataset": {"demo": {}}, "rounds": [{}]}, ["`rounds[0]` has no `units`", "kmeans"]),
        (
            data(features={"name": "hubert_layer", "layer": "auto"}),
            ["`rounds[0].features.model` is 'previous', but there is no round before the first", "`layer: auto`"],
        ),
        (data(features={"name": "hubert_layer", "model": "published"}), ["so `model` must name a model"]),
        (data(features={"name": "hubert_layer", "model": "x", "layer": "best"}), ["must be a number or auto"]),
        (data(features={"name": "hubert_layer", "model": "x", "layer": -1}), ["0 or greater, but is -1"]),
        (data(features={"name": "hubert_layer", "model": "./gone"}), ["There is no model at"]),
        (data(pretrian={}), ["'rounds[0].pretrian' is not a known configuration key", "'rounds[0].pretrain'"]),
        (data(pretrain={"preset": "base_it3"}), ["not a known preset of `pretrain`", "'base_it1'", "'base_it2'"]),
        (data(pretrain={"config": 3}), ["`rounds[0].pretrain.config` must be keys and values, but is 3"]),
        (data(keep="none"), ["`rounds[0].keep` must be all or model"]),
        (data(name="state"), ["`rounds[0].name` must consist of", "but is 'state'"]),
        (data(name="a/b"), ["but is 'a/b'"]),
        (data(units={"name": 7}), ["`rounds[0].units.name` must be text, but is 7"]),
        ({**data(), "options": {"pretrian": {}}}, ["`options` is by verb", "but has 'pretrian'"]),
        ({**data(), "choice": {"measure": "loss"}}, ["`choice.measure` must be one of auto, pnmi"]),
        ({**data(), "on_code_change": "ask"}, ["`on_code_change` must be keep or redo"]),
        ({**data(), "num_examples": -1}, ["`num_examples` must be 0 or greater"]),
        ({**data(), "cost": {"tflops": 0}}, ["`cost.tflops` must be greater than 0"]),
        ({**data(), "rounds": {"a": 1}}, ["`rounds` must be a list"]),
        ({**data(), "dataset": {"items": ["a", 2], "demo": {}}}, ["`dataset.items[1]` must be a path, but is 2"]),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, config: Mapping[str, Any], phrases: Sequence[str]) -> None:
    message = refused(tmp_path, config)

    for phrase in phrases:
        assert phrase in message, message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    config = {"rounds": [{"keep": "x", "name": "r"}, {"name": "r", "units": {}}], "num_examples": -1}

    message = refused(tmp_path, config)

    assert message.count("\n  - ") == 5, message


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("rounds.1.keep=all", "'rounds.1.keep' names the place '1' of a list that has 1: 0 to 0"),
        ("rounds.first.keep=all", "names the place 'first' of a list"),
        ("rounds.0.keep=[", "must be YAML"),
        ("rounds.0.keap=all", "'rounds[0].keap' is not a known configuration key"),
    ],
)
def test_overrides_that_cannot_be_used_are_named(tmp_path: Path, override: str, phrase: str) -> None:
    assert phrase in refused(tmp_path, data(), override)


def test_overrides_reach_into_lists_and_sections(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        data(label={"format": "binary"}),
        *("rounds.0.units.config.num_clusters=[3, 4]", "options.pretrain.regime.num_steps=5", "title=A b"),
        *("del:rounds.0.label.format", "rounds.0.features={name: hubert_layer, model: card, layer: 3}"),
    )

    assert config.rounds[0].units == UnitsSection(config={"num_clusters": [3, 4]})
    assert config.options == {"pretrain": {"regime": {"num_steps": 5}}}
    assert config.rounds[0].label == {}
    assert config.title == "A b"
    assert config.rounds[0].features is not None
    assert config.rounds[0].features.layer == 3


def test_places_become_absolute_and_cards_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    (tmp_path / "run").mkdir()

    config = load(
        tmp_path,
        {
            **data(features={"name": "hubert_layer", "model": "run"}, pretrain={"config": {"init": {"source": "run"}}}),
            "model": "some_card",
        },
    )

    assert config.dataset.manifest_dir == tmp_path / "data"
    assert config.features_of(0).model == str(tmp_path / "run")
    assert config.rounds[0].pretrain.config["init"] == {"source": str(tmp_path / "run")}
    assert config.model == "some_card"


def test_the_configuration_that_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    for file in (verb_presets("iterate") or {}).values():
        config = load_config(HubertIterateConfig, file, ["dataset.demo={}", "model=card"])

        assert load(tmp_path, unstructure(config)) == config


NAMES = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_values_on_command_lines_are_read_as_they_were(value: Any) -> None:
    text = flow_yaml(value)

    assert "\n" not in text
    assert YAML(typ="safe", pure=True).load(text) == value


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), JSON, max_size=4))
def test_flattened_options_say_the_same(values: dict[str, Any]) -> None:
    assert apply_overrides({}, [f"{k}={flow_yaml(v)}" for k, v in flatten(values).items()]) == values


@pytest.mark.parametrize(
    ("units", "names", "size"),
    [
        ({}, ["km"], 100),
        ({"config": {"label_set": "a", "num_clusters": 7}}, ["a"], 7),
        ({"name": "kmeans_ensemble"}, ["km50", "km100", "km500"], 500),
        ({"name": "product"}, ["pq_static", "pq_delta", "pq_delta2"], 100),
        ({"name": "product", "config": {"subspaces": {"lo": [0, 9], "hi": [9, 39]}}}, ["pq_lo", "pq_hi"], 100),
        ({"name": "hierarchy", "config": {"num_clusters": [8, 4]}}, ["km8", "km4"], 8),
        ({"name": "somebodys"}, None, None),
    ],
)
def test_label_sets_are_known_before_units_are_fitted(units: dict[str, Any], names: object, size: int | None) -> None:
    section = UnitsSection(**units)

    assert label_set_names(section) == names
    assert num_units(section) == size


def test_the_whole_configuration_can_be_shown_and_used(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    text = refinement.run("--dump-config")

    shown = YAML(typ="safe", pure=True).load(text)

    assert shown["command"] == FAKE_VERBS
    assert load(tmp_path, shown) == load(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    assert not refinement.out.exists()


def test_preset_and_keys_of_the_demo_corpus_are_checked(tmp_path: Path) -> None:
    config = two_rounds(tmp_path)

    config["dataset"] = {"demo": {"train_minuts": 3}}

    text = Refinement(tmp_path, config).run(code=2)

    assert "'train_minuts' is not a known configuration key" in text
    assert "'train_minutes'" in text
