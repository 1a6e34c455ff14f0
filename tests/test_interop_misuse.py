"""Checkpoints that are asked for what they do not have, or used as what they are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from foreign import DATA
from golden import FAIRSEQ

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.hubert.config import HubertHeadConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fine_tuned_model_has_no_heads_to_give() -> None:
    with pytest.raises(CheckpointError, match=r"tiny_ctc\.pt' has no target heads.*fine-tuned for recognition.*before"):
        load_hubert(FAIRSEQ / "tiny_ctc.pt", require_heads=True)

    config = load_hubert(FAIRSEQ / "tiny_ctc.pt").config

    config.heads = [HubertHeadConfig(size=20)]

    with pytest.raises(CheckpointError, match="has no target heads"):
        load_hubert(FAIRSEQ / "tiny_ctc.pt", config=config)


def test_pretrained_model_is_no_recogniser() -> None:
    for file in ("fairseq/tiny_post.pt", "transformers/hf_group"):
        with pytest.raises(CheckpointError, match=r"was not fine-tuned for recognition.*Fine-tune it first"):
            load_hubert_ctc(DATA / file)


def test_heads_of_other_sizes_and_other_vocabularies_are_refused() -> None:
    config = load_hubert(FAIRSEQ / "tiny_pre.pt").config

    config.heads = [HubertHeadConfig(label_set="a", size=20), HubertHeadConfig(label_set="b", size=99)]

    with pytest.raises(CheckpointError, match=r"km12 \(12 units\).*asks for a \(20 units\), b \(99 units\)"):
        load_hubert(FAIRSEQ / "tiny_pre.pt", config=config)

    ctc = load_hubert_ctc(FAIRSEQ / "tiny_ctc.pt").config

    ctc.vocab_size, ctc.symbols = 29, []

    with pytest.raises(CheckpointError, match=r"scores 13 symbols, but .* says `vocab_size: 29`"):
        load_hubert_ctc(FAIRSEQ / "tiny_ctc.pt", config=ctc)


@pytest.mark.parametrize("config", [3, 0, {}, "base"])
def test_what_is_no_configuration_is_refused(config: Any) -> None:
    for load, file in ((load_hubert, "tiny_post.pt"), (load_hubert_ctc, "tiny_ctc.pt")):
        with pytest.raises(ConfigError, match=rf"`config` must be .* but is of the type {type(config).__name__}\."):
            load(FAIRSEQ / file, config=config)


def test_other_normalisation_than_that_of_training_is_refused() -> None:
    """Trap T5. fairseq's file says that it was trained on normalised waveforms."""
    config = load_hubert(FAIRSEQ / "tiny_pre.pt").config

    assert config.normalize_audio

    config.normalize_audio = False

    with pytest.raises(CheckpointError, match=r"trained on waveforms with normalisation, but .*Set it to true"):
        load_hubert(FAIRSEQ / "tiny_pre.pt", config=config)


def test_layer_beyond_the_last_is_answered() -> None:
    model = load_hubert(FAIRSEQ / "tiny_post.pt")

    with pytest.raises((ValueError, CheckpointError), match=r"between 0 and 3, but is 4"):
        model.extract_features([torch.zeros(800)], layer=4)


@pytest.mark.parametrize("blank", [13, 99, -1])
def test_a_blank_that_is_no_output_is_refused(blank: int, tmp_path: Path) -> None:
    folder = tmp_path / "hf"

    shutil.copytree(DATA / "transformers/hf_group_ctc", folder)

    config = json.loads((folder / "config.json").read_text())

    assert config["vocab_size"] == 13

    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": blank}))

    with pytest.raises(CheckpointError, match=rf"hf' cannot be used.*`blank` must be .* 13 outputs, but is {blank} "):
        load_hubert_ctc(folder)
