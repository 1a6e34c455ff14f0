"""Tiny data for tests: a corpus that is written in milliseconds, labels, and a model that trains in milliseconds.

Everything is drawn from seeds, so two builds are equal byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.batch import HubertBatch, collate
from hubert_plugin.data.labels import write_labels
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.data.masks import MaskConfig, sample_mask
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.registry import LabelSetSpec

NUM_UNITS = 8

CONV_LAYERS = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
"""The shape of every HuBERT's front-end, with few channels."""

TINY_MODEL: dict[str, Any] = {
    "model_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 64,
    "conv_layers": [list(layer) for layer in CONV_LAYERS],
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
    "final_dim": 16,
}
"""``model.config_overrides`` of a recipe: two layers of dimension 32."""

NO_DROPOUT = {"layer_drop_p": 0.0, "dropout_p": 0.0, "input_dropout_p": 0.0, "attn_dropout_p": 0.0}
"""``model.config_overrides`` of a run that is compared to another."""


def tiny_config(**overrides: Any) -> HubertConfig:
    """The configuration of :data:`TINY_MODEL`, without dropout unless ``overrides`` say so, with one head."""
    config = HubertConfig(
        **{**TINY_MODEL, "conv_layers": list(CONV_LAYERS)},
        dropout_p=0.0,
        attn_dropout_p=0.0,
        input_dropout_p=0.0,
        layer_drop_p=0.0,
        feature_grad_scale=1.0,
        heads=[HubertHeadConfig(size=NUM_UNITS)],
    )

    return replace(config, **overrides)


def speech_like(seconds: float, speaker: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise and tones that change every 200 ms; the pitch is the speaker's. *Shape:* (n,)."""
    num_samples = int(seconds * frames.SAMPLE_RATE)

    time = np.arange(num_samples) / frames.SAMPLE_RATE

    segment = (time / 0.2).astype(int)

    pitch = (100 + 20 * speaker) * rng.integers(1, 12, segment.max() + 1)[segment]

    level = rng.uniform(0.0, 0.3, segment.max() + 1)[segment]

    tone = np.sin(2 * np.pi * np.cumsum(pitch) / frames.SAMPLE_RATE)

    return (level * tone + 0.02 * rng.standard_normal(num_samples)).astype(np.float32)


def make_corpus(
    folder: Path,
    *,
    num_train: int = 24,
    num_valid: int = 4,
    seconds: tuple[float, float] = (1.0, 3.0),
    num_speakers: int = 3,
    seed: int = 0,
    label_sets: Mapping[str, int] | None = None,
) -> Path:
    """Write ``wav/``, ``train.tsv``, ``valid.tsv`` and labels into ``folder``.

    :param label_sets: The names and sizes of random labels at 50 Hz; ``None``: ``km`` with :data:`NUM_UNITS` units.
    """
    rng = np.random.default_rng(seed)

    for split, count in (("train", num_train), ("valid", num_valid)):
        rows = []

        for i in range(count):
            speaker = i % num_speakers

            waveform = speech_like(rng.uniform(*seconds), speaker, rng)

            ref = f"s{speaker}/{split}{i:02}.wav"

            path = folder / "wav" / ref

            path.parent.mkdir(parents=True, exist_ok=True)

            sf.write(path, waveform, frames.SAMPLE_RATE, subtype="FLOAT")

            rows.append((ref, waveform.size))

        write_manifest(folder / f"{split}.tsv", "wav", rows)

        for name, size in ({"km": NUM_UNITS} if label_sets is None else label_sets).items():
            make_labels(folder, split, name, size, seed=seed)

    return folder


def make_labels(
    folder: Path, split: str, name: str = "km", size: int = NUM_UNITS, *, rate: int = 50, seed: int = 0
) -> None:
    """Write random labels, held for three frames each, with their record."""
    manifest = read_manifest(folder, split)

    rng = np.random.default_rng([seed, size, rate])

    units = [
        np.repeat(rng.integers(0, size, n // 3 + 1), 3)[:n].astype(np.int32)
        for n in (frames.num_labels(s, rate) for s in manifest.sizes.tolist())
    ]

    write_labels(folder, split, LabelSetSpec(name, size, rate), units, manifest, {"made_by": "tests"})


def make_batch(
    lengths: Sequence[int],
    *,
    sizes: Sequence[int] = (NUM_UNITS,),
    seed: int = 0,
    mask: MaskConfig | None = None,
) -> HubertBatch:
    """A batch of random utterances of ``lengths`` samples; what is drawn for one does not depend on the others."""
    waveforms, labels, masks = [], [], []

    for idx, length in enumerate(lengths):
        rng = np.random.default_rng([seed, idx])

        num_frames = frames.num_frames(length)

        waveforms.append((0.1 * rng.standard_normal(length)).astype(np.float32))
        labels.append([rng.integers(0, size, num_frames).astype(np.int32) for size in sizes])
        masks.append(sample_mask(num_frames, mask or MaskConfig(), rng))

    return collate(waveforms, labels, masks, [f"utt{i}" for i in range(len(lengths))])


def pretrain_config(manifest_dir: Path, **sections: Any) -> dict[str, Any]:
    """The configuration of a small, exact run of ``pretrain``, for a YAML file; ``sections`` are merged into it."""
    config: dict[str, Any] = {
        "model": {"config_overrides": {**TINY_MODEL, "layer_drop_p": 0.3, "dropout_p": 0.1, "input_dropout_p": 0.1}},
        "dataset": {"manifest_dir": str(manifest_dir), "labels": ["km"]},
        "task": {
            "config": {
                "batching": {"batch_seconds": 6.0, "max_seconds": 2.5, "min_seconds": 0.5},
                "valid_batch_seconds": 12.0,
            }
        },
        "trainer": {"mixed_precision": {"mode": "off"}},
        "lr_scheduler": {"config": {"num_warmup_steps": 2}},
        "regime": {
            "num_steps": 12,
            "validate_every_n_steps": 4,
            "checkpoint_every_n_steps": 4,
            "publish_metrics_every_n_steps": 1,
        },
        "common": {"metric_recorders": {"tensorboard": {"enabled": False}}},
    }

    return merge(config, sections)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, section by section."""
    result = dict(base)

    for key, value in changes.items():
        old = result.get(key)

        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value

    return result


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a configuration file. JSON is YAML."""
    path.write_text(json.dumps(config, indent=2))

    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: tiny tensors gain nothing from more, and threads that wait take others' cores."""
    before = torch.get_num_threads()

    torch.set_num_threads(1)

    yield

    torch.set_num_threads(before)


def read_metrics(output_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Return the records of ``OUT/metrics/KIND.jsonl``."""
    path = output_dir / "metrics" / f"{kind}.jsonl"

    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load_weights(step_dir: Path) -> dict[str, torch.Tensor]:
    """Return the model parameters of a checkpoint of an unsharded run."""
    (file,) = (step_dir / "model").rglob("*.pt")

    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)

    return state
