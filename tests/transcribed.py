"""A tiny corpus with transcripts, and configurations of ``finetune`` for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import TINY_MODEL, make_corpus, merge
from processes import Run, command_server

from hubert_plugin.data.manifest import read_manifest

WORDS = ("A", "BEE", "CAT", "DOG", "IT'S", "EEL")


def make_texts(folder: Path, split: str, seed: int = 0) -> list[str]:
    """Return random words for the utterances of a split: two a second, which letters and blanks have room for."""
    rng = np.random.default_rng([seed, len(split)])

    return [
        " ".join(rng.choice(WORDS, max(1, int(size / 16000 * 2))))
        for size in read_manifest(folder, split).sizes.tolist()
    ]


def make_transcribed(folder: Path, **kwargs: Any) -> Path:
    """Write a corpus of noise and tones (``builders.make_corpus``) with ``SPLIT.wrd`` beside its manifests."""
    make_corpus(folder, **{"label_sets": {}, **kwargs})

    for split in ("train", "valid"):
        (folder / f"{split}.wrd").write_text("".join(f"{t}\n" for t in make_texts(folder, split)))

    return folder


def finetune_config(manifest_dir: Path, **sections: Any) -> dict[str, Any]:
    """The configuration of a small, exact run of ``finetune``, for a YAML file; ``sections`` are merged into it."""
    encoder = {**TINY_MODEL, "layer_drop_p": 0.3, "dropout_p": 0.1, "input_dropout_p": 0.1}

    config: dict[str, Any] = {
        "model": {"config_overrides": {"final_dropout_p": 0.1, "encoder": encoder}},
        "dataset": {"manifest_dir": str(manifest_dir), "train_minutes": None},
        "task": {
            "config": {
                "batching": {"batch_seconds": 6.0, "max_seconds": 5.0},
                "mask": {"channel": {"span_len": 4}},
                "valid_batch_seconds": 12.0,
            }
        },
        "trainer": {"mixed_precision": {"mode": "off"}},
        "regime": {
            "num_steps": 8,
            "validate_every_n_steps": 4,
            "checkpoint_every_n_steps": 4,
            "publish_metrics_every_n_steps": 1,
        },
        "common": {"metric_recorders": {"tensorboard": {"enabled": False}}},
    }

    return merge(config, sections)


def exact_config(manifest_dir: Path, **sections: Any) -> dict[str, Any]:
    """The same without anything drawn in the model: dropout and layer drop off."""
    names = ("layer_drop_p", "dropout_p", "input_dropout_p", "attn_dropout_p", "ffn_inner_dropout_p")

    encoder = dict.fromkeys(names, 0.0)

    exact = {"model": {"config_overrides": {"final_dropout_p": 0.0, "encoder": encoder}}}

    return merge(finetune_config(manifest_dir), merge(exact, sections))


def finetune_args(output_dir: Path, config: Path, *overrides: str) -> list[str]:
    """The command line of a run of ``finetune`` that logs plain lines."""
    args = ["recipe", "hubert", "finetune", str(output_dir), "--config-file", str(config), "--no-rich"]

    return [*args, "--config", *overrides] if overrides else args


def finetune(output_dir: Path, config: Path, *overrides: str, **kwargs: Any) -> Run:
    """Run ``fairseq2 recipe hubert finetune`` to its end."""
    return command_server().run(*finetune_args(output_dir, config, *overrides), **kwargs)


def assert_ok(runs: Run | Sequence[Run]) -> None:
    for run in [runs] if isinstance(runs, Run) else runs:
        assert run.poll() == 0, run.raw[-4000:]


def write_lines(name: str, change: Callable[[list[str]], Sequence[str]]) -> Callable[[Path], None]:
    """Return what rewrites the lines of a file of a corpus."""

    def spoil(folder: Path) -> None:
        path = folder / name

        path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))

    return spoil
