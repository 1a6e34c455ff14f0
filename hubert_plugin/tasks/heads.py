"""From label sets to target heads: heads are data (DESIGN, decision 3); and checks of the section ``model``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq2.models.family import ModelFamily
from fairseq2.recipe.config import ModelSection
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.yaml import YamlError, YamlLoader

from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.hubert.config import HubertHeadConfig
from hubert_plugin.registry import LabelSetSpec, unknown_name_error


def check_architecture(resolver: DependencyResolver, section: ModelSection) -> None:
    """Check ``model.arch``; fairseq2 says that it is not known, but not what is.

    :raises ConfigError: The family has no such architecture.
    """
    if section.name is not None or section.family is None or section.arch is None:
        return

    family = resolver.maybe_resolve(ModelFamily, key=section.family)

    if family is not None and section.arch not in (archs := family.get_archs()):
        raise unknown_name_error(f"architecture of the model family '{section.family}'", section.arch, sorted(archs))


def set_target_heads(section: ModelSection, label_sets: Sequence[LabelSetSpec]) -> None:
    """Give the model of ``section`` a head for each label set, or complete the heads that it names.

    Heads named in ``model.config_overrides.heads`` keep what they say; a missing size or rate is taken from the labels.
    They are put into the order of ``label_sets``: a batch has its targets in this order, and head k is compared with
    targets k.

    :raises ConfigError: The heads are no list of heads; a head names an unknown label set or another size or rate than
        the labels have; a label set has no head.
    """
    overrides: dict[str, Any] = dict(section.config_overrides or {})  # type: ignore[call-overload]

    heads = overrides.get("heads")

    if heads is None or heads == []:
        heads = [{"label_set": s.name} for s in label_sets]

    _check_list(heads, label_sets)

    places = {s.name: place for place, s in enumerate(label_sets)}

    completed = []

    for head in heads:
        name = head.get("label_set", HubertHeadConfig().label_set)

        if name not in places:
            raise ConfigError(
                f"A target head of the model predicts the label set '{name}', but the dataset has: "
                f"{', '.join(places)}. Set `dataset.labels` or `model.config_overrides.heads[…].label_set`."
            )

        spec = label_sets[places[name]]

        for key, value in (("size", spec.size), ("rate", spec.rate)):
            if head.get(key) not in (None, 0, value):
                raise ConfigError(
                    f"The target head of the label set '{name}' says {key} {head[key]}, but its labels have {value}."
                )

        completed.append({**head, "label_set": name, "size": spec.size, "rate": spec.rate})

    if missing := [name for name in places if all(head["label_set"] != name for head in completed)]:
        raise ConfigError(
            f"The dataset has the label sets {', '.join(places)}, but no target head of the model predicts "
            f"{', '.join(missing)}. Give each a head in `model.config_overrides.heads`, or take it out of "
            "`dataset.labels`."
        )

    completed.sort(key=lambda head: places[head["label_set"]])

    section.config_overrides = {**overrides, "heads": completed}


def _check_list(heads: object, label_sets: Sequence[LabelSetSpec]) -> None:
    if isinstance(heads, list) and all(isinstance(head, Mapping) for head in heads):
        return

    example = ", ".join(f"{{label_set: {s.name}}}" for s in label_sets)

    raise ConfigError(
        f"`model.config_overrides.heads` must be a list with keys and values for each target head, such as "
        f"[{example}], but is {heads!r} instead."
    )


def check_resumed_heads(resolver: DependencyResolver, section: ModelSection, checkpoint_dir: Path) -> None:
    """Check that the label sets are those of the checkpoint from which the run goes on.

    Call after :func:`set_target_heads`, where there is such a checkpoint.

    :param checkpoint_dir: Where ``model.yaml`` describes the model of the checkpoints.
    :raises CheckpointError: A label set has come, gone or got another size or place since.
    """
    try:
        content: Any = resolver.resolve(YamlLoader).load(checkpoint_dir / "model.yaml")[0]

        before = {h["label_set"]: int(h["size"]) for h in content["model_config"]["heads"]}
    except (YamlError, OSError, IndexError, KeyError, TypeError, ValueError):
        # Whether the checkpoint itself is whole is checked elsewhere.
        return

    overrides = section.config_overrides

    heads = overrides.get("heads", []) if isinstance(overrides, Mapping) else []

    now = {h["label_set"]: int(h["size"]) for h in heads}

    # The order, too: the checkpoint has the parameters of heads by place.
    if list(before.items()) != list(now.items()):
        raise CheckpointError(
            f"The checkpoints in '{checkpoint_dir}' have target heads for the label sets {_list(before)}, but the "
            f"labels are {_list(now)} now. Go on with the labels that the run was started with, or start another run: "
            f"`init.source={checkpoint_dir.parent}` in a new output folder gives it this encoder with new heads."
        )


def _list(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({size} units)" for name, size in sizes.items()) or "none"
