"""Demo corpora of some seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hubert_plugin.demo import DemoCorpusConfig

SPLITS = ("train", "valid")


def small_config(cache_dir: Path, **options: Any) -> DemoCorpusConfig:
    options = {"train_minutes": 0.25, "valid_minutes": 0.15, "num_speakers": 5, "num_jobs": 2, **options}

    return DemoCorpusConfig(cache_dir=cache_dir, **options)


def read_manifest(folder: Path, split: str) -> dict[str, int]:
    root, *lines = (folder / f"{split}.tsv").read_text().splitlines()

    assert root == str(folder)

    return {id_: int(n) for id_, n in (line.split("\t") for line in lines)}


def leftovers(cache_dir: Path) -> list[str]:
    return [p.name for p in cache_dir.iterdir() if p.name.endswith(".tmp")]
