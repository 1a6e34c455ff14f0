"""Reads a refinement's configuration: file, then ``--config``, then checks; places become absolute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from hubert_plugin.config_check import ConfigSource, check_config_keys, read_config_file
from hubert_plugin.errors import ConfigError
from hubert_plugin.refinement.config import HUBERT_LAYER, PREVIOUS, PUBLISHED, RefinementConfig
from hubert_plugin.refinement.presets import check_presets
from hubert_plugin.refinement.settings import apply_overrides, merge, structure

C = TypeVar("C", bound=RefinementConfig)

IN_OUT: Final = "{OUT}"
"""Begins the places in OUT where the configuration is saved: OUT may be moved."""


def load_config(kls: type[C], file: Path, overrides: Sequence[str], out: Path | None = None) -> C:
    """Return the configuration in ``file`` with overrides.

    :param out: The folder of the run, absolute, where it is known: what :data:`IN_OUT` stands for.
    :raises ConfigError: It has keys or values that cannot be used; names all of one kind.
    """
    source = read_config_file(file)

    check_config_keys(kls, [source])

    given = source.values if out is None else move(source.values, IN_OUT, str(out))

    values = apply_overrides(given, overrides)

    check_config_keys(kls, [ConfigSource("--config", values)])

    config = structure(kls, values)

    config.check()

    check_presets(config)

    return _absolute(config)


def _absolute(config: C) -> C:
    """Return the configuration with absolute places: commands run in OUT, and the next run may begin elsewhere."""
    section = config.dataset

    dataset = replace(
        section,
        manifest_dir=None if section.manifest_dir is None else _place(section.manifest_dir),
        source=None if section.source is None else _place(section.source),
        items=[_place(p) for p in section.items],
        alignment=_with_places(section.alignment, ("path", "symbols")),
        words=_with_places(section.words, ("path", "symbols")),
    )

    rounds = []

    for round_ in config.rounds:
        features, pretrain = round_.features, round_.pretrain

        if features is not None and features.name == HUBERT_LAYER:
            features = replace(features, model=_model(features.model))
        elif features is not None:
            features = replace(features, config=_with_places(features.config, ("path",)))

        init = pretrain.config.get("init")

        if isinstance(init, dict) and isinstance(init.get("source"), str):
            pretrain = replace(
                pretrain, config=merge(pretrain.config, {"init": {"source": _model(str(init["source"]))}})
            )

        finetune = round_.finetune

        if finetune is not None:
            finetune = replace(finetune, config=_with_transcripts(finetune.config))

        rounds.append(replace(round_, features=features, pretrain=pretrain, finetune=finetune))

    return replace(config, dataset=dataset, rounds=rounds, model=_model(config.model))


def move(value: Any, place: str, to: str) -> Any:
    """Return plain data with other places: those at or below ``place`` become such at or below ``to``."""
    if isinstance(value, dict):
        return {k: move(v, place, to) for k, v in value.items()}

    if isinstance(value, list):
        return [move(v, place, to) for v in value]

    if isinstance(value, str) and (value == place or value.startswith(f"{place}/")):
        return to + value[len(place) :]

    return value


def _place(path: Path) -> Path:
    # Links are not followed: users know their folders by these names.
    return path.expanduser().absolute()


def _with_places(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {k: str(_place(Path(v))) if k in names and isinstance(v, str) and v else v for k, v in values.items()}


def _with_transcripts(values: dict[str, Any]) -> dict[str, Any]:
    dataset = values.get("dataset")

    if not isinstance(dataset, dict) or not isinstance(dataset.get("transcripts"), dict):
        return values

    transcripts = _with_places(dataset["transcripts"], ("dir", "file"))

    return merge(values, {"dataset": {"transcripts": transcripts}})


def _model(name: str) -> str:
    """Return the absolute place of a model that is a file or folder; the name of a card stays."""
    if name in ("", PREVIOUS, PUBLISHED):
        return name

    path = Path(name).expanduser()

    if path.exists():
        return str(path.absolute())

    if path.is_absolute() or name.startswith((".", "~")):
        raise ConfigError(f"There is no model at '{path}': expected a checkpoint file or the folder of a run.")

    return name
