"""From label sets to target heads: heads are data (DESIGN, decision 3); and checks of the section ``model``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairseq2.models.family import ModelFamily
from fairseq2.recipe.config import ModelSection
from fairseq2.runtime.dependency import DependencyResolver

from hubert_plugin.errors import ConfigError
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

    :raises ConfigError: A head names an unknown label set or another size or rate than the labels have.
    """
    overrides: dict[str, Any] = dict(section.config_overrides or {})  # type: ignore[call-overload]

    heads = overrides.get("heads")

    if not heads:
        heads = [{"label_set": s.name} for s in label_sets]

    known = {s.name: s for s in label_sets}

    completed = []

    for head in heads:
        name = head.get("label_set")

        if name not in known:
            raise ConfigError(
                f"A target head of the model predicts the label set '{name}', but the dataset has: {', '.join(known)}. "
                "Set `dataset.labels` or `model.config_overrides.heads[…].label_set`."
            )

        spec = known[name]

        for key, value in (("size", spec.size), ("rate", spec.rate)):
            if head.get(key) not in (None, 0, value):
                raise ConfigError(
                    f"The target head of the label set '{name}' says {key} {head[key]}, but its labels have {value}."
                )

        completed.append({**head, "size": spec.size, "rate": spec.rate})

    section.config_overrides = {**overrides, "heads": completed}
