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
from hubert_plugin.refinement.choice import choose_layer
from hubert_plugin.refinement.config import ChoiceSection, UnitsSection
from hubert_plugin.refinement.cost import PRETRAIN_DEFAULTS, SHAPES, Shape, label_bytes, read_training
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


def analysis(**spaces: dict[str, Any]) -> dict[str, Any]:
    return {"spaces": spaces}


def units_at(k: int, **measures: float | None) -> dict[str, Any]:
    return {"units": {str(k): measures}}


CHOICES: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    (
        "PNMI where phones are known; MFCC is no layer",
        analysis(mfcc=units_at(50, pnmi=0.9), L1=units_at(50, pnmi=0.2), L2=units_at(50, pnmi=0.3)),
        {},
        2,
        "pnmi",
    ),
    (
        "the lower of equals",
        analysis(L10=units_at(50, pnmi=0.3), L9=units_at(50, pnmi=0.3), L2=units_at(50, pnmi=0.1)),
        {},
        9,
        "pnmi",
    ),
    (
        "ABX error, lower is better, mean over the tasks that all have",
        analysis(
            L1={"abx": {"within": {"error": 0.10}, "across": {"error": 0.30}}},
            L2={"abx": {"within": {"error": 0.12}, "across": {"error": 0.20}, "more": {"error": 0.0}}},
        ),
        {},
        2,
        "abx",
    ),
    (
        "the criterion without labels, if there is nothing else",
        analysis(L1=units_at(50, pnmi=None, criterion=0.7), L2=units_at(50, pnmi=None, criterion=0.6)),
        {},
        1,
        "unsupervised",
    ),
    (
        "what the configuration says",
        analysis(L1={**units_at(50, pnmi=0.1), "abx": {"w": {"error": 0.1}}},
                 L2={**units_at(50, pnmi=0.2), "abx": {"w": {"error": 0.2}}}),
        {"measure": "abx"},
        1,
        "abx",
    ),
    (
        "only layers that are allowed",
        analysis(L1=units_at(50, pnmi=0.1), L2=units_at(50, pnmi=0.2), L3=units_at(50, pnmi=0.3)),
        {"layers": [1, 2]},
        2,
        "pnmi",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "section", "layer", "measure"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES]
)
def test_the_layer_is_chosen_by(found: dict[str, Any], section: dict[str, Any], layer: int, measure: str) -> None:
    choice = choose_layer(found, ChoiceSection(**section), num_clusters=50, source="round1/analyze")

    assert (choice.layer, choice.measure) == (layer, measure)
    assert f"Layer {layer} has the {'lowest' if measure == 'abx' else 'highest'}" in choice.reason


@pytest.mark.parametrize(("wanted", "used"), [(500, 500), (400, 100), (1000, 500), (20, 50), (None, 500)])
def test_layers_are_compared_at_the_next_rounds_number_of_units_or_one_near(wanted: int | None, used: int) -> None:
    sizes = {str(k): {"pnmi": 0.1} for k in (50, 100, 500)}

    choice = choose_layer(analysis(L1={"units": sizes}), ChoiceSection(), num_clusters=wanted, source="x")

    assert choice.num_clusters == used
    assert ("which were not measured" in choice.reason) == (wanted is not None and wanted != used)


@pytest.mark.parametrize(
    ("found", "section", "phrase"),
    [
        (analysis(L1=units_at(50, pnmi=None)), {}, "No layer can be chosen by PNMI or ABX error or view consistency"),
        (analysis(L1=units_at(50, pnmi=0.1)), {"measure": "abx"}, "No layer can be chosen by ABX error"),
        (analysis(L1=units_at(50, pnmi=0.1)), {"layers": [7]}, "`choice.layers` allows [7], but x measured L1"),
        ({}, {}, "No layer can be chosen"),
    ],
)
def test_nothing_to_choose_by_is_said(found: dict[str, Any], section: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_layer(found, ChoiceSection(**section), num_clusters=50, source="x")

    assert phrase in str(caught.value)


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


def test_the_defaults_of_pretrain_are_those_that_costs_are_estimated_with() -> None:
    from hubert_plugin.recipes.hubert.pretrain.config import HubertPretrainConfig

    config: Any = HubertPretrainConfig()

    for key, value in flatten(PRETRAIN_DEFAULTS).items():
        node = config

        for part in key.split("."):
            node = getattr(node, part)

        assert node == value, key


def test_options_that_pretrain_lets_change_are_no_reason_to_train_again() -> None:
    from hubert_plugin.refinement.steps import is_how
    from hubert_plugin.tasks.output_dir import _MAY_CHANGE

    for key in _MAY_CHANGE:
        assert is_how("pretrain", key), key

    assert not is_how("pretrain", "regime.num_steps")


def test_the_criterion_is_called_what_the_analysis_calls_it() -> None:
    from hubert_plugin.analysis.unsupervised import CRITERION_NAME
    from hubert_plugin.refinement.choice import _NAMES

    assert _NAMES["unsupervised"] == CRITERION_NAME


def test_error_rates_of_a_recogniser_are_those_of_its_last_whole_record(tmp_path: Path) -> None:
    """The metric names are those of `finetune`; the last line was cut by a kill."""
    from hubert_plugin.refinement.outcomes import recognition_results

    records = [
        {"Step": 1, "Word Error Rate (WER)": 90.0, "Character Error Rate (CER)": 50.0},
        {"Step": 2, "Word Error Rate (WER)": 80.0, "Character Error Rate (CER)": 25.0, "Loss": 3.0},
    ]

    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/valid.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"Step": 3, "Wo')

    found = {r.name: (r.value, r.unit, r.on) for r in recognition_results(tmp_path, "dev")}

    assert found == {"WER": (0.8, "%", "dev"), "CER": (0.25, "%", "dev")}

    assert recognition_results(tmp_path / "none", "dev") == []


def test_the_sample_of_unit_models_is_the_one_that_costs_are_estimated_with() -> None:
    from hubert_plugin.refinement.overview import SAMPLE_FRAMES
    from hubert_plugin.units.estimator import ClusteringConfig

    assert ClusteringConfig().max_frames == SAMPLE_FRAMES


def test_text_labels_take_their_digits_and_spaces(tmp_path: Path) -> None:
    labels = tmp_path / "train.km"

    labels.write_text(" ".join(str(100 + i % 400) for i in range(50 * 60)) + "\n")

    assert label_bytes(60.0, 50, [500]) == labels.stat().st_size


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
