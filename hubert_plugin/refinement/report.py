"""Gathers what the steps left into the report: ``OUT/report/index.html`` and ``report.json``.

Runs in a process of its own, at the end of a refinement or whenever somebody asks (``iterate OUT --report``): what is
not there yet is missing from the page, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from hubert_plugin.analysis.alignments import Alignment, AlignmentConfig, find_alignment, read_alignments
from hubert_plugin.analysis.page.data import (
    Baseline,
    Example,
    LayerChoice,
    PageData,
    Round,
    SpaceQuality,
    UnitSummary,
)
from hubert_plugin.analysis.page.data import Step as PageStep
from hubert_plugin.analysis.page.gather import (
    baseline,
    make_example,
    package_versions,
    qualities,
    read_analysis,
    read_curves,
    scores,
    summarize_units,
)
from hubert_plugin.analysis.page.write import write_page
from hubert_plugin.analysis.unsupervised import CRITERION_NAME
from hubert_plugin.audio import AudioPolicy, read_waveform
from hubert_plugin.data.labels import LabelSet, open_labels
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.errors import HubertError, ReportError
from hubert_plugin.frames import seconds
from hubert_plugin.refinement.choice import CHOICE_FILE
from hubert_plugin.refinement.config import AUTO, HUBERT_LAYER, PREVIOUS, RefinementConfig
from hubert_plugin.refinement.demo import find_demo
from hubert_plugin.refinement.outcomes import read_json, recognition_results, training_results
from hubert_plugin.refinement.plan import REPORT
from hubert_plugin.refinement.record import STATE_FOLDER, Record, read_record
from hubert_plugin.refinement.settings import dump_yaml, structure, unstructure
from hubert_plugin.refinement.steps import show_command
from hubert_plugin.refinement.store import open_workshop
from hubert_plugin.refinement.units import describe_units, label_set_names
from hubert_plugin.refinement.workshop import Workshop, choice_source

EXAMPLE_SECONDS: Final = 6.0
"""How much of an utterance is shown."""


def write_report(config: RefinementConfig, out: Path) -> Path:
    """Write the report of a refinement and return the page.

    :param out: OUT, absolute.
    :raises HubertError: The manifests or labels cannot be read, or the page cannot be written.
    """
    if not (out / STATE_FOLDER).is_dir():
        raise ReportError(f"'{out}' holds no refinement: name the folder of one, or run one there first.")

    shop = open_workshop(config, out, dry=True)

    if config.dataset.demo is not None:
        shop.manifest_dir = find_demo(config.dataset.demo)

    return write_page(_Gatherer(shop).page(), out / REPORT)


class _Gatherer:
    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._config = shop.config
        self._notes: list[str] = []
        self._records: dict[str, Record | None] = {k: read_record(shop.out, k) for k in shop.steps}

        self._manifest = self._maybe_manifest(self._config.dataset.valid_split)

    def page(self) -> PageData:
        analyses = [self._maybe_analysis(f"{n}/analyze") for n in self._names()]

        rounds = [self._round(idx, analysis) for idx, analysis in enumerate(analyses)]

        known = [a for a in analyses if a is not None]

        return PageData(
            title=self._config.title,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            corpus=self._corpus(),
            versions=package_versions(),
            configuration=dump_yaml(_given(self._config)),
            measured_on=self._measured_on(),
            criterion_name=CRITERION_NAME,
            # MFCC are measured with every round; the last has what all later rounds are compared at.
            baseline=baseline(known[-1]) if known else Baseline(),
            rounds=rounds,
            examples=self._examples(),
            steps=[self._step(key) for key in self._shop.steps if key != REPORT],
            notes=self._notes,
        )

    def _names(self) -> list[str]:
        return [self._config.round_name(i) for i in range(len(self._config.rounds))]

    def _round(self, idx: int, analysis: dict[str, Any] | None) -> Round:
        name = self._config.round_name(idx)

        folder = self._shop.out / name

        notes = []

        if analysis is None:
            notes.append("Its layers are not measured yet.")

        layers = self._maybe_analysis(f"{name}/layers")

        if layers is not None:
            notes.append(f"The layers of {self._config.model_of(idx, self._config.features_of(idx).model)}: "
                         f"{_list_qualities(qualities(layers, mfcc=False))}.")  # fmt: skip

        return Round(
            name=_title(name),
            features=self._features(idx),
            units=describe_units(self._config.units_of(idx)),
            training=self._training(idx),
            results=training_results(folder / "pretrain", self._config.dataset.valid_split),
            curves=read_curves(folder / "pretrain"),
            quality=qualities(analysis, mfcc=False) if analysis else [],
            abx=scores(analysis, "abx", mfcc=False) if analysis else [],
            cca=scores(analysis, "cca", mfcc=False) if analysis else [],
            choice=self._choice(idx),
            unit_summaries=list(self._summaries(idx, analysis)),
            fine_tuning=recognition_results(folder / "finetune", self._config.dataset.valid_split),
            notes=notes,
        )

    def _features(self, idx: int) -> str:
        features = self._config.features_of(idx)

        norm = {"mean": ", centred per utterance", "mean_variance": ", normalised per utterance"}.get(
            str(features.config.get("utterance_norm")), ""
        )

        if features.name != HUBERT_LAYER:
            return ("MFCC" if features.name == "mfcc" else features.name) + norm

        layer: Any = features.layer

        if layer == AUTO:
            chosen = read_json(self._shop.out / self._config.round_name(idx) / CHOICE_FILE)

            layer = chosen.get("layer", "(to be chosen)")

        if features.model == PREVIOUS:
            return f"layer {layer} of {_title(self._config.round_name(idx - 1)).lower()}{norm}"

        return f"layer {layer} of {self._config.model_of(idx, features.model)}{norm}"

    def _training(self, idx: int) -> str:
        section = self._config.rounds[idx].pretrain

        record = self._records.get(f"{self._config.round_name(idx)}/pretrain")

        preset = f"preset {section.preset}" if section.preset else "the defaults of pretrain"

        steps = record.fingerprint.settings.get("regime.num_steps") if record is not None else None

        return preset + (f", {steps:,} updates" if isinstance(steps, int) else "")

    def _choice(self, idx: int) -> LayerChoice | None:
        """Return which layer the next round takes, if that was decided by this round's layers or given."""
        following = idx + 1

        if following >= len(self._config.rounds):
            return None

        features = self._config.features_of(following)

        if features.name != HUBERT_LAYER or features.model != PREVIOUS:
            return None

        if features.layer != AUTO:
            return LayerChoice(space=f"L{features.layer}", measure="given", reason="The configuration names the layer.")

        chosen = read_json(self._shop.out / self._config.round_name(following) / CHOICE_FILE)

        if chosen.get("source") != choice_source(self._config, following):
            return None

        names = {"pnmi": "PNMI", "abx": "ABX", "unsupervised": CRITERION_NAME}

        return LayerChoice(
            space=f"L{chosen['layer']}", measure=names.get(chosen["measure"], ""), reason=str(chosen["reason"])
        )

    def _summaries(self, idx: int, analysis: Mapping[str, Any] | None) -> Iterator[UnitSummary]:
        for labels in self._labels(idx):
            measured = (analysis or {}).get("label_sets", {}).get(labels.spec.name, {}).get("quality")

            quality = None

            if measured is not None:
                quality = SpaceQuality(
                    space=labels.spec.name,
                    num_clusters=labels.spec.size,
                    **{n: measured.get(n) for n in ("pnmi", "phone_purity", "cluster_purity")},
                )

            yield summarize_units(
                (labels[i] for i in range(len(labels))),
                name=labels.spec.name,
                source=self._features(idx),
                split=self._config.dataset.valid_split,
                num_units=labels.spec.size,
                rate=labels.spec.rate,
                quality=quality,
            )

    def _labels(self, idx: int) -> list[LabelSet]:
        name = self._config.round_name(idx)

        record = self._records.get(f"{name}/label")

        if self._manifest is None or record is None or record.status != "done":
            return []

        folder = self._shop.out / name

        names = label_set_names(self._config.units_of(idx), folder / "cluster/units.safetensors") or []

        try:
            return [open_labels(folder / "label", self._manifest.split, n, self._manifest) for n in names]
        except HubertError as ex:
            self._notes.append(f"The labels of {name} cannot be read: {ex}")

            return []

    def _examples(self) -> list[Example]:
        manifest = self._manifest

        if manifest is None or self._config.num_examples == 0:
            return []

        by_round = {_title(n): labels[0] for i, n in enumerate(self._names()) if (labels := self._labels(i))}

        if not by_round:
            return []

        phones, words = (self._maybe_alignment(manifest, kind) for kind in ("align", "words"))

        examples = []

        for idx in _pick(manifest, self._config.num_examples):
            id_ = manifest.ids[idx]

            try:
                waveform = read_waveform(manifest.root, id_, AudioPolicy())
            except HubertError as ex:
                self._notes.append(f"An example cannot be shown: {ex}")

                continue

            examples.append(
                make_example(
                    waveform,
                    id_,
                    tracks={name: (labels.spec.rate, labels[idx]) for name, labels in by_round.items()},
                    phones=None if phones is None else phones[id_],
                    words=None if words is None else words.segments.get(id_),
                    max_seconds=EXAMPLE_SECONDS,
                )
            )

        return examples

    def _step(self, key: str) -> PageStep:
        step, record = self._shop.steps[key], self._records[key]

        if record is None:
            return PageStep(name=step.title, command="", state="missing")

        processes = f"{record.num_ranks} processes" if record.num_ranks > 1 else "1 process"

        return PageStep(
            name=step.title,
            command=show_command(self._shop.out, record.command),
            state={"clearing": "missing"}.get(record.status, record.status),
            started=record.started,
            seconds=record.seconds,
            size_bytes=record.size_bytes,
            cost=processes + (f" on {record.host}" if record.host else ""),
            reason=record.reason or None,
        )

    def _corpus(self) -> dict[str, str]:
        section = self._config.dataset

        train = self._maybe_manifest(section.train_split)

        corpus = {}

        for name, manifest in (("training audio", train), ("validation audio", self._manifest)):
            if manifest is not None:
                corpus[name] = f"{manifest.hours:.2f} h, {len(manifest):,} utterances"

        if section.demo is not None:
            corpus["origin"] = "the embedded demo corpus (synthesised speech)"
        elif train is not None:
            corpus["origin"] = str(train.path.parent)

        return corpus

    def _measured_on(self) -> str:
        if self._manifest is None:
            return ""

        return (
            f"split {self._manifest.split}: {60 * self._manifest.hours:.1f} minutes, {len(self._manifest)} utterances"
        )

    def _maybe_analysis(self, key: str) -> dict[str, Any] | None:
        record = self._records.get(key)

        if record is None or record.status != "done":
            return None

        try:
            return read_analysis(self._shop.out / key / "analysis.json")
        except ReportError as ex:
            self._notes.append(str(ex))

            return None

    def _maybe_manifest(self, split: str) -> Manifest | None:
        if self._shop.manifest_dir is None:
            return None

        return read_manifest(self._shop.manifest_dir, split, check_files=False)

    def _maybe_alignment(self, manifest: Manifest, kind: str) -> Alignment | None:
        section = self._config.dataset

        options = section.alignment if kind == "align" else {"tier": "words", **section.words}

        try:
            config = structure(AlignmentConfig, options)

            return read_alignments(config, manifest, default=find_alignment(manifest, kind), may_lack=kind == "words")
        except HubertError as ex:
            self._notes.append(f"Examples are shown without {'phones' if kind == 'align' else 'words'}: {ex}")

            return None


def _given(config: RefinementConfig) -> dict[str, Any]:
    """Return the configuration without what was left as it is by default."""
    plain, default = unstructure(config), unstructure(RefinementConfig())

    return {f.name: plain[f.name] for f in fields(RefinementConfig) if plain[f.name] != default[f.name]}


def _pick(manifest: Manifest, count: int) -> Sequence[int]:
    """Return utterances from all over the manifest, of a length that fits the page where there are such."""
    fitting = [i for i, n in enumerate(manifest.sizes.tolist()) if 2.0 <= seconds(n) <= EXAMPLE_SECONDS + 2.0]

    candidates = fitting if len(fitting) >= count else list(range(len(manifest)))

    count = min(count, len(candidates))

    return [candidates[(2 * i + 1) * len(candidates) // (2 * count)] for i in range(count)]


def _list_qualities(found: Sequence[SpaceQuality]) -> str:
    parts = [f"{q.space} {q.pnmi:.3f} (K = {q.num_clusters})" for q in found if q.pnmi is not None]

    return "PNMI " + ", ".join(parts) if parts else "no phone times are known, so no PNMI"


def _title(name: str) -> str:
    digits = name.removeprefix("round")

    return f"Round {digits}" if digits.isdecimal() and digits != name else name
