"""The closing lines of `pretrain` on the embedded corpus are what was measured, by another's formulas."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from builders import TINY_MODEL, pretrain_config, write_config
from processes import command_server
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from hubert_plugin.demo import frame_phones, read_alignment
from hubert_plugin.tasks.report import PretrainReport


def test_closing_lines_tell_what_was_measured(tmp_path: Path) -> None:
    config = pretrain_config(
        tmp_path,
        model={"config_overrides": TINY_MODEL},
        dataset={
            "manifest_dir": None,
            "labels": [],
            "demo": {
                **{"cache_dir": str(tmp_path / "cache"), "train_minutes": 0.4, "valid_minutes": 0.4},
                **{"num_speakers": 5, "num_jobs": 1},
            },
            "label_making": {"num_clusters": 10},
        },
        regime={"num_steps": 4},
    )

    run = command_server().pretrain(tmp_path / "out", write_config(tmp_path / "config.yaml", config))

    assert run.poll() == 0, run.raw[-3000:]

    report = json.loads((tmp_path / "out/report.json").read_text())

    (folder,) = (tmp_path / "cache").rglob("valid.tsv")

    corpus = folder.parent

    (labels,) = corpus.glob("labels/mfcc-*_k10_seed0/valid.km")

    units = [[int(u) for u in line.split()] for line in labels.read_text().splitlines()]

    # What is told of the labels.
    counts = Counter(u for line in units for u in line)

    share = max(counts.values()) / sum(counts.values())

    np.testing.assert_allclose(report["most_frequent_unit_share"], share)

    segments = read_alignment(corpus, "valid")

    ids = [line.split("\t")[0] for line in folder.read_text().splitlines()[1:]]

    seen = [line[::2] for line in units]

    phones = [frame_phones(segments[i], len(line), 50) for i, line in zip(ids, seen, strict=True)]

    x, y = [p for line in phones for p in line], [u for line in seen for u in line]

    pnmi = mutual_info_score(x, y) / entropy(list(Counter(x).values()))

    np.testing.assert_allclose(report["label_pnmi"], pnmi, rtol=1e-6)

    # Labels that are made on the way are of normalised features, and say so.
    features = json.loads(labels.with_name("valid.km.json").read_text())["features"]

    assert features["utterance_norm"] == "mean_variance"

    # What is said is what is written.
    best = max(report["layer_pnmi"].values())

    assert report["layer_pnmi"][report["best_layer"]] == report["best_layer_pnmi"] == best
    assert set(report["layer_pnmi"]) == {"L1", "L2"}

    text = re.sub(r"\s+", " ", run.text)

    assert (
        f"Masked frames: {report['masked_accuracy']:.1%} of the units are predicted right on validation audio, "
        f"{report['masked_accuracy'] / share:.1f} times the most frequent unit's share ({share:.1%})."
    ) in text
    assert (
        f"Units (PNMI with phones of unheard speakers, K = 10): {best:.3f} in layer {report['best_layer'][1]}, "
        f"{best - report['mfcc_pnmi']:+.3f} against {report['mfcc_pnmi']:.3f} of plain MFCC and "
        f"{best - pnmi:+.3f} against {pnmi:.3f} of the units it was trained on."
    ) in text


def test_the_command_that_is_told_next_can_be_pasted(tmp_path: Path) -> None:
    report = PretrainReport.__new__(PretrainReport)

    report._output_dir = tmp_path / "my run"
    report._task = SimpleNamespace(dataset=SimpleNamespace(demo=None), manifest_dir=Path("c ünï"))  # type: ignore[assignment]

    command = report._next_step().partition(": ")[2]

    assert shlex.split(command) == [
        *("fairseq2", "recipe", "hubert", "analyze", str(tmp_path / "my run/analysis"), "--config"),
        *(f"model={tmp_path / 'my run'}", "manifest_dir=c ünï"),
    ]
