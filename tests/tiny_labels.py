"""Manifests without audio and labels for them, for tests of label stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hubert_plugin.data.manifest import Manifest
from hubert_plugin.frames import num_labels
from hubert_plugin.registry import LabelSetSpec

SPECS = (LabelSetSpec("a", 7, 50), LabelSetSpec("b", 40_000, 50))

PROVENANCE = {"unit_model_fingerprint": "abc", "features": {"kind": "tests"}}


def make_manifest(folder: Path, sizes: Sequence[int]) -> Manifest:
    return Manifest(folder / "train.tsv", "train", folder, [f"{i}.wav" for i in range(len(sizes))], np.array(sizes))


def make_units(manifest: Manifest, idx: int) -> list[np.ndarray]:
    rng = np.random.default_rng(idx)

    return [rng.integers(s.size, size=num_labels(int(manifest.sizes[idx]), 50)).astype(np.int32) for s in SPECS]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.suffix in (".tmp", ".lock") or p.name.endswith(".pieces")]
