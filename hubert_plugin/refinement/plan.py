"""From rounds to steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hubert_plugin.refinement.config import (
    AUTO,
    HUBERT_LAYER,
    PREVIOUS,
    PUBLISHED,
    FeaturesSection,
    RefinementConfig,
)
from hubert_plugin.refinement.digests import digest_of
from hubert_plugin.refinement.record import plain, read_record
from hubert_plugin.refinement.settings import flatten, merge
from hubert_plugin.refinement.steps import Step, Work, is_how
from hubert_plugin.refinement.units import label_set_names, num_units
from hubert_plugin.refinement.workshop import Workshop

REPORT: Final = "report"

BESIDE_MANIFEST: Final = ("align.tsv", "words.tsv", "triphone.item", "phoneme.item")
"""What the demo corpus has beside its manifests, and `analyze` finds there."""


FEATURE_PLACES: Final = ("features.config.model", "features.config.path")

TRANSCRIPTS: Final = ("wrd", "ltr", "text")
"""What `finetune` finds there."""


def plan_steps(config: RefinementConfig) -> list[Step]:
    """Return all steps in their order. Choices of layers are none: they cost nothing and are made anew each time."""
    steps: list[Step] = []

    if config.dataset.source is not None:
        steps.append(Step("manifest", "manifest", None, _manifest))

    for idx in range(len(config.rounds)):
        name = config.round_name(idx)

        features = config.features_of(idx)

        def add(verb: str, make: Callable[[Workshop, int], Work], key: str, idx: int = idx, name: str = name) -> None:
            steps.append(Step(f"{name}/{key}", verb, idx, lambda w: make(w, idx)))

        if features.name == HUBERT_LAYER and features.layer == AUTO and features.model != PREVIOUS:
            add("analyze", _layers, "layers")

        add("cluster", _cluster, "cluster")
        add("label", _label, "label")
        add("pretrain", _pretrain, "pretrain")
        add("analyze", _analyze, "analyze")

        if config.rounds[idx].finetune is not None:
            add("finetune", _finetune, "finetune")

    steps.append(Step(REPORT, "iterate", None, _report, ("--report",)))

    return steps


def needs_choice(config: RefinementConfig, idx: int) -> bool:
    """Return whether the layer of a round is chosen by measure."""
    features = config.features_of(idx)

    return features.name == HUBERT_LAYER and features.layer == AUTO


def _manifest(shop: Workshop) -> Work:
    section = shop.config.dataset

    options = {"source": str(section.source), **_user_options(shop.config, "manifest", section.manifest)}

    # What the folder of audio holds is not looked at each time; `manifest` is run again where options change.
    return Work(options, _settings("manifest", options), {})


def _cluster(shop: Workshop, idx: int) -> Work:
    config = shop.config

    features, inputs = _features(shop, idx)

    units = config.units_of(idx)

    options = {
        "manifest_dir": shop.manifest(),
        "split": config.dataset.train_split,
        **features,
        "units.name": units.name,
        **_if_given("units.config", units.config),
        **_user_options(config, "cluster", config.rounds[idx].cluster),
    }

    inputs = {"the training manifest": shop.manifest_digest(config.dataset.train_split), **inputs}

    return Work(options, _settings("cluster", options, "manifest_dir", *FEATURE_PLACES), inputs)


def _label(shop: Workshop, idx: int) -> Work:
    config = shop.config

    features, inputs = _features(shop, idx)

    section = config.dataset

    cluster = f"{config.round_name(idx)}/cluster"

    options = {
        "manifest_dir": shop.manifest(),
        "splits": _splits(config),
        "unit_model": f"{cluster}/units.safetensors",
        **features,
        **_user_options(config, "label", config.rounds[idx].label),
    }

    inputs = {
        "the training manifest": shop.manifest_digest(section.train_split),
        "the validation manifest": shop.manifest_digest(section.valid_split),
        "the unit model": shop.result_digest(cluster),
        **inputs,
    }

    return Work(options, _settings("label", options, "manifest_dir", "unit_model", *FEATURE_PLACES), inputs)


def _pretrain(shop: Workshop, idx: int) -> Work:
    config = shop.config

    section, round_ = config.dataset, config.rounds[idx]

    labels = f"{config.round_name(idx)}/label"

    names = label_set_names(config.units_of(idx), shop.out / config.round_name(idx) / "cluster/units.safetensors")

    own = merge(config.options.get("pretrain", {}), round_.pretrain.config)

    inputs = {
        "the training manifest": shop.manifest_digest(section.train_split),
        "the validation manifest": shop.manifest_digest(section.valid_split),
        "the labels": shop.result_digest(labels),
    }

    init = own.get("init", {}).get("source") if isinstance(own.get("init"), Mapping) else None

    if isinstance(init, str) and init:
        source = config.model_of(idx, init)

        own = merge(own, {"init": {"source": _model_place(shop, source)}})

        inputs[_model_name(config, idx, init)] = shop.model_digest(source)

    options = {
        "dataset.manifest_dir": shop.manifest(),
        "dataset.train_split": section.train_split,
        "dataset.valid_split": section.valid_split,
        "dataset.label_dir": labels,
        "dataset.labels": names or ["…"],
        **flatten(own),
    }

    places = ("dataset.manifest_dir", "dataset.label_dir", "init.source")

    return Work(options, _settings("pretrain", options, *places), inputs, round_.pretrain.preset)


def _analyze(shop: Workshop, idx: int) -> Work:
    config = shop.config

    name = config.round_name(idx)

    sizes = [num_units(config.units_of(i)) for i in (idx, idx + 1) if i < len(config.rounds)]

    options = {
        **_measurement(shop, [k for k in sizes if k is not None]),
        "model": f"{name}/pretrain",
        "labels": label_set_names(config.units_of(idx), shop.out / name / "cluster/units.safetensors") or ["…"],
        "label_dir": f"{name}/label",
        **_user_options(config, "analyze", config.rounds[idx].analyze),
    }

    inputs = {
        **_measurement_inputs(shop),
        "the model": shop.result_digest(f"{name}/pretrain"),
        "the labels": shop.result_digest(f"{name}/label"),
    }

    return Work(options, _measurement_settings(options), inputs)


def _layers(shop: Workshop, idx: int) -> Work:
    """Measure the layers of a model that is there before the round begins."""
    config = shop.config

    model = config.model_of(idx, config.features_of(idx).model)

    size = num_units(config.units_of(idx))

    options = {
        **_measurement(shop, [] if size is None else [size]),
        "model": _model_place(shop, model),
        **_user_options(config, "analyze", config.rounds[idx].analyze),
    }

    inputs = {
        **_measurement_inputs(shop),
        _model_name(config, idx, config.features_of(idx).model): shop.model_digest(model),
    }

    return Work(options, _measurement_settings(options), inputs)


def _finetune(shop: Workshop, idx: int) -> Work:
    config = shop.config

    section, round_ = config.dataset, config.rounds[idx]

    assert round_.finetune is not None

    model = f"{config.round_name(idx)}/pretrain"

    own = merge(config.options.get("finetune", {}), round_.finetune.config)

    inputs = {
        "the training manifest": shop.manifest_digest(section.train_split),
        "the validation manifest": shop.manifest_digest(section.valid_split),
        "the model": shop.result_digest(model),
    }

    options = {
        "pretrained": model,
        "dataset.manifest_dir": shop.manifest(),
        "dataset.train_split": section.train_split,
        "dataset.valid_split": section.valid_split,
        **flatten(own),
    }

    for name in ("dir", "file"):
        if path := options.get(f"dataset.transcripts.{name}"):
            inputs["the transcripts"] = shop.file_digest(Path(str(path)))

    for split in _splits(config):
        inputs |= _files_beside(shop, split, TRANSCRIPTS)

    places = ("pretrained", "dataset.manifest_dir", "dataset.transcripts.dir", "dataset.transcripts.file")

    return Work(options, _settings("finetune", options, *places), inputs, round_.finetune.preset)


def _report(shop: Workshop) -> Work:
    inputs = {}

    for key in shop.steps:
        if key != REPORT:
            record = read_record(shop.out, key)

            # What is left counts, and the times that the page shows (two runs may take equally long, but do not start
            # together); not, how often it was looked at.
            if record is not None:
                inputs[shop.steps[key].title] = digest_of(
                    [dict(record.outputs), record.started, record.seconds, record.status]
                )

    for idx, choice in shop.choices.items():
        inputs[f"the choice of {shop.config.round_name(idx)}"] = digest_of([choice.layer, choice.reason])

    return Work({}, {"title": shop.config.title, "num_examples": shop.config.num_examples}, inputs)


def _features(shop: Workshop, idx: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options that name the features of a round, and what they are computed with."""
    config = shop.config

    features: FeaturesSection = config.features_of(idx)

    if features.name != HUBERT_LAYER:
        path = features.config.get("path")

        inputs = {"the features in files": shop.digests.of_features(Path(path))} if isinstance(path, str) else {}

        return {"features.name": features.name, **_if_given("features.config", features.config)}, inputs

    layer: Any = features.layer

    if layer == AUTO:
        choice = shop.choice(idx)

        layer = AUTO if choice is None else choice.layer

    model = config.model_of(idx, features.model)

    values = {"model": _model_place(shop, model), "layer": layer, **features.config}

    return (
        {"features.name": features.name, "features.config": values},
        {_model_name(config, idx, features.model): shop.model_digest(model)},
    )


