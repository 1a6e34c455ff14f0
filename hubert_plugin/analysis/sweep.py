"""Unit quality of many feature spaces and numbers of units at once (HuBERT paper, figure 2 and table IV).

The audio is read twice in all, however many spaces there are: once to fit k-means on, once to judge. Of the second
reading only units are kept, and what *collectors* take from the features (for ABX and CCA). The criterion that needs no
phone times computes features of what is judged a second time, of another view of it.

Memory: the features of ``fit_on``, all spaces, in float32; ten minutes of audio are 92 MB a layer of 768 dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter

from hubert_plugin.analysis.alignments import Alignment
from hubert_plugin.analysis.joint import JointTable
from hubert_plugin.analysis.purity import UnitQuality, joint_counts, quality_of_counts
from hubert_plugin.analysis.spaces import RATE, Extract
from hubert_plugin.analysis.statistics import UnitStatistics, unit_statistics
from hubert_plugin.analysis.unsupervised import PairCounts, make_view, persistence
from hubert_plugin.analysis.utterances import Utterances
from hubert_plugin.errors import LabelError
from hubert_plugin.frames import num_frames
from hubert_plugin.registry import Features, UnitModel, Units, Waveform
from hubert_plugin.units.kmeans import KMeansConfig, KMeansFitter
from hubert_plugin.units.stream import ArrayFeatureStream


class Collector(Protocol):
    """Takes what it needs from the features of the utterances that are judged."""

    def add(self, id_: str, features: Mapping[str, Features]) -> None:
        """
        :param id_: The utterance's id in the manifest.
        :param features: Its features by space. *Shape of each:* (T, D).
        """


@dataclass(frozen=True)
class UnitAnalysis:
    """What was measured of the units of one label set, or of one fit of k-means."""

    statistics: UnitStatistics

    quality: UnitQuality | None
    """``None`` where there are no phone times."""

    joint: JointTable | None


@dataclass(frozen=True)
class SpaceAnalysis:
    """What was measured of the units of one space at one number of units."""

    space: str

    num_clusters: int

    trials: Sequence[UnitAnalysis]
    """One for each fit of k-means; they differ by the seed."""

    agreement: float | None
    """The mean normalised mutual information of the units of two trials: 1 if they are the same but for their numbers.
    ``None`` if there was one trial only."""

    consistency: float | None = None
    """The mean view consistency (``unsupervised``) of the trials; ``None`` if it was not measured."""

    persistence: float | None = None
    """The mean persistence (``unsupervised``) of the trials; ``None`` if it was not measured."""

    def mean(self, name: str) -> float | None:
        """Return the mean of a measure of :class:`UnitQuality` over the trials; ``None`` without phone times."""
        values = self._values(name)

        return float(np.mean(values)) if values else None

    def std(self, name: str) -> float | None:
        """Return the standard deviation of a measure over the trials (that of the population, as in NumPy)."""
        values = self._values(name)

        return float(np.std(values)) if values else None

    def _values(self, name: str) -> list[float]:
        return [getattr(t.quality, name) for t in self.trials if t.quality is not None]


def analyze_units(
    units: Sequence[Units], ids: Sequence[str], num_units: int, rate: int, alignment: Alignment | None
) -> UnitAnalysis:
    """Measure units that are there already.

    :param units: The units of each utterance. *Shape of each:* (M,).
    :param ids: The ids of the utterances.
    :param rate: Units per second, 50 or 100.
    :raises LabelError: No frame has both a phone and a unit.
    """
    statistics = unit_statistics(units, num_units, rate)

    if alignment is None:
        return UnitAnalysis(statistics, None, None)

    pairs = [(alignment.frame_labels(id_, len(u), rate), u) for id_, u in zip(ids, units, strict=True)]

    counts, phones, num_cut, num_without = joint_counts(pairs)

    try:
        quality = quality_of_counts(counts, num_frames_cut=num_cut, num_frames_without_phone=num_without)
    except LabelError as ex:
        raise LabelError(f"The units cannot be compared with the phones in '{alignment.path}': {ex}") from ex

    return UnitAnalysis(statistics, quality, JointTable.of(counts, phones, num_units))


def sweep_units(
    extract: Extract,
    fit_on: Utterances,
    judge_on: Utterances,
    alignment: Alignment | None,
    num_clusters: Sequence[int],
    *,
    kmeans: KMeansConfig,
    num_trials: int = 1,
    seed: int = 0,
    collectors: Sequence[Collector] = (),
    with_criterion: bool = False,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> list[SpaceAnalysis]:
    """Cluster every space with every number of units, and compare the units with phones.

    :param extract: Computes the features of all spaces.
    :param fit_on: The utterances that k-means is fitted on.
    :param judge_on: The utterances whose units are measured.
    :param alignment: The phones of ``judge_on``.
    :param kmeans: How k-means is fitted; its ``num_clusters`` is not used.
    :param num_trials: How often k-means is fitted, with the seeds ``seed``, ``seed + 1``, …
    :param with_criterion: Whether view consistency and persistence are measured (``unsupervised``).
    :returns: By space, in the extractor's order, then by number of units, in the given order.
    :raises UnitModelError: There are more clusters than frames.
    """
    unit_models = (
        fit_spaces(extract, fit_on, num_clusters, kmeans, num_trials=num_trials, seed=seed, progress=progress)
        if num_clusters
        else {}
    )

    units: dict[tuple[str, int, int], list[Units]] = {key: [] for key in unit_models}

    pairs = {key: PairCounts(key[1]) for key in unit_models} if with_criterion else {}

    with progress.create_task("judge", total=len(judge_on.indices)) as task:
        for idx in judge_on.indices:
            waveform = judge_on.read(idx)

            features = extract(waveform)

            for key, unit_model in unit_models.items():
                units[key].append(unit_model.assign(features[key[0]])[0])

            if pairs:
                _compare_views(waveform, judge_on.ids[idx], extract, unit_models, units, pairs, seed)

            for collector in collectors:
                collector.add(judge_on.ids[idx], features)

            task.step()

    ids = [judge_on.ids[i] for i in judge_on.indices]

    result = []

    for space, k in dict.fromkeys((space, k) for space, k, _ in unit_models):
        of_trials = [units[space, k, trial] for trial in range(num_trials)]

        trials = [analyze_units(u, ids, k, RATE, alignment) for u in of_trials]

        analysis = SpaceAnalysis(space, k, trials, unit_agreement(of_trials))

        if with_criterion:
            analysis = replace(
                analysis,
                consistency=_mean([pairs[space, k, trial].information() for trial in range(num_trials)]),
                persistence=_mean([persistence(u, k) for u in of_trials]),
            )

        result.append(analysis)

    return result


def _compare_views(
    waveform: Waveform,
    id_: str,
    extract: Extract,
    unit_models: Mapping[tuple[str, int, int], UnitModel],
    units: Mapping[tuple[str, int, int], Sequence[Units]],
    pairs: Mapping[tuple[str, int, int], PairCounts],
    seed: int,
) -> None:
    """Count which units of an utterance meet which of its other view.

    :param units: The units of the utterance are the last ones.
    """
    if num_frames(len(waveform)) == 0:
        return

    view = make_view(waveform, id_, seed=seed)

    if num_frames(len(view.waveform)) == 0:
        return

    features = extract(view.waveform)

    for key, unit_model in unit_models.items():
        here, there = units[key][-1], unit_model.assign(features[key[0]])[0]

        i, j = view.matching_frames(len(here), len(there))

        pairs[key].add(here[i], there[j])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]

    return float(np.mean(known)) if known else None


def fit_spaces(
    extract: Extract,
    fit_on: Utterances,
    num_clusters: Sequence[int],
    kmeans: KMeansConfig,
    *,
    num_trials: int = 1,
    seed: int = 0,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> dict[tuple[str, int, int], UnitModel]:
    """Fit k-means on every space; see :func:`sweep_units`.

    :returns: Unit models by space, number of units and trial.
    """
    items: dict[str, list[Features]] = {}

    with progress.create_task("fit: features", total=len(fit_on.indices)) as task:
        for idx in fit_on.indices:
            for space, features in extract(fit_on.read(idx)).items():
                items.setdefault(space, []).append(features)

            task.step()

    unit_models: dict[tuple[str, int, int], UnitModel] = {}

    with progress.create_task("fit: k-means", total=len(items) * len(num_clusters) * num_trials) as task:
        for space in list(items):
            stream = ArrayFeatureStream(items.pop(space), rate=RATE, description={"space": space})

            for k in num_clusters:
                for trial in range(num_trials):
                    fitter = KMeansFitter(replace(kmeans, num_clusters=k))

                    unit_models[space, k, trial] = fitter.fit(stream, seed=seed + trial).model

                    task.step()

    return unit_models


def unit_agreement(trials: Sequence[Sequence[Units]]) -> float | None:
    """Return the mean normalised mutual information (arithmetic mean of the entropies below the fraction) over all
    pairs of trials; ``None`` if there is no pair.

    :param trials: For each trial, the units of the same utterances.
    """
    if len(trials) < 2:
        return None

    from sklearn.metrics import normalized_mutual_info_score

    flat = [np.concatenate(list(units)) for units in trials]

    return float(
        np.mean(
            [normalized_mutual_info_score(flat[i], flat[j]) for i in range(len(flat)) for j in range(i + 1, len(flat))]
        )
    )
