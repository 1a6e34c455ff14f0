"""The pages of options are those of the configurations, and the commands in the documentation could be run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from doc_pages import Command, blocks, commands, pages
from processes import command_server
from ruamel.yaml import YAML

from hubert_plugin.discovery import find_groups

ROOT = Path(__file__).parent.parent


sys.path.insert(0, str(ROOT / "docs"))

import config_tree  # noqa: E402
import generate_options  # noqa: E402


def test_pages_of_options_are_those_of_the_configurations() -> None:
    rendered = generate_options.render_pages()

    folder = ROOT / "docs/options"

    written = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.md")}

    differing = sorted(n for n in rendered.keys() | written.keys() if rendered.get(n) != written.get(n))

    assert not differing, f"Run `{generate_options.COMMAND}` and commit what it writes: {', '.join(differing)}."


@pytest.mark.parametrize("verb", sorted(find_groups()["hubert"].verbs))
def test_the_whole_configuration_can_be_shown_before_anything_is_filled_in(verb: str) -> None:
    run = command_server().run("recipe", "hubert", verb, "--dump-config")

    assert run.poll() == 0, run.raw[-2000:]

    # The last section of all verbs but `iterate`.
    assert "\nrounds:\n" in run.raw if verb == "iterate" else "\ncommon:\n" in run.raw


def test_pages_of_options_hold_what_the_dataclasses_say() -> None:
    page = generate_options.render_pages()["cluster.md"]

    assert "| `split` | `str` | `train` | The split that is clustered (`<split>.tsv`)." in page
    assert "| `sample_rate` | `resample` / `refuse` | `resample` |" in page
    assert "[`kmeans`](components.md#unit-model-kmeans)" in page
    assert "| `common.seed` | `int` | `2` |" in page
    assert "| `mfcc_k100` | Iteration 1 of the paper" in page

    components = generate_options.render_pages()["components.md"]

    assert "## Unit model `kmeans`\n" in components
    assert "| `num_clusters` | `int` | `100` | The number of units, K." in components
    assert r"| `max_frames` | `int \| null` | `1000000` |" in components
    assert "`heads[…]`:" in components


VERBS = find_groups()["hubert"].verbs

COMMANDS = [(page, command) for page in pages(ROOT) for command in commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("page", "command"), COMMANDS, ids=[f"{p.relative_to(ROOT)}-{c.verb}-{i}" for i, (p, c) in enumerate(COMMANDS)]
)
def test_commands_in_the_documentation_could_be_run(page: Path, command: Command) -> None:
    assert command.verb in {*VERBS, "list"}, f"There is no verb '{command.verb}': {command.text}"

    if command.verb == "list":
        return

    presets = VERBS[command.verb].presets

    assert command.preset is None or command.preset in presets, f"'{command.verb}' has no preset '{command.preset}'."

    sources: list[dict[str, Any]] = []

    if command.preset is not None:
        sources.append(YAML(typ="safe").load(presets[command.preset].read_text(encoding="utf-8")))

    for item in command.config:
        key, _, value = item.removeprefix("del:").partition("=")

        sources.append(_nested(key.split("."), YAML(typ="safe").load(value) if value else None))

    problems = find_unknown_keys(config_tree.verb_configs()[command.verb], sources)

    assert not problems, f"{command.text}\n" + "\n".join(problems)


def test_yaml_of_configurations_in_the_documentation_has_known_keys() -> None:
    """A YAML block that has only top-level keys of some verb is taken to configure such a verb."""
    num_checked = 0

    problems = []

    for page in pages(ROOT):
        for language, code in blocks(page.read_text(encoding="utf-8")):
            values = YAML(typ="safe").load(code) if language == "yaml" else None

            if not isinstance(values, Mapping):
                continue

            kinds = [k for k in config_tree.verb_configs().values() if values.keys() <= {f.name for f in fields(k)}]

            if kinds:
                num_checked += 1

                found = [find_unknown_keys(kind, [dict(values)]) for kind in kinds]

                problems += [f"{page.name}: {p}" for p in min(found, key=len)]

    assert num_checked >= 2 and not problems, problems


@pytest.mark.parametrize(
    ("verb", "item", "is_known"),
    [
        ("cluster", "features.config.rate=50", True),
        ("cluster", "features.config.layer=3", False),
        ("cluster", "features={name: hubert_layer, config: {layer: 3}}", True),
        ("cluster", "units.config={num_clusters: 5, num_cluster: 5}", False),
        ("cluster", "features={name: somebody_elses, config: {anything: 3}}", True),
        ("cluster", "manifest=3", False),
        ("cluster", "audio.sample_rate.x=3", False),
        ("pretrain", "task.config.batching.max_seconds=3", True),
        ("pretrain", "task.config.batching.seconds=3", False),
        ("pretrain", "model.config_overrides.num_layers=3", True),
        ("pretrain", "model.config_overrides={heads: [{label_set: a, leyer: 3}]}", False),
        ("pretrain", "optimizer.config.lr=3", True),
        ("pretrain", "optimizer.config.rl=3", False),
        ("pretrain", "dataset.label_rates.km=50", True),
    ],
)
def test_unknown_keys_are_found_wherever_they_are(verb: str, item: str, is_known: bool) -> None:
    key, _, value = item.partition("=")

    source = _nested(key.split("."), YAML(typ="safe").load(value))

    assert (find_unknown_keys(config_tree.verb_configs()[verb], [source]) == []) is is_known


def find_unknown_keys(config_kls: type, sources: list[dict[str, Any]]) -> list[str]:
    """Return the keys of ``sources``, merged over the defaults, that nothing has: components' own keys included."""
    merged: dict[str, Any] = {}

    for source in sources:
        _merge(merged, source)

    return list(_unknown(merged, config_kls, config_tree.maybe_default(config_kls), ""))


