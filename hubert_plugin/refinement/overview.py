"""The plan as a table: every step, what will be done with it and why, what it takes on disk, what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hubert_plugin.frames import SAMPLE_RATE
from hubert_plugin.refinement.config import AUTO, HUBERT_LAYER, MFCC
from hubert_plugin.refinement.cost import (
    MFCC_SPEED,
    SHAPES,
    START_SECONDS,
    Shape,
    Training,
    default_tflops,
    label_bytes,
    read_training,
)
from hubert_plugin.refinement.judge import code_versions, fingerprint, judge
from hubert_plugin.refinement.outlook import Outlook
from hubert_plugin.refinement.plan import REPORT, needs_choice
from hubert_plugin.refinement.presets import verb_presets
from hubert_plugin.refinement.record import Fingerprint, Record, read_record
from hubert_plugin.refinement.settings import flatten
from hubert_plugin.refinement.show import format_bytes, format_flops, format_seconds
from hubert_plugin.refinement.steps import Step, Work, command_line, show_command
from hubert_plugin.refinement.units import num_units
from hubert_plugin.refinement.workshop import Workshop, choice_source

SAMPLE_FRAMES: Final = 1_000_000
"""The default of ``max_frames`` of unit models."""

_LAYER: Final = "features.config.layer"

_FIT_SECONDS: Final = 600.0
"""What `analyze` fits units of layers on by default (``fit_minutes``)."""


@dataclass
class PlannedStep:
    """A line of the plan."""

    step: Step

    state: str

    command: str

    size_bytes: float | None = None
    """What it will take on disk, or takes."""

    measured_size: bool = False

    flops: float | None = None

    seconds: float | None = None
    """The estimated time; of a step that is done, the time that it took."""

    measured_time: bool = False

    notes: list[str] = field(default_factory=list)

    @property
    def to_do(self) -> bool:
        return self.state != "done"


@dataclass
class Plan:
    """All steps, and what the estimates rest on."""

    steps: list[PlannedStep]

    train_seconds: float | None

    valid_seconds: float | None

    tflops: float

    speed_of: str

    num_ranks: int

    def lines(self) -> list[str]:
        """Return the plan as text."""
        width = max(len(p.step.title) for p in self.steps)

        lines = ["The steps, in order:"]

        for p in self.steps:
            size, cost = _show_size(p), _show_cost(p)

            lines.append(f"  {p.step.title:<{width}}  {size:>10}  {cost:>24}  {p.state}".rstrip())

            lines += [f"  {'':<{width}}  {note}" for note in p.notes]

        if any(p.to_do for p in self.steps):
            lines += ["", "The commands:"]

            lines += [f"  {p.command}" for p in self.steps if p.to_do]

        return [*lines, "", *self._summary()]

    def _summary(self) -> list[str]:
        to_do = [p for p in self.steps if p.to_do]

        hours = "unknown yet" if self.train_seconds is None else f"{self.train_seconds / 3600:.2f} h"

        valid = "" if self.valid_seconds is None else f", {self.valid_seconds / 3600:.2f} h to validate"

        seconds = [p.seconds for p in to_do if p.seconds is not None]
        flops = [p.flops for p in to_do if p.flops is not None]

        size = sum(p.size_bytes or 0.0 for p in to_do)

        if not to_do:
            return [f"Audio: {hours} to train{valid}.", f"Nothing is to do: all {len(self.steps)} steps are done."]

        processes = f"{self.num_ranks} processes" if self.num_ranks > 1 else "1 process"

        return [
            f"Audio: {hours} to train{valid}.",
            f"To do: {len(to_do)} of {len(self.steps)} steps, about {format_flops(sum(flops))} and "
            f"{format_seconds(sum(seconds))} with {processes} at {self.tflops:g} TFLOP/s each ({self.speed_of}), and "
            f"{format_bytes(size)} on disk.",
            "Sizes and times of steps that are done were measured (=); the others are estimates (~), without k-means "
            "itself, reading audio, validation and ABX.",
        ]


def make_plan(shop: Workshop, package: Path, num_ranks: int) -> Plan:
    """Return what a run would do; nothing is run or written.

    :param shop: One that is dry.
    :param package: The folder of this package's modules.
    :raises ConfigError: It would refuse to choose a layer.
    """
    config = shop.config

    code = code_versions(package, shop.digests)

    tflops, speed_of = default_tflops()

    speed_of = f"a guess for {speed_of}; state yours with `cost.tflops`"

    if config.cost.tflops is not None:
        tflops, speed_of = config.cost.tflops, "stated by `cost.tflops`"

    train, valid = (_audio_seconds(shop, s) for s in (config.dataset.train_split, config.dataset.valid_split))

    plan = Plan([], train, valid, tflops, speed_of, num_ranks)

    outlook = Outlook()

    for step in shop.steps.values():
        shop.reads.clear()

        work = step.make(shop)

        reads = set(shop.steps) if step.key == REPORT else set(shop.reads)

        record = read_record(shop.out, step.key)

        now = _with_layer_before(fingerprint(step, work, code), record)

        judgement = judge(step, now, record, shop.out, shop.digests, on_code_change=config.on_code_change)

        state = outlook.state(step, reads, judgement, now, record)

        planned = PlannedStep(step, state, show_command(shop.out, command_line(config.command, step, work)))

        if judgement.note:
            planned.notes.append(judgement.note)

        _add_choice(planned, shop, plan)

        if judgement.action == "keep" and record is not None:
            planned.size_bytes, planned.measured_size = record.size_bytes, True
            planned.seconds, planned.measured_time = record.seconds, True
        else:
            _estimate(planned, shop, work, plan, record)

            if planned.seconds is not None:
                planned.seconds += START_SECONDS

        plan.steps.append(planned)

    return plan


def _with_layer_before(now: Fingerprint, record: Record | None) -> Fingerprint:
    """Return a fingerprint that has, where the layer is yet to be chosen, the one of before: it may be chosen again."""
    before = None if record is None else record.fingerprint.settings.get(_LAYER)

    if now.settings.get(_LAYER) != AUTO or before is None:
        return now

    return replace(now, settings={**now.settings, _LAYER: before})


def _is_measured_again(shop: Workshop, plan: Plan, idx: int) -> bool:
    source = choice_source(shop.config, idx)

    return any(p.to_do for p in plan.steps if p.step.key == source)


def _add_choice(planned: PlannedStep, shop: Workshop, plan: Plan) -> None:
    """Say which layer a round takes.

    :raises ConfigError: None can be chosen by what was measured, and it will not be measured again.
    """
    step = planned.step

    if step.verb != "cluster" or step.round_idx is None or not needs_choice(shop.config, step.round_idx):
        return

    choice = shop.choice(step.round_idx)

    refusal = shop.refusals.get(step.round_idx)

    if refusal is not None and not _is_measured_again(shop, plan, step.round_idx):
        raise refusal

    planned.notes.append("the layer is chosen when it is measured" if choice is None else choice.reason)


def _estimate(planned: PlannedStep, shop: Workshop, work: Work, plan: Plan, record: Record | None) -> None:
    idx, verb = planned.step.round_idx, planned.step.verb

    if idx is None:
        return

    train, valid, speed = plan.train_seconds, plan.valid_seconds, plan.tflops * 1e12

    if verb == "pretrain":
        training = training_of(shop, idx, work, plan.num_ranks)

        planned.flops, planned.size_bytes = training.flops(), training.size_bytes()

        if planned.flops is not None:
            planned.seconds = planned.flops / speed / plan.num_ranks

        planned.notes.append(
            f"{training.arch}, {training.num_updates:,} updates of {training.update_seconds:g} s of audio"
        )
    elif verb == "cluster":
        _add_reading(planned, shop, idx, _sampled(shop, idx, train), plan, share=1)

        size = num_units(shop.config.units_of(idx))

        shape = _feature_shape(shop, idx)

        dim = 39 if shape is None else shape.model_dim

        planned.size_bytes = None if size is None else 4.0 * size * dim
    elif verb == "label":
        both = None if train is None else train + (valid or 0.0)

        _add_reading(planned, shop, idx, both, plan, share=plan.num_ranks)

        if both is not None and (size := num_units(shop.config.units_of(idx))) is not None:
            planned.size_bytes = label_bytes(both, _rate(shop, idx), [size])
    elif verb == "analyze":
        model = _model_shape(shop, planned.step)

        if model is not None and valid is not None:
            planned.flops = model.forward_flops() * (min(_FIT_SECONDS, train or 0.0) + valid)
            planned.seconds = planned.flops / speed


def _sampled(shop: Workshop, idx: int, seconds: float | None) -> float | None:
    """Return how much of the audio is read to fit units: of a corpus more than ten times as large as the sample, as
    many utterances as are needed, with a tenth of the frames of each."""
    sample = shop.config.units_of(idx).config.get("max_frames", SAMPLE_FRAMES)

    if seconds is None or not isinstance(sample, int):
        return seconds

    return min(seconds, 10.0 * sample / _rate(shop, idx))


def _add_reading(
    planned: PlannedStep, shop: Workshop, idx: int, seconds: float | None, plan: Plan, *, share: int
) -> None:
    """Add the cost of computing the features of some audio."""
    if seconds is None:
        return

    features = shop.config.features_of(idx)

    if features.name == MFCC:
        planned.seconds = seconds / MFCC_SPEED / share

        return

    shape = _feature_shape(shop, idx)

    if shape is not None:
        layer = features.layer if isinstance(features.layer, int) else None

        planned.flops = shape.forward_flops(layer) * seconds
        planned.seconds = planned.flops / plan.tflops / 1e12 / share


def training_of(shop: Workshop, idx: int, work: Work, num_ranks: int) -> Training:
    """Return what the options of a round's training say."""
    presets = verb_presets("pretrain") or {}

    return read_training(presets.get(work.preset or ""), work.options, num_ranks)


