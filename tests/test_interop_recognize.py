"""Format and size are recognised from the contents of a file; what does not fit is said in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import one_thread, tiny_config  # noqa: F401 - a fixture
from fairseq2.runtime.dependency import get_dependency_resolver
from foreign import DATA, HF_GROUP, HINT, of, parameters
from golden import FAIRSEQ
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubert_plugin import load_hubert
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop import fairseq, huggingface, minimal_hubert
from hubert_plugin.models.interop import torchaudio as ta
from hubert_plugin.models.interop.keys import with_new_weight_norm, with_old_weight_norm
from hubert_plugin.models.interop.reader import read_checkpoint
from hubert_plugin.models.interop.shapes import compare_architectures
from hubert_plugin.models.interop.sources import recognize_path

pytestmark = pytest.mark.usefixtures("one_thread")


FORMATS = ("fairseq", "fairseq ctc", "torchaudio", "minimal_hubert", "Hugging Face", "fairseq2")

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "bare": lambda s: dict(s),
    "model": lambda s: {"model": s, "step": 3},
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 1},
    "both": lambda s: {"state_dict": {f"model.module.{k}": v for k, v in s.items()}},
    "a part of Lightning's module": lambda s: {"state_dict": {f"net.encoder.{k}": v for k, v in s.items()}},
}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()

    assert all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("format_", FORMATS)
def test_wrappers_around_parameters_make_no_difference(format_: str) -> None:
    state_dict = parameters(format_)

    hint = HubertConfig(num_heads=2) if format_ == "minimal_hubert" else HINT

    expected = of(WRAPPERS["bare"](state_dict), hint)

    assert expected.format == format_.removesuffix(" ctc")
    assert (expected.kind == "ctc") == (format_ == "fairseq ctc")

    for name, wrap in WRAPPERS.items():
        recognised = of(wrap(state_dict), hint)

        assert (recognised.format, recognised.kind, recognised.config) == (
            expected.format,
            expected.kind,
            expected.config,
        ), name

        assert_equal(recognised.state_dict, expected.state_dict)


@pytest.mark.parametrize("format_", FORMATS)
def test_of_a_larger_model_the_hubert_is_taken(format_: str) -> None:
    inside = {f"student.net.{k}": v for k, v in parameters(format_).items()}

    hint = HubertConfig(num_heads=2) if format_ == "minimal_hubert" else HINT

    recognised = of({"state_dict": inside | {"loss.weight": torch.ones(2), "loss.bias": torch.ones(2)}}, hint)

    assert_equal(recognised.state_dict, of(parameters(format_), hint).state_dict)

    assert recognised.notes[-1] == (
        "The parameters loss.weight, loss.bias, which are not of 'student.net.…', were left out."
    )

    teacher = {k.replace("student.", "teacher."): v for k, v in inside.items()}

    with pytest.raises(CheckpointError, match=r"2 models, .* begin with 'student\.net\.', 'teacher\.net\.'"):
        of({"state_dict": inside | teacher}, hint)


@pytest.mark.parametrize("format_", FORMATS)
def test_both_spellings_of_weight_norm_are_read(format_: str) -> None:
    state_dict = parameters(format_)

    hint = HubertConfig(num_heads=2) if format_ == "minimal_hubert" else HINT

    old, new = with_old_weight_norm(state_dict), with_new_weight_norm(with_old_weight_norm(state_dict))

    assert old.keys() != new.keys()

    if format_ != "fairseq2":  # our own files have one spelling
        assert_equal(of(dict(old), hint).state_dict, of(dict(new), hint).state_dict)


def test_torchaudios_fine_tuning_keeps_its_output_layer_outside_of_the_wrapper() -> None:
    """Its recipe saves ``model.wav2vec2.…`` and ``aux.…`` side by side."""
    state_dict = {f"model.{k}": v for k, v in parameters("torchaudio").items()}

    content = {"state_dict": {**state_dict, "aux.weight": torch.ones(7, 32), "aux.bias": torch.zeros(7)}}

    recognised = of(content)

    assert isinstance(recognised.config, HubertCtcConfig) and recognised.config.vocab_size == 7
    assert torch.equal(recognised.state_dict["final_proj.weight"], torch.ones(7, 32))


@pytest.mark.parametrize("arch", ["base", "large", "xlarge"])
def test_published_sizes_are_told_from_shapes_alone(arch: str) -> None:
    """Parameters without any configuration, as torchaudio, minimal_hubert and bare files have them."""
    config: HubertConfig = get_dependency_resolver().resolve(HubertConfig, key=arch)

    with torch.device("meta"):
        state = create_hubert_model(config).state_dict()

        forms = {
            "torchaudio": ta.export_torchaudio_state_dict(state, config),
            "Hugging Face": huggingface.export_huggingface_state_dict(state, config),
            "minimal_hubert": minimal_hubert.export_minimal_hubert_state_dict(state, config),
            "fairseq": fairseq.export_fairseq_state_dict(state, config),
            "fairseq2": state,
        }

    for name, form in forms.items():
        recognised = of(dict(form), None)

        assert recognised.format == name
        assert isinstance(recognised.config, HubertConfig)
        assert not compare_architectures(recognised.config, config), name
        assert f"({arch})" in recognised.describe()

        # minimal_hubert always normalises; of the others the kind of convolutions tells.
        assert recognised.config.normalize_audio == (True if name == "minimal_hubert" else config.normalize_audio)


def test_normalisation_that_transformers_converter_claims_of_group_norm_models_is_not_believed(tmp_path: Path) -> None:
    """FACTS 5.3: it writes ``do_normalize: true`` of base too. Our own section is believed, and so is layer norm's."""
    for case, own, expected in (
        ("hf_group", None, False),
        ("hf_group", True, True),
        ("hf_layer", None, True),
        ("hf_layer", False, False),
    ):
        folder = shutil.copytree(DATA / "transformers" / case, tmp_path / f"{case}{own}")

        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))

        if own is not None:
            config = json.loads((folder / "config.json").read_text())

            config[huggingface.OWN_SECTION] = {"normalize_audio": own}

            (folder / "config.json").write_text(json.dumps(config))

        assert load_hubert(folder).config.normalize_audio is expected, (case, own)


