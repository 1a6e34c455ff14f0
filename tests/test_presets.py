"""Every preset of ``pretrain`` has the paper's numbers, and trains a shrunken model on short batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import (
    NO_DROPOUT,
    TINY_MODEL,
    load_weights,
    make_corpus,
    make_labels,
    pretrain_config,
    read_metrics,
    write_config,
)
from processes import Run, assert_answer, command_server, pretrain_args, start_pretrain_ranks, wait_for_all
from ruamel.yaml import YAML

from hubert_plugin import load_hubert


@dataclass(frozen=True)
class Expected:
    """What the papers and their configurations say (arXiv:2106.07447, IV-C and Table V; fairseq's YAML files)."""

    arch: str
    steps: int
    warmup: int
    lr: float
    clip: float
    global_seconds: float
    gpu_seconds: float
    labels: Sequence[str] = ("km",)
    alpha: float = 1.0
    num_clusters: int | None = None


def base(**changes: Any) -> Expected:
    values: dict[str, Any] = {
        "arch": "base", "steps": 400_000, "warmup": 32_000, "lr": 5e-4, "clip": 10.0, "global_seconds": 32 * 87.5,
        "gpu_seconds": 87.5,
    }  # fmt: skip

    return Expected(**{**values, **changes})


def mfcc(**changes: Any) -> Expected:
    return base(**{"labels": (), "num_clusters": 100, "steps": 100_000, "warmup": 8_000, **changes})


MS_HUBERT_LABELS = ("km1000", "km500", "km250", "km125", "km50", "km25")

PRESETS: Mapping[str, Expected] = {
    "base_it1": mfcc(steps=250_000, warmup=20_000),
    "base_it2": base(),
    "large": base(arch="large", lr=1.5e-3, clip=1.0, global_seconds=128 * 56.25, gpu_seconds=56.25),
    "xlarge": base(arch="xlarge", lr=3e-3, clip=1.0, global_seconds=256 * 22.5, gpu_seconds=22.5),
    "base_ensemble": base(labels=("km50", "km100", "km500"), steps=100_000, warmup=8_000),
    "base_product": base(labels=("pq_static", "pq_delta", "pq_delta2"), steps=100_000, warmup=8_000),
    "ablation_alpha_1": mfcc(),
    "ablation_alpha_0.5": mfcc(alpha=0.5),
    "ablation_alpha_0": mfcc(alpha=0.0),
    "ms_hubert_base": base(arch="ms_hubert_base", labels=MS_HUBERT_LABELS),
    "continue": base(lr=1e-4, steps=100_000, warmup=8_000),
}

SIZES = {"km": 8, "km50": 5, "km100": 6, "km500": 10, "km25": 3, "km125": 8, "km250": 9, "km1000": 12}

LABEL_SETS = {**SIZES, "pq_static": 4, "pq_delta": 4, "pq_delta2": 4}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("presets"), label_sets=LABEL_SETS)


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the labels ``km`` with the shrunken architecture."""
    folder = tmp_path_factory.mktemp("source")

    model = {"arch": "base", "config_overrides": {**TINY_MODEL, "layer_drop_p": 0.0}}

    config = pretrain_config(corpus, model=model, regime={"num_steps": 4})

    run = command_server().pretrain(folder / "out", write_config(folder / "config.yaml", config))

    assert run.poll() == 0, run.raw[-3000:]

    return folder / "out"


def shrink(manifest_dir: Path, **model: Any) -> list[str]:
    """Overrides that make any preset small: model, batches, steps; the precision stays."""
    overrides = json.dumps({**TINY_MODEL, **model})

    return [
        f"dataset.manifest_dir={manifest_dir}",
        f"model.config_overrides={overrides}",
        "task.config.global_batch_seconds=8",
        "task.config.batching.batch_seconds=4",
        "task.config.batching.max_seconds=2.5",
        "task.config.batching.min_seconds=0.5",
        "task.config.valid_batch_seconds=12",
        "lr_scheduler.config.num_warmup_steps=1",
        "regime.num_steps=2",
        "regime.validate_every_n_steps=2",
        "regime.checkpoint_every_n_steps=2",
        "regime.publish_metrics_every_n_steps=1",
        "common.metric_recorders.tensorboard.enabled=false",
    ]


def run_preset(name: str, output_dir: Path, *overrides: str) -> Run:
    return command_server().run(
        "recipe", "hubert", "pretrain", output_dir, "--preset", name, "--no-rich", "--config", *overrides
    )


def test_there_is_no_preset_without_a_test(repo_dir: Path) -> None:
    assert {p.stem for p in (repo_dir / "recipes/hubert/pretrain/configs").glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_numbers_are_the_papers(name: str, repo_dir: Path) -> None:
    content = YAML(typ="safe", pure=True).load(repo_dir / "recipes/hubert/pretrain/configs" / f"{name}.yaml")

    expected = PRESETS[name]

    optimizer, batching = content["optimizer"]["config"], content["task"]["config"]["batching"]

    assert content["model"] == {"family": "hubert", "arch": expected.arch}
    assert tuple(content["dataset"].get("labels", ())) == tuple(expected.labels)
    making = content["dataset"].get("label_making", {})

    assert making.get("num_clusters") == expected.num_clusters

    # Labels that are made on the way are of the paper's MFCC, not of the toy's normalised ones.
    assert not making or making["features"] == {"name": "mfcc", "config": {"utterance_norm": "none"}}
    assert content["task"]["config"]["global_batch_seconds"] == expected.global_seconds
    assert batching == {"batch_seconds": expected.gpu_seconds, "max_seconds": 250_000 / 16_000, "min_seconds": 2.0}
    assert content["task"]["config"]["mask"] == {"prob": 0.8, "span_len": 10, "min_spans": 2}
    assert content["criterion"]["config"] == {"alpha": expected.alpha, "feature_penalty_weight": 10.0}
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"], optimizer["weight_decay"]) == (
        expected.lr, [0.9, 0.98], 1e-6, 0.01
    )  # fmt: skip
    assert content["lr_scheduler"] == {
        "name": "polynomial_decay", "config": {"num_warmup_steps": expected.warmup}
    }  # fmt: skip
    assert content["trainer"]["max_grad_norm"] == expected.clip
    assert content["regime"]["num_steps"] == expected.steps
    assert content["regime"]["score_metric"] == "masked_accuracy"

    # The warm-up of the paper is 8 % of the updates.
    assert expected.warmup == 0.08 * expected.steps


@pytest.mark.parametrize("name", PRESETS)
def test_preset_trains_a_shrunken_model(name: str, corpus: Path, source: Path, tmp_path: Path) -> None:
    expected = PRESETS[name]

    # Six heads on twelve layers.
    extra = {"num_layers": 12} if name == "ms_hubert_base" else {}

    overrides = shrink(corpus, **extra)

    if expected.num_clusters is not None:
        overrides += ["dataset.label_making.num_clusters=6", "dataset.label_making.max_frames=3000"]

    if name == "continue":
        overrides.append(f"init.source={source}")

    run = run_preset(name, tmp_path / "out", *overrides)

    assert run.poll() == 0, run.raw[-3000:]
    assert "8 s of audio = 1 rank(s) x 2 batch(es) x 4 s" in run.text

    model = load_hubert(tmp_path / "out")

    sizes = {"km": 6} if expected.num_clusters is not None else {n: LABEL_SETS[n] for n in expected.labels}

    assert {h.label_set: h.size for h in model.config.heads} == sizes

    taps = [12, 10, 8, 7, 5, 4] if name == "ms_hubert_base" else [2] * len(sizes)

    assert [h.layer for h in model.target_heads] == taps

    assert model.config.swap == (name == "ms_hubert_base")
    assert model.config.normalize_audio == (expected.arch in ("large", "xlarge"))
    assert model.config.norm_order == ("pre" if expected.arch in ("large", "xlarge") else "post")

    records = read_metrics(tmp_path / "out")

    assert [r["Step"] for r in records] == [1, 2]
    assert all(0.0 < r["Loss"] < 200.0 and r["Gradient Norm"] > 0.0 and r["Skipped Updates"] == 0 for r in records)

    (valid,) = read_metrics(tmp_path / "out", "valid")

    for head in list(sizes)[1:]:
        assert valid[f"Masked Loss (bits) {head}"] > 0.0
        assert 0.0 <= valid[f"Masked Accuracy {head}"] <= 1.0
        assert valid[f"Unit Usage (perplexity) {head}"] >= 1.0

    # Two of six heads take no part in an update; all of them in validation.
    told = sum(f"Masked Accuracy {head}" in records[0] for head in list(sizes)[1:]) + ("Masked Accuracy" in records[0])

    assert told == (4 if name == "ms_hubert_base" else len(sizes))


def test_two_ranks_of_ms_hubert_train_as_one_that_accumulates(corpus: Path, tmp_path: Path) -> None:
    """All ranks drop the same heads, and every parameter has a gradient for data parallelism to wait for."""
    config = pretrain_config(
        corpus,
        model={"arch": "ms_hubert_base", "config_overrides": {**NO_DROPOUT, "num_layers": 5}},
        dataset={"labels": list(MS_HUBERT_LABELS)},
        task={"config": {"global_batch_seconds": 12.0}},
        criterion={"config": {"alpha": 1.0}},
        regime={"num_steps": 5, "validate_every_n_steps": 5, "checkpoint_every_n_steps": 5},
    )

    file = write_config(tmp_path / "config.yaml", config)

    wait_for_all(
        [
            command_server().start(*pretrain_args(tmp_path / "one", file)),
            *start_pretrain_ranks(tmp_path / "two", file, 2),
        ]
    )

    ours, theirs = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")

    assert [set(r) for r in ours] == [set(r) for r in theirs]

    for key in ("Loss", "Masked Frames", "Gradient Norm"):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in theirs], rel=1e-4), key


@pytest.mark.parametrize(
    ("name", "phrases"),
    [("base_it2", ["train.km'"]), ("base_ensemble", ["train.km50'"]), ("ms_hubert_base", ["train.km1000'"])],
)
def test_preset_without_its_labels_is_answered_with_a_sentence(
    name: str, phrases: Sequence[str], tmp_path: Path
) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=1, label_sets={"other": 4})

    run = run_preset(name, tmp_path / "out", *shrink(corpus))

    assert_answer(run, ["There are no labels", "the verbs `cluster` and `label`", *phrases])


def test_preset_without_data_is_answered_with_a_sentence(tmp_path: Path) -> None:
    assert_answer(run_preset("base_it2", tmp_path / "out"), ["names no manifest"])


def test_continuing_from_nothing_is_answered_with_a_sentence(corpus: Path, tmp_path: Path) -> None:
    assert_answer(run_preset("continue", tmp_path / "out", *shrink(corpus)), ["names none", "`init.source`"])


# Starting from another model


def test_model_starts_from_the_source_with_new_heads(corpus: Path, source: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing, the first checkpoint is where the run began."""
    overrides = [*shrink(corpus), f"init.source={source}", "dataset.labels=[km500]", "optimizer.config.lr=1e-30"]

    run = run_preset("continue", tmp_path / "out", *overrides, "regime.num_steps=2")

    assert run.poll() == 0, run.raw[-3000:]
    assert "with new target heads" in run.text

    ours, theirs = load_weights(tmp_path / "out/checkpoints/step_2"), load_weights(source / "checkpoints/step_4")

    encoder = [k for k in theirs if not k.startswith("target_heads.")]

    assert encoder and all(torch.equal(ours[k], theirs[k]) for k in encoder)
    assert ours["target_heads.heads.0.codewords"].shape == (10, 16)
    assert not torch.equal(ours["target_heads.heads.0.proj.weight"], theirs["target_heads.heads.0.proj.weight"])

    # A run that goes on is not started from the source again.
    again = run_preset("continue", tmp_path / "out", *overrides, "regime.num_steps=3", "optimizer.config.lr=0.1")

    assert again.poll() == 0, again.raw[-3000:]
    assert "The model starts from" not in again.text