def _feature_shape(shop: Workshop, idx: int) -> Shape | None:
    """Return the shape of the model whose features a round takes, as far as it is known."""
    config = shop.config

    features = config.features_of(idx)

    if features.name != HUBERT_LAYER:
        return None

    model = config.model_of(idx, features.model)

    return round_shape(shop, idx - 1) if model in shop.steps else _guess_shape(model)


def _model_shape(shop: Workshop, step: Step) -> Shape | None:
    assert step.round_idx is not None

    return _feature_shape(shop, step.round_idx) if step.key.endswith("/layers") else round_shape(shop, step.round_idx)


def round_shape(shop: Workshop, idx: int) -> Shape | None:
    """Return the shape of the model that a round trains; ``None`` if it is of another package's architecture."""
    step = shop.steps[f"{shop.config.round_name(idx)}/pretrain"]

    return training_of(shop, idx, step.make(shop), 1).shape


def _guess_shape(model: str) -> Shape | None:
    """Published models say their size in their names."""
    name = model.lower()

    return next((SHAPES[arch] for arch in ("xlarge", "large", "base") if arch in name), None)


def _rate(shop: Workshop, idx: int) -> int:
    features = shop.config.features_of(idx)

    rate = features.config.get("rate", 100 if features.name == MFCC else 50)

    return rate if isinstance(rate, int) else 50


def _audio_seconds(shop: Workshop, split: str) -> float | None:
    """Return the length of a split; ``None`` if its manifest is not there yet."""
    if shop.manifest_dir is None:
        demo = shop.config.dataset.demo

        if demo is None:
            return None

        minutes = flatten(demo).get(f"{split}_minutes", {"train": 60.0, "valid": 10.0}.get(split))

        return None if minutes is None else 60.0 * float(minutes)

    total = 0

    try:
        with (shop.manifest_dir / f"{split}.tsv").open("rb") as fp:
            fp.readline()

            for line in fp:
                size = line.rpartition(b"\t")[2].strip()

                total += int(size) if size.isdigit() else 0
    except OSError:
        return None

    return total / SAMPLE_RATE


def _show_size(planned: PlannedStep) -> str:
    if planned.size_bytes is None:
        return "–"

    return f"{'=' if planned.measured_size else '~'} {format_bytes(planned.size_bytes)}"


def _show_cost(planned: PlannedStep) -> str:
    parts: Sequence[str] = [format_flops(planned.flops)] if planned.flops else []

    if planned.seconds is not None:
        parts = [*parts, format_seconds(planned.seconds)]

    return f"{'=' if planned.measured_time else '~'} {', '.join(parts)}" if parts else "–"
