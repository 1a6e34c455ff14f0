"""Every preset of ``finetune`` has the numbers of its source, and trains a shrunken model on short batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builders import NO_DROPOUT, TINY_MODEL, pretrain_config, read_metrics, write_config
from processes import command_server
from ruamel.yaml import YAML
from transcribed import assert_ok, make_transcribed

from hubert_plugin import load_hubert_ctc


@dataclass(frozen=True)
class Expected:
    """fairseq's YAML files as FACTS 1.5 names them; paper section IV-D for the batch."""

    lr: float
    steps: int
    freeze: int = 10_000
    time: float = 0.75
    channel: float = 0.5


# fairseq examples/mr_hubert/config/finetune and examples/hubert/config/finetune/base_10h.yaml; for 10 minutes and 960
# hours examples/wav2vec/config/finetuning.
BASE = {
    "10min": Expected(5e-5, 13_000, time=0.65, channel=0.25),
    "1h": Expected(5e-5, 13_000),
    "10h": Expected(2e-5, 25_000),
    "100h": Expected(3e-5, 80_000),
    "960h": Expected(1e-4, 320_000, freeze=0, time=0.5, channel=0.1),
}

LARGE = {
    "10min": Expected(1e-4, 13_000, time=0.65, channel=0.25),
    "1h": Expected(3e-4, 25_000),
    "10h": Expected(2e-5, 25_000),
    "100h": Expected(3e-5, 80_000),
    "960h": Expected(3e-5, 320_000, time=0.5, channel=0.25),
}

SIZES = {"base": (BASE, 200.0), "large": (LARGE, 80.0), "xlarge": (LARGE, 40.0)}

PAPERS = {f"{size}_{data}": size for size in SIZES for data in BASE}

OTHERS = ("demo_10min", "probe")

MINUTES = {"10min": 10, "1h": 60, "10h": 600, "100h": 6000, "960h": None}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transcribed(tmp_path_factory.mktemp("presets"), label_sets={"km": 8}, num_train=12, num_valid=2)


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained run of the shrunken architecture."""
    folder = tmp_path_factory.mktemp("source")

    model = {"config_overrides": {**TINY_MODEL, **NO_DROPOUT}}

    config = pretrain_config(corpus, model=model, regime={"num_steps": 4}, report={"enabled": False})

    assert_ok(command_server().pretrain(folder / "out", write_config(folder / "config.yaml", config)))

    return folder / "out"


def read_preset(repo_dir: Path, name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(repo_dir / "recipes/hubert/finetune/configs" / f"{name}.yaml")


def test_there_is_no_preset_without_a_test(repo_dir: Path) -> None:
    found = {p.stem for p in (repo_dir / "recipes/hubert/finetune/configs").glob("*.yaml")}

    assert found == {*PAPERS, *OTHERS}


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_are_those_of_the_source(name: str, repo_dir: Path) -> None:
    content = read_preset(repo_dir, name)

    size, data = name.split("_")

    table, gpu_seconds = SIZES[size]

    expected, task = table[data], content["task"]["config"]

    assert content["model"] == {"family": "hubert_ctc", "arch": size}
    assert content["pretraining"]["required"] is True
    assert content["dataset"]["train_minutes"] == MINUTES[data]
    assert content["freezing"]["encoder_updates"] == content["regime"]["validate_after_n_steps"] == expected.freeze
    assert content["regime"]["num_steps"] == expected.steps
    assert task["mask"]["time"] == {"prob": expected.time, "span_len": 10, "min_spans": 2}
    assert task["mask"]["channel"] == {"prob": expected.channel, "span_len": 64, "min_spans": 0}

    optimizer = content["optimizer"]["config"]

    assert (optimizer["lr"], optimizer["eps"], optimizer["weight_decay"]) == (expected.lr, 1e-8, 0.0)
    assert optimizer["betas"] == [0.9, 0.98]

    if data != "10min":
        assert task["global_batch_seconds"] == 8 * gpu_seconds
        assert task["batching"]["batch_seconds"] == gpu_seconds

    schedule = content["lr_scheduler"]

    if data == "10h":
        assert (schedule["config"]["num_warmup_steps"], schedule["config"]["num_decay_steps"]) == (8000, 72_000)
    else:
        assert schedule["config"]["stage_ratio"] == [0.1, 0.4, 0.5]

    assert schedule["config"]["final_lr_scale"] == 0.05


FAST = ("base_10min", "base_10h", "large_1h", "xlarge_960h", *OTHERS)
"""Presets that differ in more than numbers."""


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in (*PAPERS, *OTHERS)]
)
def test_preset_trains_and_its_recogniser_loads(name: str, corpus: Path, source: Path, tmp_path: Path) -> None:
    overrides = [
        f"dataset.manifest_dir={corpus}",
        f"pretrained={source}",
        "task.config.global_batch_seconds=8",
        "task.config.batching.batch_seconds=4",
        "task.config.batching.max_seconds=4",
        "task.config.valid_batch_seconds=12",
        "regime.num_steps=2",
        "regime.validate_after_n_steps=0",
        "regime.validate_every_n_steps=2",
        "regime.checkpoint_every_n_steps=2",
        "regime.publish_metrics_every_n_steps=1",
        "common.metric_recorders.tensorboard.enabled=false",
    ]

    run = command_server().run(
        "recipe", "hubert", "finetune", tmp_path / "out", "--preset", name, "--no-rich", "--config", *overrides
    )

    assert_ok(run)

    assert [r["Step"] for r in read_metrics(tmp_path / "out")] == [1, 2]

    model = load_hubert_ctc(tmp_path / "out")

    assert model.config.encoder.num_layers == TINY_MODEL["num_layers"]
    assert (model.layer_weights is not None) == (name == "probe")

    # What the encoder's layers drop is fine-tuning's, not pretraining's.
    assert model.config.encoder.layer_drop_p == (0.0 if name == "probe" else 0.1)


def test_preset_without_a_model_says_what_is_missing(corpus: Path, tmp_path: Path) -> None:
    run = command_server().run(
        *("recipe", "hubert", "finetune", tmp_path / "out", "--preset", "base_10h", "--no-rich", "--config"),
        f"dataset.manifest_dir={corpus}",
    )

    assert run.poll() == 2
    assert "fine-tunes a pretrained model, but names none" in run.text