def _measurement(shop: Workshop, sizes: list[int]) -> dict[str, Any]:
    """Return the options that all measurements share."""
    section = shop.config.dataset

    return {
        "manifest_dir": shop.manifest(),
        "split": section.valid_split,
        "fit_split": section.train_split,
        **({"num_clusters": sorted(set(sizes))} if sizes else {}),
        # Otherwise it is measured where there are no phone times.
        **({"criterion": True} if shop.config.choice.measure == "unsupervised" else {}),
        **flatten(section.alignment, "alignment."),
        **flatten(section.words, "words."),
        **({"abx.items": [str(p) for p in section.items]} if section.items else {}),
    }


def _measurement_inputs(shop: Workshop) -> dict[str, str]:
    section = shop.config.dataset

    return {
        "the training manifest": shop.manifest_digest(section.train_split),
        "the validation manifest": shop.manifest_digest(section.valid_split),
        **times_digests(shop),
        **_files_beside(shop, section.valid_split, BESIDE_MANIFEST),
    }


def times_digests(shop: Workshop) -> dict[str, str]:
    """Return the digests of the phone times, word times and item files that the configuration names."""
    section = shop.config.dataset

    inputs = {}

    for name, values in (("the phone times", section.alignment), ("the word times", section.words)):
        if path := values.get("path"):
            inputs[name] = shop.file_digest(Path(str(path)))

    # Places do not count: files of the same name are told apart by their order.
    for name in {p.name for p in section.items}:
        for nr, path in enumerate([p for p in section.items if p.name == name]):
            inputs[f"the item file {name}{f' ({nr + 1})' if nr else ''}"] = shop.file_digest(path)

    return inputs


