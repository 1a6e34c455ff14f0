"""Pretraining takes labels of either form, named by a dataset card or by a folder, and trains the same."""

from __future__ import annotations

from pathlib import Path

from builders import make_corpus, make_labels, pretrain_config, read_metrics, write_config
from processes import command_server

from hubert_plugin.data.label_convert import convert_labels
from hubert_plugin.data.manifest import read_manifest


def test_both_forms_of_labels_train_the_same(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=8, num_valid=2)

    for split in ("train", "valid"):
        make_labels(corpus, split, "fine", 12, rate=100)

        for name in ("km", "fine"):
            convert_labels(corpus, tmp_path / "binary", name, read_manifest(corpus, split), form="binary")

    assert sorted(p.name for p in (tmp_path / "binary").iterdir()) == [
        f"{split}.{name}.safetensors" for split in ("train", "valid") for name in ("fine", "km")
    ]

    (tmp_path / "cards").mkdir()

    (tmp_path / "cards/mine.yaml").write_text(
        "name: mine\ndataset_family: hubert\ndataset_config:\n"
        f"  manifest_dir: {corpus}\n  label_dir: {tmp_path}/binary\n  labels: [km, fine]\n"
    )

    sections = {
        "text": {"dataset": {"labels": ["km", "fine"]}},
        "binary": {"dataset": {"labels": ["km", "fine"], "label_dir": str(tmp_path / "binary")}},
        "card": {
            "dataset": {"name": "mine", "manifest_dir": None, "labels": []},
            "common": {"assets": {"extra_paths": [str(tmp_path / "cards")]}},
        },
    }

    losses = {}

    for name, section in sections.items():
        config = pretrain_config(
            corpus, regime={"num_steps": 3, "validate_every_n_steps": 3, "checkpoint_every_n_steps": 3}, **section
        )

        run = command_server().pretrain(tmp_path / name, write_config(tmp_path / f"{name}.yaml", config))

        assert run.poll() == 0, run.raw[-5000:]

        losses[name] = [m["Masked Loss (bits)"] for m in read_metrics(tmp_path / name)]

    assert len(losses["text"]) == 3 and losses["text"] == losses["binary"] == losses["card"]