def test_parameters_in_parts_are_put_together(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    state = load_file(folder / "model.safetensors")

    (folder / "model.safetensors").unlink()

    names = sorted(state)

    parts = {"model-1-of-2.safetensors": names[:20], "model-2-of-2.safetensors": names[20:]}

    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file)

    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}

    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    whole = load_hubert(HF_GROUP).state_dict()

    assert_equal(dict(load_hubert(folder).state_dict()), dict(whole))

    index["weight_map"][names[0]] = "../outside.safetensors"

    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match="must name files of its own folder"):
        load_hubert(folder)


def test_ms_hubert_in_its_released_form_gives_its_encoder(tmp_path: Path) -> None:
    """s3prl's form of a fairseq model with one projection per label set and layer (FACTS 7)."""
    content = read_checkpoint(DATA / "s3prl/tiny_post.converted.pt")

    weights = content["model_weight"]

    for name in ("weight", "bias"):
        value = weights.pop(f"final_proj.{name}")

        for idx in range(3):
            weights[f"final_proj_list.{idx}.{name}"] = value

    torch.save(content, tmp_path / "iter3.pt")

    recognised = recognize_path(tmp_path / "iter3.pt")

    assert recognised.kind == "encoder"
    assert "final_proj_list, label_embs_concat were left out" in recognised.notes[0]

    expected = load_hubert(DATA / "s3prl/tiny_post.converted.pt").state_dict()

    assert_equal(
        dict(load_hubert(tmp_path / "iter3.pt").state_dict()),
        {k: v for k, v in expected.items() if not k.startswith("target_heads.")},
    )


def test_fairseq_file_without_dictionaries_still_gives_one_label_set(tmp_path: Path) -> None:
    """Early files have none; the name of the embeddings was another then, too."""
    content = read_checkpoint(FAIRSEQ / "tiny_post.pt")

    weights = content["model"]

    weights["label_embs"] = weights.pop("label_embs_concat")

    recognised = of({"model": weights, "cfg": content["cfg"]})

    assert isinstance(recognised.config, HubertConfig)
    assert [h.size for h in recognised.config.heads] == [20]

    rows = weights["label_embs"]

    assert torch.equal(recognised.state_dict["target_heads.heads.0.codewords"], rows[4:])
    assert recognised.special_rows is not None and torch.equal(recognised.special_rows, rows[:4])


def test_fine_tuned_file_without_its_pretraining_configuration_is_told_by_its_shapes() -> None:
    content = read_checkpoint(FAIRSEQ / "tiny_ctc.pt")

    whole = of({"model": content["model"], "cfg": content["cfg"], "task_state": content["task_state"]})

    content["cfg"]["model"]["w2v_args"] = None

    bare = of({"model": content["model"], "cfg": content["cfg"], "task_state": content["task_state"]})

    assert isinstance(bare.config, HubertCtcConfig) and isinstance(whole.config, HubertCtcConfig)
    assert not compare_architectures(bare.config.encoder, whole.config.encoder)
    assert bare.config.symbols == whole.config.symbols

    assert_equal(bare.state_dict, whole.state_dict)
