"""Features of manifests without audio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hubert_plugin.data.feature_files import (
    FeatureFormat,
    open_feature_writer,
)
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.stored_features import check_feature_rate, open_stored_features
from hubert_plugin.errors import UnitModelError
from hubert_plugin.frames import num_labels

DATA = Path(__file__).parent / "data"

KINDS: tuple[FeatureFormat, ...] = ("kaldi", "fairseq")

SIZES = [16_000, 8_000, 32_123, 400]

DIM = 3


def make_manifest(folder: Path, sizes: list[int] = SIZES) -> Manifest:
    ids = [f"spk/{i}.wav" for i in range(len(sizes))]

    return Manifest(folder / "train.tsv", "train", folder, ids, np.array(sizes, np.int64))


def make_features(sizes: list[int] = SIZES, rate: int = 50, dim: int = DIM) -> list[np.ndarray]:
    rng = np.random.default_rng(0)

    return [rng.standard_normal((num_labels(n, rate), dim)).astype(np.float32) for n in sizes]


def write(kind: FeatureFormat, folder: Path, manifest: Manifest, features: list[np.ndarray], rate: int = 50) -> None:
    with open_feature_writer(kind, folder, manifest.split, dim=features[0].shape[1], rate=rate) as writer:
        for i, f in zip(manifest.ids, features, strict=True):
            writer.write(i, f)


def fail(kind: FeatureFormat, path: Path, manifest: Manifest) -> str:
    with pytest.raises(UnitModelError) as info:
        opened = open_stored_features(kind, path, manifest)

        check_feature_rate(opened, manifest, None)

        for i in range(len(opened)):
            opened.read(i)

    return str(info.value)
