"""Whether options fit what is there, or will be: layers the models that rounds train, measures what is known of the
audio, transcripts the audio.

Verbs find such things when they open a model or a corpus: in a refinement, after the trainings before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.data.transcripts import TranscriptConfig, read_transcripts
from hubert_plugin.errors import HubertError
from hubert_plugin.refinement.config import AUTO, HUBERT_LAYER
from hubert_plugin.refinement.overview import round_shape, training_of
from hubert_plugin.refinement.plan import BESIDE_MANIFEST, needs_choice
from hubert_plugin.refinement.settings import flatten, merge, structure
from hubert_plugin.refinement.steps import Step
from hubert_plugin.refinement.workshop import Workshop, choice_source

_TRANSCRIPTS = "dataset.transcripts."

_NEEDED = {
    "pnmi": ("phone times", "alignment.path", "dataset.alignment", "align.tsv"),
    "abx": ("item files", "abx.items", "dataset.items", ".item"),
}
"""By measure: what it needs, the option of `analyze` that names it, ours, and how files it finds by itself end."""


def layer_problems(shop: Workshop, refused: Collection[str]) -> list[str]:
    """Say which layers are named that the rounds' models will not have.

    :param refused: The steps whose options are refused by their verbs.
    """
    config = shop.config

    problems: list[str] = []

    for idx in range(len(config.rounds)):
        if (last := _num_layers(shop, idx, refused)) is None:
            continue

        name = config.round_name(idx)

        model = f"the model of {name} has {last} layers"

        measured = merge(config.options.get("analyze", {}), config.rounds[idx].analyze).get("layers")

        layers = _numbers(measured)

        if beyond := [k for k in layers if k > last]:
            problems.append(
                f"{name} / analyze: `layers` holds {_join(beyond)}, but {model}: name some from 1 to {last}."
            )

        if measured is None:
            layers = list(range(1, last + 1))

        for reader in _readers(shop, idx):
            features, allowed = config.features_of(reader), config.choice.layers

            where, layer = config.round_name(reader), features.config.get("layer", features.layer)

            if isinstance(layer, int) and layer > last:
                problems.append(
                    f"{where} / cluster: `rounds[{reader}].features.layer` is {layer}, but {model}: name one from 1 to "
                    f"{last}, or `auto`."
                )
            elif needs_choice(config, reader) and allowed is not None and not set(allowed) & set(layers):
                problems.append(
                    f"{where} / choice: `choice.layers` allows {_join(allowed) or 'none'}, but {model}, of which "
                    f"{_join(layers) or 'none'} will be measured: name some of these."
                )

    return problems


def head_problems(shop: Workshop, refused: Collection[str]) -> list[str]:
    """Say which target heads do not fit the models of their rounds, or the label sets.

    :param refused: The steps whose options are refused by their verbs.
    """
    problems: list[str] = []

    for idx in range(len(shop.config.rounds)):
        if (last := _num_layers(shop, idx, refused)) is None:
            continue

        step = shop.steps[f"{shop.config.round_name(idx)}/pretrain"]

        work = step.make(shop)

        training = training_of(shop, idx, work, 1)

        for nr, head in enumerate(training.heads):
            layer = head.get("layer")

            if isinstance(layer, int) and not 1 <= layer <= last:
                problems.append(
                    f"{step.title}: `model.config_overrides.heads[{nr}].layer` is {layer}, but the model has {last} "
                    f"layers: name one from 1 to {last}."
                )

        names = work.options["dataset.labels"]

        dropped = 0 if training.shape is None else training.shape.num_dropped_heads

        # An ellipsis stands for names that only the fitted units tell.
        if isinstance(names, list) and "…" not in names and not 0 <= dropped < len(names):
            problems.append(
                f"{step.title}: `num_dropped_heads` is {dropped}, but must be at least 0 and below the number of "
                f"heads, that of the label sets, {len(names)} ({', '.join(map(str, names))}): set "
                "`model.config_overrides.num_dropped_heads`, or have more label sets."
            )

    return problems


def measure_problems(shop: Workshop, refused: Collection[str]) -> list[str]:
    """Say for which rounds `choice.measure` asks for phone times or item files that there are none of, or for view
    consistency, which the options of `analyze` switch off.

    :param refused: The steps whose options are refused by their verbs.
    """
    config = shop.config

    measure = config.choice.measure

    problems: list[str] = []

    for idx in range(len(config.rounds)):
        if not needs_choice(config, idx) or (source := choice_source(config, idx)) in refused:
            continue

        where, layer = f"{config.round_name(idx)} / choice", f"name the layer (`rounds[{idx}].features.layer`)"

        options = flatten(shop.steps[source].make(shop).options)

        if measure in _NEEDED and not _can_measure(shop, measure, options):
            what, _, option, _ = _NEEDED[measure]

            problems.append(
                f"{where}: `choice.measure` is {measure}, for which {source} needs {what}, but there are none: name "
                f"them with `{option}`, or set `choice.measure` to auto, or {layer}."
            )
        elif measure not in _NEEDED and options.get("criterion") is False:
            if measure == AUTO and any(_can_measure(shop, m, options) for m in _NEEDED):
                continue

            others = f" and there are neither {' nor '.join(n[0] for n in _NEEDED.values())}" if measure == AUTO else ""

            problems.append(
                f"{where}: `choice.measure` is {measure}, for which {source} must measure view consistency, but "
                f"`criterion` of `analyze` is false{others}: leave it out, or {layer}."
            )

    return problems


def transcript_problems(shop: Workshop, refused: Collection[str]) -> list[str]:
    """Say what is wrong with the transcripts of recognisers, as far as there are manifests to hold them against.

    :param refused: The steps whose options are refused by their verbs.
    """
    problems: dict[str, str] = {}

    for step in shop.steps.values():
        if step.verb == "finetune" and step.key not in refused:
            for problem in _problems_of(shop, step):
                # Mostly the transcripts are those of the round before.
                problems.setdefault(problem, f"{step.title}: {problem}")

    return list(problems.values())


def _num_layers(shop: Workshop, idx: int, refused: Collection[str]) -> int | None:
    """Return how many layers the model of a round will have; ``None`` if that is not known."""
    if f"{shop.config.round_name(idx)}/pretrain" in refused:
        return None

    shape = round_shape(shop, idx)

    return None if shape is None else shape.num_layers


def _can_measure(shop: Workshop, measure: str, options: Mapping[str, object]) -> bool:
    """Return whether there is what a measure needs."""
    _, key, _, ending = _NEEDED[measure]

    # The demo corpus has both.
    return shop.config.dataset.demo is not None or bool(options.get(key)) or _are_beside(shop, ending)


def _are_beside(shop: Workshop, ending: str) -> bool:
    if shop.manifest_dir is None:
        return False

    stem = shop.manifest_dir / shop.config.dataset.valid_split

    return any(Path(f"{stem}.{s}").is_file() for s in BESIDE_MANIFEST if s.endswith(ending))


def _readers(shop: Workshop, idx: int) -> list[int]:
    """Return the rounds that cluster a layer of the model of round ``idx``."""
    config = shop.config

    found = []

    for reader in range(idx + 1, len(config.rounds)):
        features = config.features_of(reader)

        if features.name == HUBERT_LAYER:
            model = str(features.config.get("model") or config.model_of(reader, features.model))

            found += [reader] if model == f"{config.round_name(idx)}/pretrain" else []

    return found


def _problems_of(shop: Workshop, step: Step) -> list[str]:
    options = step.make(shop).options

    # Commands run in OUT.
    folder = shop.out / str(options["dataset.manifest_dir"])

    if shop.config.dataset.demo is not None and folder == shop.out / shop.manifest():
        return []  # the demo corpus has transcripts

    given = {k.removeprefix(_TRANSCRIPTS): v for k, v in options.items() if k.startswith(_TRANSCRIPTS)}

    given |= {k: str(shop.out / Path(str(v)).expanduser()) for k, v in given.items() if k in ("dir", "file") and v}

    found: list[str] = []

    for key in ("dataset.train_split", "dataset.valid_split"):
        split = str(options[key])

        if not (folder / f"{split}.tsv").is_file():
            continue  # the manifest is yet to be made

        try:
            manifest = read_manifest(folder, split, check_files=False)

            read_transcripts(manifest, structure(TranscriptConfig, given))
        except HubertError as ex:
            found.append(str(ex))

    return list(dict.fromkeys(found))


def _numbers(value: object) -> list[int]:
    return [v for v in value if isinstance(v, int)] if isinstance(value, list) else []


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
