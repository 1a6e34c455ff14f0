"""The closing lines of ``pretrain``: what was learned, in numbers that were measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, final

import numpy as np
from fairseq2.logging import log

from hubert_plugin import frames
from hubert_plugin.analysis.layers import Utterances, compare_units, layer_quality
from hubert_plugin.analysis.spaces import MFCC
from hubert_plugin.audio import read_waveform
from hubert_plugin.criteria.steps import EvalStep
from hubert_plugin.data.dataset import HubertDatasetSection
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.demo import frame_phones, read_alignment
from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.tasks.cpu import has_bfloat16_units
from hubert_plugin.tasks.hubert_pretrain import HubertPretrainTask


@dataclass(kw_only=True)
class ReportSection:
    """What is told when training has ended."""

    enabled: bool = True
    """If true, the run ends with a few lines on what was learned, also written to OUT/report.json."""

    fit_minutes: float = 10.0
    """The minutes of training audio whose layer features are clustered (corpora with phone times only)."""


@final
class PretrainReport:
    """Measures and tells; also written to ``OUT/report.json``."""

    def __init__(
        self,
        output_dir: Path,
        section: ReportSection,
        dataset_section: HubertDatasetSection,
        task: HubertPretrainTask,
        model: HubertModel,
        eval_step: EvalStep,
    ) -> None:
        self._output_dir = output_dir
        self._fit_minutes = section.fit_minutes
        self._dataset_section = dataset_section
        self._task = task
        self._model = model
        self._eval_step = eval_step

    def __call__(self) -> None:
        file = self._output_dir / "report.json"

        if self._eval_step.last_values:
            report = self._measure()

            write_text_atomic(file, json.dumps(report, indent=2) + "\n")
        elif file.is_file():
            # The run was over already: nothing was trained, so nothing is measured again.
            report = json.loads(file.read_text(encoding="utf-8"))
        else:
            report = {}

        for line in self._lines(report):
            log.info("{}", line)

    def _measure(self) -> dict[str, Any]:
        section = self._dataset_section

        values = self._eval_step.last_values

        # Another criterion may publish other values; what it has of these is told.
        report: dict[str, Any] = {
            name: values[key]
            for name, key in (
                ("masked_accuracy", "masked_accuracy"),
                ("unmasked_accuracy", "unmasked_accuracy"),
                ("loss_bits", "loss"),
            )
            if key in values
        }

        assert section.valid_split is not None

        labels = self._task.split(section.valid_split).labels[0]

        counts = labels.unit_counts()

        report["most_frequent_unit_share"] = float(counts.max() / counts.sum())

        report["label_set"] = {"name": labels.spec.name, "size": labels.spec.size, "rate": labels.spec.rate}

        if self._task.dataset.demo:
            report.update(self._measure_units())

        return report

    def _measure_units(self) -> dict[str, Any]:
        """Compare units of every layer with those of MFCC, at equal K, on speakers that training never heard."""
        section = self._dataset_section

        assert section.valid_split is not None

        train, valid = self._task.split(section.train_split), self._task.split(section.valid_split)

        alignment = read_alignment(self._task.manifest_dir, section.valid_split)

        labels = valid.labels[0]

        step = frames.labels_per_frame(labels.spec.rate)

        judge_on = self._utterances(valid.manifest, range(len(valid.manifest)))

        label_units = [labels[i][::step] for i in judge_on.indices]

        label_quality = compare_units(label_units, judge_on, alignment, frame_phones)

        fit_on = self._utterances(train.manifest, self._sample(train.manifest))

        self._model.eval()

        device_type = self._model.masker.temporal_mask_embed.device.type

        quality = layer_quality(
            self._model,
            fit_on,
            judge_on,
            alignment,
            frame_phones,
            num_clusters=labels.spec.size,
            seed=section.label_making.seed,
            # The labels may be better than the paper's MFCC already: both are told.
            mfcc=True,
            half_precision=device_type != "cpu" or has_bfloat16_units(),
        )

        mfcc = quality.pop(MFCC)

        best = max(quality, key=lambda space: quality[space].pnmi)

        return {
            "mfcc_pnmi": mfcc.pnmi,
            "label_pnmi": label_quality.pnmi,
            "layer_pnmi": {layer: q.pnmi for layer, q in quality.items()},
            "best_layer": best,
            "best_layer_pnmi": quality[best].pnmi,
        }

    def _utterances(self, manifest: Manifest, indices: Any) -> Utterances:
        policy = self._dataset_section.audio_policy(normalize=False)  # the extractor does it, for the model alone

        return Utterances(manifest.ids, lambda i: read_waveform(manifest.root, manifest.ids[i], policy), list(indices))

    def _sample(self, manifest: Manifest) -> list[int]:
        """Return utterances, drawn at random from a fixed seed, of ``report.fit_minutes`` in all."""
        order = np.random.default_rng(self._dataset_section.label_making.seed).permutation(len(manifest))

        seconds = np.cumsum(manifest.sizes[order]) / frames.SAMPLE_RATE

        return [int(i) for i in order[: int(np.searchsorted(seconds, self._fit_minutes * 60)) + 1]]

    def _lines(self, report: dict[str, Any]) -> list[str]:
        output_dir = self._output_dir

        lines = []

        if "masked_accuracy" in report:
            share, accuracy = report["most_frequent_unit_share"], report["masked_accuracy"]

            lines.append(
                f"Masked frames: {accuracy:.1%} of the units are predicted right on validation audio, "
                f"{accuracy / share:.1f} times the most frequent unit's share ({share:.1%})."
            )

        # A report of an earlier version has no plain MFCC.
        if "mfcc_pnmi" in report:
            best, labels, mfcc = (report[f"{name}_pnmi"] for name in ("best_layer", "label", "mfcc"))

            lines.append(
                f"Units (PNMI with phones of unheard speakers, K = {report['label_set']['size']}): {best:.3f} in layer "
                f"{report['best_layer'].removeprefix('L')}, {best - mfcc:+.3f} against {mfcc:.3f} of plain MFCC and "
                f"{best - labels:+.3f} against {labels:.3f} of the units it was trained on."
            )

        lines += [
            f"Checkpoints: {output_dir / 'checkpoints'}   Numbers: {output_dir / 'report.json'}",
            f"Curves: tensorboard --logdir {output_dir / 'tb'}",
            f'Use it: python -c "from hubert_plugin import load_hubert; print(load_hubert({str(output_dir)!r}))"',
            self._next_step(),
        ]

        return lines

    def _next_step(self) -> str:
        if self._task.dataset.demo:
            return (
                "Next, on your own audio: fairseq2 recipe hubert manifest data/mine --config source=FOLDER && "
                "fairseq2 recipe hubert pretrain runs/mine --config dataset.manifest_dir=data/mine"
            )

        analysis = quote(str(self._output_dir / "analysis"))

        pairs = f"{quote(f'model={self._output_dir}')} {quote(f'manifest_dir={self._task.manifest_dir}')}"

        return f"Next, how good its layers are: fairseq2 recipe hubert analyze {analysis} --config {pairs}"
