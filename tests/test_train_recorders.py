"""The curves of a run in Weights & Biases, off-line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builders import make_corpus, pretrain_config, read_metrics, write_config
from processes import assert_answer, command_server
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore


def read_history(file: Path) -> Iterator[dict[str, Any]]:
    store = DataStore()

    store.open_for_scan(str(file))

    while (data := store.scan_data()) is not None:
        record = Record()

        record.ParseFromString(data)

        if record.WhichOneof("record_type") == "history":
            yield {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}


def test_wandb_gets_the_metrics_that_the_log_has(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=2)

    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 3}))

    run = command_server().pretrain(
        tmp_path / "out",
        file,
        "common.metric_recorders.wandb.enabled=true",
        "common.metric_recorders.wandb.project=hubert",
        env={"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    )

    assert run.poll() == 0, run.raw[-3000:]

    (wandb_file,) = (tmp_path / "out/wandb").glob("offline-run-*/run-*.wandb")

    losses = [json.loads(row["train/Loss"]) for row in read_history(wandb_file) if "train/Loss" in row]

    expected = [row["Loss"] for row in read_metrics(tmp_path / "out") if "Loss" in row]

    assert len(losses) == 3 and losses == expected

    keys = {key for row in read_history(wandb_file) for key in row}

    assert {"train/Masked Accuracy", "train/Gradient Norm", "train/Audio Seconds per Second"} <= keys


def test_wandb_without_a_key_is_answered_with_what_to_set(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=2)

    run = command_server().pretrain(
        tmp_path / "out",
        write_config(tmp_path / "config.yaml", pretrain_config(corpus)),
        "common.metric_recorders.wandb.enabled=true",
        # No file of a home holds a key, and no environment of the tests does.
        env={"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": "", "WANDB_MODE": "online"},
    )

    assert_answer(run, ["`wandb login`", "WANDB_API_KEY", "WANDB_MODE=offline", "wandb.enabled=false"])

    assert "urllib3" not in run.raw