def _files_beside(shop: Workshop, split: str, suffixes: Sequence[str]) -> dict[str, str]:
    """Return the digests of what lies beside a manifest and verbs find by themselves."""
    if shop.manifest_dir is None:
        return {}

    paths = [shop.manifest_dir / f"{split}.{suffix}" for suffix in suffixes]

    return {p.name: shop.file_digest(p) for p in paths if p.is_file()}


def _measurement_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    places = ("manifest_dir", "model", "label_dir", "alignment.path", "words.path", "abx.items")

    return _settings("analyze", options, *places)


def _if_given(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values} if values else {}


def _user_options(config: RefinementConfig, verb: str, own: Mapping[str, Any]) -> dict[str, Any]:
    return flatten(merge(config.options.get(verb, {}), own))


def _settings(verb: str, options: Mapping[str, Any], *places: str) -> dict[str, Any]:
    """Return what of a step's options counts for its result."""
    settings = flatten(dict(options))

    return plain({k: v for k, v in settings.items() if k not in places and not is_how(verb, k)})  # type: ignore[no-any-return]


def _splits(config: RefinementConfig) -> list[str]:
    return list(dict.fromkeys([config.dataset.train_split, config.dataset.valid_split]))


def _model_place(shop: Workshop, model: str) -> str:
    """Return a model as commands, which run in OUT, name it: what lies there, relative to it."""
    path = Path(model)

    return shop.place(path) if path.is_absolute() else model


def _model_name(config: RefinementConfig, idx: int, name: str) -> str:
    if name == PREVIOUS:
        return f"the model of {config.round_name(idx - 1)}"

    return f"the model {config.model if name == PUBLISHED else name}"
