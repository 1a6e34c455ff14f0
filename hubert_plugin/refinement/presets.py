"""The presets of verbs, found without importing them."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path

from hubert_plugin.discovery import find_package_spec, find_presets, get_folder
from hubert_plugin.errors import ConfigError, format_problems
from hubert_plugin.refinement.config import RefinementConfig


@cache
def verb_presets(verb: str) -> dict[str, Path] | None:
    """Return the presets of a verb of this package by name; ``None`` if there is no such verb."""
    spec = find_package_spec(f"hubert_plugin.recipes.hubert.{verb}")

    folder = get_folder(spec) if spec is not None else None

    return None if folder is None else find_presets(folder)


def check_presets(config: RefinementConfig) -> None:
    """Check that the presets that rounds name are there.

    :raises ConfigError: Names all that are not.
    """
    problems = []

    for idx, round_ in enumerate(config.rounds):
        for verb, section in (("pretrain", round_.pretrain), ("finetune", round_.finetune)):
            if section is None:
                continue

            known = verb_presets(verb)

            if known is None:
                problems.append(f"`rounds[{idx}].{verb}`: this version of the package has no verb `{verb}`.")
            elif section.preset is not None and section.preset not in known:
                near = get_close_matches(section.preset, known, n=3, cutoff=0.5)

                hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

                problems.append(
                    f"`rounds[{idx}].{verb}.preset` is '{section.preset}', which is not a known preset of `{verb}`."
                    f"{hint} Known: {', '.join(known) or 'none'}."
                )

    if problems:
        raise ConfigError(format_problems("The configuration of the refinement cannot be used:", problems))