def test_heads_are_kept_where_asked(corpus: Path, source: Path, tmp_path: Path) -> None:
    overrides = [*shrink(corpus), f"init.source={source}", "init.heads=keep", "optimizer.config.lr=1e-30"]

    run = run_preset("continue", tmp_path / "out", *overrides)

    assert run.poll() == 0, run.raw[-3000:]

    ours, theirs = load_weights(tmp_path / "out/checkpoints/step_2"), load_weights(source / "checkpoints/step_4")

    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize(
    ("changes", "overrides", "phrases"),
    [
        (
            {"model_dim": 64, "num_layers": 3},
            [],
            ["`model_dim` is 64, but 32 in the source", "`num_layers` is 3, but 2 in the source", "model.arch"],
        ),
        ({"normalize_audio": True}, [], ["`normalize_audio` is True, but False in the source"]),
        (
            {},
            ["init.heads=keep", "dataset.labels=[km500]"],
            ["heads are km500 (10 units", "but km (8 units", "or set `init.heads=new`"],
        ),
        (
            {"heads": [{"label_set": "km", "layer": 1}], "logit_temp": 0.2},
            ["init.heads=keep"],
            [
                "heads are km (8 units, cosine, layer 1); dimension 16, temperature 0.2",
                "but km (8 units, cosine, layer 2); dimension 16, temperature 0.1",
            ],
        ),
        ({}, ["init.source=/no/such/run"], ["'/no/such/run' is neither"]),
    ],
)
def test_source_that_does_not_fit_is_answered_with_all_differences(
    changes: Mapping[str, Any], overrides: Sequence[str], phrases: Sequence[str], corpus: Path, source: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    run = run_preset("continue", tmp_path / "out", *shrink(corpus, **changes), f"init.source={source}", *overrides)

    assert_answer(run, phrases)


def test_labels_that_do_not_fit_the_checkpoint_are_answered_with_a_sentence(tmp_path: Path) -> None:
    """The same names in the same place, but of another k-means."""
    corpus = make_corpus(tmp_path / "corpus")

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(corpus, regime={"num_steps": 4, "validate_every_n_steps": 4}),
    )

    assert command_server().pretrain(tmp_path / "out", config).poll() == 0

    for split in ("train", "valid"):
        make_labels(corpus, split, "km", 11)

    run = command_server().pretrain(tmp_path / "out", config, "regime.num_steps=8")

    assert_answer(run, ["label sets km (8 units)", "labels are km (11 units) now", f"init.source={tmp_path / 'out'}"])
