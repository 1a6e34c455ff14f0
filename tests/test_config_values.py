"""Values that fairseq2 would take for others are named: in the recipe's own sections, and in components that a user
chooses instead of the default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.runtime.dependency import get_dependency_resolver
from processes import assert_answer, command_server

from hubert_plugin.config_check import ConfigSource, check_config_keys, check_config_values, read_config_file
from hubert_plugin.errors import ConfigError
from hubert_plugin.recipes.hubert.pretrain.config import HubertPretrainConfig
from hubert_plugin.registry import UnitModel, check_component_values


@dataclass(kw_only=True)
class Inner:
    sizes: list[int] | None = None
    parts: dict[str, list[int]] | None = None
    rate: float | None = None
    places: list[Path] = field(default_factory=list)
    rates: tuple[float, float] = (0.0, 1.0)
    max_seconds: float = 1.0
    max_batch_seconds: float = 1.0
    dtype: torch.dtype = torch.float32
    config_overrides: object | None = None


@dataclass(kw_only=True)
class Outer:
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"sizes": [50, 2.5]}, r"`inner.sizes\[1\]` must be a whole number, but is 2.5"),
        ({"sizes": "abc"}, r"`inner.sizes` must be a list, such as \[abc\], but is 'abc'"),
        ({"parts": {"low": [0, 2.5]}}, r"`inner.parts.low\[1\]` must be a whole number, but is 2.5"),
        ({"parts": {"low": "12"}}, r"`inner.parts.low` must be a list"),
        ({"rate": float("nan")}, "`inner.rate` must be a number, but is NaN"),
        ({"places": "data"}, "`inner.places` must be a list"),
        ({"rate": float("inf")}, "`inner.rate` must be a finite number, but is inf"),
        ({"rates": [1.0, float("-inf")]}, r"`inner.rates\[1\]` must be a finite number, but is -inf"),
        ({"max_batch_seconds": float("inf")}, "`inner.max_batch_seconds` must be a finite number"),
        ({"dtype": "int8"}, "`inner.dtype` must be a floating-point type .*, but is 'int8'"),
        ({"config_overrides": {"temp": float("nan")}}, "`inner.config_overrides.temp` must be a number, but is NaN"),
        (
            {"config_overrides": {"heads": [{"weight": float("inf")}]}},
            r"`inner.config_overrides.heads\[0\].weight` must",
        ),
    ],
)
def test_values_below_options_that_may_be_null_are_judged(values: dict[str, Any], phrase: str) -> None:
    source = ConfigSource("--config", {"inner": values})

    for check in (lambda: check_config_keys(Outer, [source]), lambda: check_config_values(Outer, source)):
        with pytest.raises(ConfigError, match=f"^--config: {phrase}"):
            check()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"sizes": None},
        {"sizes": [50, 2.0]},
        {"parts": {"low": [0, 2]}},
        {"rate": 2.5},
        {"places": ["a", "b"]},
        {"max_seconds": float("inf")},
        {"dtype": "bfloat16"},
        {"dtype": "torch.float16"},
        {"config_overrides": {"temp": 0.5, "heads": [{"weight": 1}], "kind": "product"}},
    ],
)
def test_values_that_can_be_used_are_let_through(values: dict[str, Any]) -> None:
    check_config_keys(Outer, [ConfigSource("--config", {"inner": values})])


def test_unknown_keys_are_judged_by_one_of_the_two_only() -> None:
    source = ConfigSource("--config", {"inner": {"size": [50]}})

    check_config_values(Outer, source)

    with pytest.raises(ConfigError, match=r"'inner.size' is not a known .* 'inner.sizes'"):
        check_config_keys(Outer, [source])


@pytest.mark.parametrize(
    ("name", "config", "phrase"),
    [
        ("product", {"num_clusters": 2.5}, "`num_clusters` must be a whole number, but is 2.5"),
        ("product", {"subspaces": {"a": [0.5, 20]}}, r"`subspaces.a\[0\]` must be a whole number, but is 0.5"),
        ("kmeans_ensemble", {"num_clusters": [50, 99.5]}, r"`num_clusters\[1\]` must be a whole number, but is 99.5"),
    ],
)
def test_components_are_not_given_rounded_numbers(name: str, config: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError, match=f"^the configuration of '{name}': {phrase}"):
        check_component_values(get_dependency_resolver(), UnitModel, name, config)


def test_a_section_that_is_null_is_named_with_its_key() -> None:
    source = ConfigSource("x.yaml", {"task": {"config": None}})

    with pytest.raises(ConfigError, match=r"^x.yaml: `task.config` must hold keys and values, but is null\.$"):
        check_config_keys(HubertPretrainConfig, [source])

    # A component that is chosen instead may have none.
    check_config_keys(
        HubertPretrainConfig, [ConfigSource("x.yaml", {"lr_scheduler": {"name": "passthrough", "config": None}})]
    )

    with pytest.raises(ConfigError, match="the configuration of 'product' must hold keys and values, but is null"):
        check_component_values(get_dependency_resolver(), UnitModel, "product", None)


def test_a_file_of_several_documents_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"

    file.write_text("---\na: 1\n---\nb: 2\n")

    with pytest.raises(ConfigError, match=r"two.yaml' holds 2 YAML documents .* but must hold one"):
        read_config_file(file)

    # Nothing is lost where nothing follows.
    file.write_text("---\na: 1\n---\n")

    assert read_config_file(file).values == {"a": 1}


def test_components_with_values_of_their_own_are_let_through() -> None:
    resolver = get_dependency_resolver()

    check_component_values(resolver, UnitModel, "product", {"subspaces": {"a": [0, 20], "b": [20, 39]}})
    check_component_values(resolver, UnitModel, "nobodys", {"subspaces": 0.5})  # its name is refused elsewhere


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["units.name=product", "units.config.subspaces.a=[0.5,20]"], "'product': `subspaces.a[0]` must be a whole"),
        (["units.config.num_clusters=2.5"], "'kmeans': `num_clusters` must be a whole number, but is 2.5"),
    ],
)
def test_a_command_answers_such_values(tmp_path: Path, options: list[str], phrase: str) -> None:
    run = command_server().run("recipe", "hubert", "cluster", tmp_path / "out", "--no-rich", "--config", *options)

    assert_answer(run, [phrase])

    assert not (tmp_path / "out").exists()
