"""Which target head learns which labels: the ones that it names, wherever it stands in the list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import make_corpus, pretrain_config, read_metrics, write_config
from fairseq2.recipe.config import ModelSection
from processes import command_server

from hubert_plugin import frames
from hubert_plugin.data.labels import write_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import ConfigError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.tasks.heads import set_target_heads

KM, FINE = LabelSetSpec("km", 8, 50), LabelSetSpec("fine", 12, 100)


def complete(heads: object, *label_sets: LabelSetSpec) -> list[dict[str, object]]:
    section = ModelSection(config_overrides={"heads": heads})

    set_target_heads(section, label_sets)

    overrides = section.config_overrides

    assert isinstance(overrides, dict)

    result: list[dict[str, object]] = overrides["heads"]

    return result


def test_heads_have_the_order_of_the_label_sets_and_keep_what_they_say() -> None:
    named = [{"label_set": "fine", "weight": 0.5, "layer": 3}, {"label_set": "km", "kind": "linear"}]

    assert complete(named, KM, FINE) == [
        {"label_set": "km", "kind": "linear", "size": 8, "rate": 50},
        {"label_set": "fine", "weight": 0.5, "layer": 3, "size": 12, "rate": 100},
    ]


def test_without_a_word_on_heads_each_label_set_has_one() -> None:
    expected = [{"label_set": "km", "size": 8, "rate": 50}, {"label_set": "fine", "size": 12, "rate": 100}]

    assert complete(None, KM, FINE) == complete([], KM, FINE) == expected


def test_a_label_set_that_no_head_predicts_is_refused() -> None:
    """Batches would have its targets all the same, and heads would be compared with those of others."""
    with pytest.raises(ConfigError, match=r"km, fine, but no target head of the model predicts km\. Give .* a head in"):
        complete([{"label_set": "fine"}], KM, FINE)


def test_a_head_learns_the_labels_that_it_names(tmp_path: Path) -> None:
    """One of two label sets of a size is one unit throughout: the head of this name is right everywhere, soon."""
    corpus = make_corpus(tmp_path / "corpus", num_train=8, num_valid=2)

    for split in ("train", "valid"):
        manifest = read_manifest(corpus, split)

        units = [np.full(frames.num_frames(n), 5, np.int32) for n in manifest.sizes.tolist()]

        write_labels(corpus, split, LabelSetSpec("same", 8, 50), units, manifest, {"made_by": "tests"})

    config = pretrain_config(
        corpus,
        dataset={"labels": ["km", "same"]},
        model={"config_overrides": {"heads": [{"label_set": "same"}, {"label_set": "km"}]}},
        optimizer={"name": "adamw", "config": {"lr": 0.02}},
        regime={"num_steps": 12, "validate_every_n_steps": 12, "checkpoint_every_n_steps": 12},
    )

    run = command_server().pretrain(tmp_path / "out", write_config(tmp_path / "config.yaml", config))

    assert run.poll() == 0, run.raw[-3000:]

    (record,) = read_metrics(tmp_path / "out", "valid")

    assert record["Masked Accuracy same"] == record["Unmasked Accuracy same"] == 1.0
    assert record["Masked Accuracy"] < 0.5


def test_a_head_that_does_not_say_its_label_set_predicts_the_default() -> None:
    assert complete([{"weight": 0.5}], KM) == [{"weight": 0.5, "label_set": "km", "size": 8, "rate": 50}]


@pytest.mark.parametrize("heads", [["km"], {"label_set": "km"}, "km", 1, {}])
def test_heads_that_are_no_list_of_heads_are_answered(heads: object) -> None:
    with pytest.raises(ConfigError, match=r"must be a list .* such as \[\{label_set: km\}\], but is .* instead"):
        complete(heads, KM)
