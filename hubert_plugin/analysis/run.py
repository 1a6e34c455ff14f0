"""The steps of an analysis: label stores, a unit model on its features, the layers of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from fairseq2.logging import log
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.analysis.abx import AbxCollector, AbxTask, make_task, read_items
from hubert_plugin.analysis.alignments import Alignment
from hubert_plugin.analysis.report import AnalysisReport
from hubert_plugin.analysis.segments import SegmentCollector
from hubert_plugin.analysis.spaces import RATE, Extract
from hubert_plugin.analysis.sweep import UnitAnalysis, analyze_units, sweep_units
from hubert_plugin.analysis.utterances import Utterances
from hubert_plugin.data.labels import open_labels
from hubert_plugin.errors import LabelError
from hubert_plugin.registry import UnitModel, Units
from hubert_plugin.units.kmeans import KMeansConfig
from hubert_plugin.units.label import check_features
from hubert_plugin.units.stream import AudioFeatureStream

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

ITEM_LEVELS = ("triphone", "phoneme")
"""The levels of the item files that the demo corpus has beside its manifests (``valid.triphone.item``)."""


@dataclass(kw_only=True)
class AbxConfig(Validatable):
    """Configures ABX discriminability."""

    enabled: bool | None = None
    """``null``: if there are item files that have something to compare."""

    items: list[Path] = field(default_factory=list)
    """Item files (ZeroSpeech's). Empty: those that the demo corpus has beside its manifest."""

    speaker: list[str] = field(default_factory=lambda: ["within", "across"])
    """``within``: A, B and X come from one speaker; ``across``: X from another."""

    context: str = "within"
    """``within``: all have the same neighbours; ``any``: whatever they have (for files at phoneme level)."""

    max_size_group: int | None = 10
    """How many tokens of one phone, context and speaker take part at most; ``null``: all."""

    max_x_across: int | None = 5
    """How many other speakers' X are held against A and B of one speaker at most; ``null``: all."""

    seed: int = 0
    """The seed of the choice of tokens and speakers."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.speaker or not set(self.speaker) <= {"within", "across"}:
            result.add_error(f"`speaker` must list `within`, `across` or both, but is {self.speaker} instead.")

        if self.context not in ("within", "any"):
            result.add_error(f"`context` must be `within` or `any`, but is '{self.context}' instead.")

        for name, minimum in (("max_size_group", 2), ("max_x_across", 1)):
            if (value := getattr(self, name)) is not None and value < minimum:
                result.add_error(f"`{name}` must be {minimum} or greater, but is {value} instead.")

        return result


@dataclass(kw_only=True)
class CcaConfig(Validatable):
    """Configures the correlation of layers with words and phones."""

    enabled: bool | None = None
    """``null``: where words or phones occur often enough."""

    max_labels: int = 500
    """How many different words (or phones) take part at most: the most frequent ones."""

    max_segments: int = 7000
    """How many segments take part at most, chosen at random."""

    trials: int = 3
    """How often the segments are divided into parts to learn from and parts to judge by; at most 5."""

    seed: int = 0
    """The seed of the choice of segments and parts."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 1 <= self.trials <= 5:
            result.add_error(f"`trials` must be between 1 and 5, but is {self.trials} instead.")

        for name in ("max_labels", "max_segments"):
            if (value := getattr(self, name)) < 10:
                result.add_error(f"`{name}` must be 10 or greater, but is {value} instead.")

        return result


def analyze_label_stores(
    label_dir: Path, names: Sequence[str], manifest: Manifest, alignment: Alignment | None
) -> dict[str, UnitAnalysis]:
    """Measure labels ``<split>.<name>`` that are there already, at their own rates.

    :raises LabelError: The labels or the phone times do not fit the manifest.
    """
    result = {}

    for name in names:
        labels = open_labels(label_dir, manifest.split, name, manifest)

        units = [labels[i] for i in range(len(labels))]

        result[name] = analyze_units(units, manifest.ids, labels.spec.size, labels.spec.rate, alignment)

    return result


def analyze_unit_model(
    stream: AudioFeatureStream,
    unit_model: UnitModel,
    alignment: Alignment | None,
    *,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> dict[str, UnitAnalysis]:
    """Measure the units that a unit model gives, for each of its label sets; no label is written.

    :raises UnitModelError: The unit model was fitted on other features.
    """
    check_features(unit_model, stream)

    manifest = stream.manifest

    units: list[list[Units]] = [[] for _ in unit_model.label_sets]

    with progress.create_task("label", total=len(manifest)) as task:
        for _, features in stream.read():
            for utterances, assigned in zip(units, unit_model.assign(features), strict=True):
                utterances.append(assigned)

            task.step()

    return {
        spec.name: analyze_units(u, manifest.ids, spec.size, spec.rate, alignment)
        for spec, u in zip(unit_model.label_sets, units, strict=True)
    }


def make_abx_tasks(config: AbxConfig, manifest: Manifest) -> dict[str, AbxTask]:
    """Return the ABX tasks by name, such as ``triphone within``; none if ABX is off or there is nothing to compare.

    :raises LabelError: An item file is missing or does not fit the manifest, or there is nothing to compare although
        ABX was asked for.
    """
    if config.enabled is False:
        return {}

    paths = [Path(p).expanduser() for p in config.items]

    if not paths:
        beside = [manifest.path.with_name(f"{manifest.split}.{level}.item") for level in ITEM_LEVELS]

        paths = [p for p in beside if p.is_file()]

    if not paths and config.enabled:
        raise LabelError(
            f"ABX needs item files: name them with `abx.items`. There are none beside '{manifest.path}' "
            f"({', '.join(f'{manifest.split}.{level}.item' for level in ITEM_LEVELS)})."
        )

    tasks = {}

    for path, name in _name_items(paths, manifest.split).items():
        items = read_items(path, manifest, RATE)

        if items.num_without_frame:
            log.info("{:,} items of {} are too short to hold a frame.", items.num_without_frame, path)

        for speaker in config.speaker:
            try:
                tasks[f"{name} {speaker}"] = make_task(
                    items,
                    speaker=speaker,  # type: ignore[arg-type]
                    context=config.context,  # type: ignore[arg-type]
                    max_size_group=config.max_size_group,
                    max_x_across=config.max_x_across,
                    seed=config.seed,
                )
            except LabelError as ex:
                if config.enabled:
                    raise

                log.warning("Left out: {}", ex)

    return tasks


def _name_items(paths: Sequence[Path], split: str) -> dict[Path, str]:
    """Return what item files are called in results: by their base names, and by their folders where these repeat."""
    names = {path: path.stem.removeprefix(f"{split}.") for path in paths}

    counts = Counter(names.values())

    names = {path: name if counts[name] == 1 else f"{path.parent.name}_{name}" for path, name in names.items()}

    if len(set(names.values())) < len(paths):
        raise LabelError(
            "`abx.items` must name files that differ in their names or in those of their folders, by which results are "
            f"called, but are {', '.join(map(repr, map(str, paths)))}."
        )

    return names


def make_segment_collectors(
    config: CcaConfig, alignments: Mapping[str, tuple[Alignment | None, Sequence[str]]], ids: Sequence[str]
) -> dict[str, SegmentCollector]:
    """Return what takes segments for the correlation with labels, by kind.

    :param alignments: By kind (``words``, ``phones``), the alignment and the names that do not take part (silence).
    :raises LabelError: There is nothing to correlate with although it was asked for.
    """
    if config.enabled is False:
        return {}

    collectors = {}

    for kind, (alignment, exclude) in alignments.items():
        if alignment is None:
            continue

        try:
            collectors[kind] = SegmentCollector(
                alignment,
                ids,
                exclude=exclude,
                max_labels=config.max_labels,
                max_segments=config.max_segments,
                seed=config.seed,
            )
        except LabelError as ex:
            if config.enabled:
                raise

            log.warning("Left out: {}", ex)

    if config.enabled and not collectors:
        raise LabelError(
            "The correlation with labels needs word or phone times: name them with `words` or `alignment`."
        )

    return collectors


def analyze_spaces(
    report: AnalysisReport,
    extract: Extract,
    fit_on: Utterances,
    judge_on: Utterances,
    alignment: Alignment | None,
    *,
    num_clusters: Sequence[int],
    kmeans: KMeansConfig,
    num_trials: int = 1,
    seed: int = 0,
    abx_tasks: Mapping[str, AbxTask] | None = None,
    segments: Mapping[str, SegmentCollector] | None = None,
    num_cca_trials: int = 3,
    with_criterion: bool = False,
    device: torch.device | None = None,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> None:
    """Measure all feature spaces in one go and add the results to ``report``; see :func:`sweep.sweep_units`.

    :param with_criterion: Whether the criterion is measured that needs no phone times.
    :param device: Where distances are computed.
    """
    abx_tasks, segments = abx_tasks or {}, segments or {}

    abx = AbxCollector([task.items for task in abx_tasks.values()], judge_on.ids)

    report.spaces += sweep_units(
        extract,
        fit_on,
        judge_on,
        alignment,
        num_clusters,
        kmeans=kmeans,
        num_trials=num_trials,
        seed=seed,
        collectors=[abx, *segments.values()],
        with_criterion=with_criterion,
        progress=progress,
    )

    with progress.create_task("ABX", total=len(abx.spaces)) as task:
        for space in abx.spaces:
            # The work of hours is done by now: what cannot be scored must not take the rest with it.
            try:
                report.abx[space] = abx.score(space, abx_tasks, device)
            except LabelError as ex:
                log.warning("Left out: {}", ex)

            task.step()

    kinds = [(kind, collector, space) for kind, collector in segments.items() for space in collector.spaces]

    with progress.create_task("correlation", total=len(kinds)) as task:
        for kind, collector, space in kinds:
            try:
                score = collector.score(space, num_trials=num_cca_trials)
            except LabelError as ex:
                log.warning("Left out: {}", ex)
            else:
                report.cca.setdefault(space, {})[kind] = score

            task.step()
