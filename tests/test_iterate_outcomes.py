"""The numbers of a refinement's report that are read from what its trainings recorded."""

from __future__ import annotations

import json
from pathlib import Path


def test_error_rates_of_a_recogniser_are_those_of_its_last_whole_record(tmp_path: Path) -> None:
    """The metric names are those of `finetune`; the last line was cut by a kill."""
    from hubert_plugin.refinement.outcomes import recognition_results

    records = [
        {"Step": 1, "Word Error Rate (WER)": 90.0, "Character Error Rate (CER)": 50.0},
        {"Step": 2, "Word Error Rate (WER)": 80.0, "Character Error Rate (CER)": 25.0, "Loss": 3.0},
    ]

    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/valid.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"Step": 3, "Wo')

    found = {r.name: (r.value, r.unit, r.on) for r in recognition_results(tmp_path, "dev")}

    assert found == {"WER": (0.8, "%", "dev"), "CER": (0.25, "%", "dev")}

    assert recognition_results(tmp_path / "none", "dev") == []


def test_the_objective_of_a_training_is_not_called_as_the_losses_of_the_charts_are(tmp_path: Path) -> None:
    """It is weighted and has the penalty, so it is another number than they are."""
    from hubert_plugin.refinement.outcomes import training_results

    (tmp_path / "report.json").write_text(json.dumps({"masked_accuracy": 0.25, "loss_bits": 2.917}))

    found = {r.name: (r.value, r.unit, r.on) for r in training_results(tmp_path, "dev")}

    assert found == {
        "Masked accuracy": (0.25, "%", "dev"),
        "Objective (α-weighted, with penalty)": (2.917, "bits", "dev"),
    }
