"""A corpus of noise whose labels are made on the way, as `pretrain` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile as sf

from hubert_plugin.data.manifest import write_manifest
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.mfcc import MfccSource
from hubert_plugin.units.prepare import ensure_labels


def make_corpus(folder: Path, num_train: int = 12, num_valid: int = 3) -> None:
    rng = np.random.default_rng(0)

    (folder / "wav").mkdir(parents=True, exist_ok=True)

    for split, count in (("train", num_train), ("valid", num_valid)):
        rows = []

        for i in range(count):
            n = int(rng.integers(4_000, 12_000))

            sf.write(folder / f"wav/{split}{i}.wav", 0.1 * rng.standard_normal(n), 16_000)

            rows.append((f"{split}{i}.wav", n))

        write_manifest(folder / f"{split}.tsv", "wav", rows)


def ensure(folder: Path, **kwargs: object) -> LabelSetSpec:
    options: dict[str, object] = {
        "label_dir": folder / "labels",
        "name": "km",
        "feature_source": MfccSource(),
        "num_clusters": 5,
    }

    return ensure_labels(folder, ["train", "valid"], **{**options, **kwargs})  # type: ignore[arg-type]


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (folder / "labels").iterdir()}
