"""The closing lines of ``finetune``: how well words are recognised, and what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

from fairseq2.logging import log

from hubert_plugin.criteria.steps import EvalStep
from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.interop.sources import find_checkpoint
from hubert_plugin.tasks.hubert_ctc import HubertCtcTask


@final
class FinetuneReport:
    """Tells what a finished run recognises; also written to ``OUT/report.json``."""

    def __init__(self, output_dir: Path, task: HubertCtcTask, pretrained: str | None, eval_step: EvalStep) -> None:
        self._output_dir = output_dir
        self._task = task
        self._pretrained = pretrained
        self._eval_step = eval_step

    def __call__(self) -> None:
        file = self._output_dir / "report.json"

        values = self._eval_step.last_values

        if values or not file.is_file():
            report: dict[str, Any] = {
                "pretrained": self._pretrained,
                **{name: values[name] for name in ("wer", "cer", "loss", "nll_loss") if name in values},
                "data": self._task.describe_data(),
            }

            write_text_atomic(file, json.dumps(report, indent=2) + "\n")
        else:
            # The run was over already: nothing was measured again.
            report = json.loads(file.read_text(encoding="utf-8"))

        for line in self._lines(report):
            log.info("{}", line)

    def _lines(self, report: dict[str, Any]) -> list[str]:
        out = self._output_dir

        lines = []

        if "wer" in report:
            lines.append(
                f"Validation, greedy decoding, last update: word error rate {report['wer']:.2f} %, character error "
                f"rate {report['cer']:.2f} %."
            )

        for split, data in report["data"].items():
            if data["left_out"]:
                reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in data["left_out"].items())

                lines.append(f"Left out of the split '{split}': {reasons}.")

        lines += [
            f"Checkpoints: {find_checkpoint(out).parent}   Numbers: {out / 'report.json'}",
            f"Use it: fairseq2 recipe hubert transcribe OUT --config model={out}",
        ]

        return lines
