"""From the files of runs and analyses to what the page shows.

Each function fills one part of :class:`data.PageData`; none guesses: what a file does not hold stays ``None``.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hubert_plugin import frames
from hubert_plugin.analysis.page.data import (
    Baseline,
    Curve,
    Example,
    Segment,
    SpaceQuality,
    SpaceScore,
    UnitSummary,
    UnitTrack,
)
from hubert_plugin.errors import ReportError

if TYPE_CHECKING:
    from hubert_plugin.registry import Units, Waveform

MFCC: Final = "mfcc"

MAX_RUN: Final = 20
"""Stretches of one unit are counted by length up to this many units; longer ones together."""

NUM_BANDS: Final = 48

MAX_POINTS: Final = 400
"""Points of a curve; longer ones are thinned, the first and the last stay."""

_METRICS: Final = {
    "Loss": "loss",
    "Masked Loss (bits)": "masked_loss_bits",
    "Unmasked Loss (bits)": "unmasked_loss_bits",
    "Masked Accuracy": "masked_accuracy",
    "Unmasked Accuracy": "unmasked_accuracy",
    "Learning Rate": "learning_rate",
    "Audio Seconds per Second": "audio_seconds_per_second",
}
"""The names that the metric recorder writes, and the page's."""


def read_curves(run_dir: Path) -> list[Curve]:
    """Return what a run recorded in ``metrics/train.jsonl`` and ``metrics/valid.jsonl``; empty if there is nothing.

    A run that was resumed records some updates twice: the later record counts. A last line that was cut by a kill is
    passed over. Of several learning rates, one for each group of parameters, the first is shown.
    """
    curves = []

    for split in ("train", "valid"):
        records = _read_records(run_dir / "metrics" / f"{split}.jsonl")

        for name, metric in _METRICS.items():
            points = {step: _first(r[name]) for step, r in records.items() if name in r}

            if points:
                steps = _thin(sorted(points))

                values = [_number(points[step]) for step in steps]

                curves.append(Curve(split=split, metric=metric, steps=steps, values=values))

    return curves


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def read_analysis(path: Path) -> dict[str, Any]:
    """Return the content of an ``analysis.json``.

    :raises ReportError: It is missing or is none.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as ex:
        raise ReportError(
            f"'{path}' must be what `fairseq2 recipe hubert analyze` writes, but cannot be read: {ex}. Analyze again."
        ) from ex

    if not isinstance(content, dict) or not isinstance(content.get("spaces"), dict):
        raise ReportError(f"'{path}' must be what `fairseq2 recipe hubert analyze` writes, but holds no `spaces`.")

    return content


def qualities(analysis: Mapping[str, Any], *, mfcc: bool) -> list[SpaceQuality]:
    """Return the unit quality of the layers of an analysis, or of its MFCC.

    :param analysis: The content of an ``analysis.json``.
    """
    return [
        _quality(space, int(k), measured)
        for space, values in analysis["spaces"].items()
        if (space == MFCC) == mfcc
        for k, measured in values.get("units", {}).items()
    ]


def scores(analysis: Mapping[str, Any], kind: str, *, mfcc: bool) -> list[SpaceScore]:
    """Return the scores of ``kind`` (``abx`` or ``cca``) of the layers of an analysis, or of its MFCC."""
    key = "error" if kind == "abx" else "score"

    return [
        SpaceScore(space=space, task=task, value=_number(score.get(key)), std=_number(score.get("std")))
        for space, values in analysis["spaces"].items()
        if (space == MFCC) == mfcc
        for task, score in values.get(kind, {}).items()
    ]


def baseline(analysis: Mapping[str, Any]) -> Baseline:
    """Return the MFCC of an analysis."""
    return Baseline(
        quality=qualities(analysis, mfcc=True),
        abx=scores(analysis, "abx", mfcc=True),
        cca=scores(analysis, "cca", mfcc=True),
    )


def summarize_units(
    utterances: Iterable[Units],
    *,
    name: str,
    source: str,
    split: str,
    num_units: int,
    rate: int,
    quality: SpaceQuality | None = None,
) -> UnitSummary:
    """Count the units of some utterances.

    :param utterances: The units of each utterance. *Shape of each:* (M,).
    :param num_units: How many there are, K.
    :param rate: Units per second.
    """
    counts, num_runs = np.zeros(num_units, np.int64), np.zeros(num_units, np.int64)

    lengths = np.zeros(MAX_RUN, np.int64)

    for units in utterances:
        if len(units) == 0:
            continue

        starts = np.flatnonzero(np.concatenate(([True], units[1:] != units[:-1])))

        runs = np.diff(np.append(starts, len(units)))

        counts += np.bincount(units, minlength=num_units)
        num_runs += np.bincount(units[starts], minlength=num_units)
        lengths += np.bincount(np.minimum(runs, MAX_RUN) - 1, minlength=MAX_RUN)

    total, total_runs = int(counts.sum()), int(num_runs.sum())

    p = counts[counts > 0] / max(total, 1)

    return UnitSummary(
        name=name,
        source=source,
        split=split,
        rate=rate,
        counts=[int(c) for c in counts],
        num_dead=int((counts == 0).sum()),
        entropy_bits=max(0.0, float(-(p * np.log2(p)).sum())) if total else None,
        mean_run_seconds=total / total_runs / rate if total_runs else None,
        unit_run_seconds=[float(c / n / rate) if n else None for c, n in zip(counts, num_runs, strict=True)],
        run_lengths=[int(n) for n in lengths],
        quality=quality,
    )


def make_example(
    waveform: Waveform,
    utterance: str,
    *,
    tracks: Mapping[str, tuple[int, Units]],
    phones: Sequence[tuple[float, float, str]] | None = None,
    words: Sequence[tuple[float, float, str]] | None = None,
    max_seconds: float = 6.0,
) -> Example:
    """Return an utterance, or its beginning, as the page shows it.

    :param waveform: At 16 kHz.
    :param tracks: By name (``MFCC``, ``round 1``), the units and how many there are per second.
    :param max_seconds: What comes later is not shown.
    """
    import torch
    from torchaudio.compliance.kaldi import fbank

    waveform = np.asarray(waveform[: int(max_seconds * frames.SAMPLE_RATE)], np.float32)

    duration = frames.seconds(len(waveform))

    levels: list[list[int]] = []

    if len(waveform) >= frames.RECEPTIVE_FIELD:
        # 25 ms every 10 ms, from 20 Hz to half the sample rate.
        mel = fbank(torch.from_numpy(waveform)[None], num_mel_bins=NUM_BANDS, window_type="hanning").numpy()

        low, high = np.percentile(mel, [5, 99.7])

        levels = np.rint(255 * np.clip((mel - low) / max(high - low, 1e-6), 0, 1)).astype(int).tolist()

    def cut(segments: Sequence[tuple[float, float, str]] | None) -> list[Segment] | None:
        if segments is None:
            return None

        return [
            Segment(start=round(float(a), 4), end=round(min(float(b), duration), 4), name=name)
            for a, b, name in segments
            if a < duration
        ]

    return Example(
        utterance=utterance,
        duration=duration,
        spectrogram=levels,
        frame_rate=frames.SAMPLE_RATE // frames.MFCC_STRIDE,
        max_frequency=frames.SAMPLE_RATE / 2,
        tracks=[
            UnitTrack(name=name, rate=rate, units=[int(u) for u in units[: frames.num_labels(len(waveform), rate)]])
            for name, (rate, units) in tracks.items()
        ],
        phones=cut(phones),
        words=cut(words),
    )


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    import hubert_plugin

    versions = {"fairseq2-hubert": hubert_plugin.__version__, "Python": platform.python_version()}

    for name in ("fairseq2", "torch", "torchaudio", "numpy", "scikit-learn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue

    return {**versions, "system": f"{platform.system()} {platform.machine()}"}


def _quality(space: str, num_clusters: int, measured: Mapping[str, Any]) -> SpaceQuality:
    has_trials = len(measured.get("trials", [])) > 1

    return SpaceQuality(
        space=space,
        num_clusters=num_clusters,
        pnmi=_number(measured.get("pnmi")),
        pnmi_std=_number(measured.get("pnmi_std")) if has_trials else None,
        phone_purity=_number(measured.get("phone_purity")),
        cluster_purity=_number(measured.get("cluster_purity")),
        agreement=_number(measured.get("agreement")),
        criterion=_number(measured.get("criterion")),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None

    return float(value)


def _read_records(path: Path) -> dict[int, dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}

    records = {}

    for line in lines:
        try:
            record = json.loads(line)

            records[int(record["Step"])] = record
        except (ValueError, KeyError, TypeError):
            continue

    return records


def _thin(steps: list[int]) -> list[int]:
    if len(steps) <= MAX_POINTS:
        return steps

    return [steps[i] for i in np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int).tolist()]