def _unknown(values: Any, kls: type, default: object, path: str) -> list[str]:
    if not isinstance(values, Mapping):
        return [] if values is None else [f"'{path}' is a section, but is given {values!r}"]

    hints, problems = get_type_hints(kls), []

    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)

        if key not in hints or key not in {f.name for f in fields(kls)}:
            problems.append(f"'{where}' is not a key of {kls.__name__}")
        elif key in ("config", "config_overrides"):
            config = _config_of(kls, default, values, key)

            problems += _unknown(value, type(config), config, where) if config is not None else []
        else:
            problems += _unknown_in_value(value, hints[key], getattr(default, key, None), where)

    return problems


def _config_of(kls: type, default: object, values: Mapping[str, Any], key: str) -> object:
    """Return the default of what ``config`` or ``config_overrides`` stands for; ``None``: it is not known here."""
    if key == "config_overrides":
        family = config_tree.architectures().get(str(values.get("family", getattr(default, "family", None))))

        return None if family is None else family()

    name = values.get("name", getattr(default, "name", None))

    if (interface := getattr(kls, "component_kls", None)) is not None:
        config_kls = config_tree.component_configs().get(interface, {}).get(name)

        return None if config_kls is None else config_kls()

    config = getattr(default, "config", None)

    return config if is_dataclass(config) and name == getattr(default, "name", None) else None


def _unknown_in_value(value: Any, hint: Any, default: object, path: str) -> list[str]:
    if is_dataclass(default) and not isinstance(default, type):
        return _unknown(value, type(default), default, path)

    if isinstance(value, Mapping) and not _takes_mapping(hint):
        return [f"'{path}' is no section, but is given {dict(value)!r}"]

    problems: list[str] = []

    for kls, suffix in config_tree.section_classes(hint):
        items = [(path, value)] if not suffix else []

        if suffix.startswith("[") and isinstance(value, list):
            items = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
        elif suffix.startswith(".") and isinstance(value, Mapping):
            items = [(f"{path}.{k}", v) for k, v in value.items()]

        for where, item in items:
            if isinstance(item, Mapping):
                problems += _unknown(item, kls, config_tree.maybe_default(kls), where)

    return problems


@pytest.mark.parametrize(
    ("option", "words"), [("max_seconds", "fine-tuning leaves them out"), ("span_len", "channels")]
)
def test_options_that_tasks_share_are_told_for_all_of_them(repo_dir: Path, option: str, words: str) -> None:
    lines = (repo_dir / "docs/options/components.md").read_text().splitlines()

    rows = [line for line in lines if line.startswith(f"| `{option}` |")]

    assert len(rows) > 1 and all(words in row for row in rows)


def _takes_mapping(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType):
        return any(map(_takes_mapping, get_args(hint)))

    return hint in (object, Any) or is_dataclass(hint) or get_origin(hint) in (dict, Mapping)


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}

    assert isinstance(value, dict)

    return value


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
