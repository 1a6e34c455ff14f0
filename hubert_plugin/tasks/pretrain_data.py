"""The data of pretraining: manifests and their labels, opened and checked together; a demo corpus and labels that are
missing are made on the way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fairseq2.gang import Gangs
from fairseq2.utils.progress import ProgressReporter
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.dataset import HubertDataset, HubertDatasetSection
from hubert_plugin.data.label_check import expected_counts
from hubert_plugin.data.labels import LabelSet, label_set_names, open_labels
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.data.provenance import comparable
from hubert_plugin.errors import ConfigError, LabelError
from hubert_plugin.ranks import run_on_first
from hubert_plugin.registry import FeatureSource, unknown_name_error
from hubert_plugin.tasks.demo_corpus import make_demo_corpus


@dataclass
class LabelledSplit:
    """The utterances of a split."""

    manifest: Manifest

    labels: list[LabelSet]

    num_frames: NDArray[np.int64]
    """How many frames of each utterance have audio and a label in every set. *Shape:* (utterances,)."""


def open_pretrain_data(
    section: HubertDatasetSection,
    dataset: HubertDataset,
    gangs: Gangs,
    create_feature_source: Callable[[], FeatureSource],
    *,
    reporter: ProgressReporter,
) -> tuple[Path, dict[str, LabelledSplit]]:
    """Return the folder of the manifests, and the splits for training and validation by name.

    :param create_feature_source: Makes the feature source of labels that are made on the way.
    :raises ManifestError: A manifest cannot be used.
    :raises LabelError: Labels do not fit the audio, or those of the two splits do not fit each other.
    """
    names = [section.train_split]

    if section.valid_split is not None:
        names.append(section.valid_split)

    manifest_dir, label_dir, label_names = _prepare(names, section, dataset, gangs, create_feature_source, reporter)

    if len(set(label_names)) < len(label_names):
        raise ConfigError(f"`dataset.labels` must name each label set once, but is {label_names} instead.")

    for label_name in section.label_rates:
        if label_name not in label_names:
            raise unknown_name_error("label set of `dataset.label_rates`", label_name, label_names)

    splits = {}

    for name in names:
        manifest = read_manifest(manifest_dir, name)

        labels = [
            open_labels(label_dir, name, label_name, manifest, rate=section.label_rates.get(label_name))
            for label_name in label_names
        ]

        splits[name] = LabelledSplit(manifest, labels, _labelled_frames(manifest, labels))

    _check_splits_agree(splits, section.train_split)

    return manifest_dir, splits


def _prepare(
    splits: Sequence[str],
    section: HubertDatasetSection,
    dataset: HubertDataset,
    gangs: Gangs,
    create_feature_source: Callable[[], FeatureSource],
    reporter: ProgressReporter,
) -> tuple[Path, Path, list[str]]:
    """Make corpus and labels where they are asked for and missing: rank 0 works, the others wait."""
    manifest_dir = make_demo_corpus(section.demo, gangs, reporter) if dataset.demo else dataset.manifest_dir()

    names = list(section.labels or dataset.config.labels)

    if names:
        label_dir = section.label_dir or dataset.config.label_dir or manifest_dir

        return manifest_dir, Path(label_dir).expanduser(), names

    # Labels made on the way would be others than those that were asked for.
    for key, folder in (
        ("`dataset.label_dir`", section.label_dir),
        ("`label_dir` of the dataset's card", dataset.config.label_dir),
    ):
        if folder is not None:
            raise ConfigError(_no_label_set_named(Path(folder).expanduser(), key))

    from hubert_plugin.units.prepare import ensure_labels

    making = section.label_making

    name = "km"

    source = create_feature_source()

    # Labels of other features of the same kind are kept beside these.
    kind = hashlib.sha256(json.dumps(comparable(source.describe()), sort_keys=True).encode()).hexdigest()[:6]

    label_dir = manifest_dir / "labels" / f"{making.features.name}-{kind}_k{making.num_clusters}_seed{making.seed}"

    def make() -> None:
        with reporter:
            ensure_labels(
                manifest_dir,
                splits,
                label_dir=label_dir,
                name=name,
                feature_source=source,
                num_clusters=making.num_clusters,
                max_frames=making.max_frames,
                seed=making.seed,
                audio_policy=section.audio_policy(normalize=False),
                progress=reporter,
            )

    run_on_first(gangs.root, make)

    return manifest_dir, label_dir, [name]


def _no_label_set_named(label_dir: Path, key: str) -> str:
    found = label_set_names(label_dir) if label_dir.is_dir() else []

    return (
        f"{key} is '{label_dir}', but `dataset.labels` names no label set. Name those of the folder, such as "
        f"`dataset.labels=[{found[0] if found else 'km'}]` (it holds: {', '.join(found) or 'no labels'}), or leave "
        "the folder out: labels are made then."
    )


def _check_splits_agree(splits: Mapping[str, LabelledSplit], train_split: str) -> None:
    train = splits[train_split]

    for name, split in splits.items():
        for ours, theirs in zip(train.labels, split.labels, strict=True):
            if ours.spec != theirs.spec:
                raise LabelError(
                    f"The label set '{ours.spec.name}' has {ours.spec.size} units at {ours.spec.rate} Hz in the split "
                    f"'{train_split}', but {theirs.spec.size} at {theirs.spec.rate} Hz in '{name}'. Label both splits "
                    "with one unit model."
                )

            made_by = [(labels.provenance or {}).get("unit_model_fingerprint") for labels in (ours, theirs)]

            if None not in made_by and made_by[0] != made_by[1]:
                # Unit 7 of one k-means has nothing to do with unit 7 of another (FACTS, trap T32).
                raise LabelError(
                    f"The labels '{ours.spec.name}' come from the unit model {made_by[0]} in the split "
                    f"'{train_split}', but from {made_by[1]} in '{name}'. Label both splits with one unit model."
                )


def _labelled_frames(manifest: Manifest, labels: Sequence[LabelSet]) -> NDArray[np.int64]:
    """Return how many frames of each utterance have audio and a label in every set. *Shape:* (utterances,)."""
    num_frames = expected_counts(manifest.sizes, round(frames.FRAME_RATE))

    for label_set in labels:
        num_frames = np.minimum(num_frames, label_set.num_frames())

    return num_frames
