"""Checkpoints that do not fit are refused in a sentence that says what was expected and what was found."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from builders import one_thread, tiny_config  # noqa: F401 - a fixture
from fairseq2.runtime.dependency import get_dependency_resolver
from foreign import DATA, HF_GROUP, of, parameters
from golden import FAIRSEQ
from safetensors.torch import load_file, save_file

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop import minimal_hubert
from hubert_plugin.models.interop import torchaudio as ta
from hubert_plugin.models.interop.fit import fit_state_dict
from hubert_plugin.models.interop.reader import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_large_checkpoint_with_a_base_configuration_is_refused() -> None:
    resolver = get_dependency_resolver()

    base, large = (resolver.resolve(HubertConfig, key=k) for k in ("base", "large"))

    with torch.device("meta"):
        state = create_hubert_model(large).state_dict()

    recognised = of(dict(ta.export_torchaudio_state_dict(state, large)), base)

    with pytest.raises(CheckpointError) as info:
        fit_state_dict(recognised, base, "the asset card 'mine'")

    for phrase in (
        "24 layers of 1024 (large)",
        "the asset card 'mine' describes one of 12 layers of 768 (base)",
        "num_layers: expected 12, found 24",
        "ffn_dim: expected 3072, found 4096",
        "conv_norm: expected group, found layer",
    ):
        assert phrase in str(info.value)


def test_unknown_number_of_heads_is_asked_for_with_all_that_is_known() -> None:
    """What is to be given can be copied from the message: only the number of heads is to be filled in."""
    file = DATA / "torchaudio/ta_post.pth"

    with pytest.raises(CheckpointError, match=r"how many attention heads a model of dimension 32 has") as info:
        load_hubert(file)

    (code,) = re.findall(r"config=(HubertConfig\(.*\))\)`", str(info.value))

    config = eval(code.replace("…", "2"), {"HubertConfig": HubertConfig})

    assert load_hubert(file, config=config).config.num_heads == 2


def test_models_with_other_frames_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    config = json.loads((folder / "config.json").read_text())

    config["conv_stride"][-1] = 1

    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=r"hf.*must have a total stride of 320 .* but has 160"):
        load_hubert(folder)


def test_missing_parts_are_listed(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    keys = list(load_file(folder / "model.safetensors"))

    (folder / "model.safetensors").unlink()

    parts = {k: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, k in enumerate(keys)}

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))

    with pytest.raises(CheckpointError, match=r"2 of the 2 files that '.*index.json' lists are missing: model-00001"):
        load_hubert(folder)


def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repo: str, *args: object, **kwargs: object) -> str:
        raise OSError(f"HTTPSConnectionPool(host='hub'): Max retries exceeded with url: /{repo}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)

    monkeypatch.chdir(tmp_path)

    (tmp_path / "runs").mkdir()

    for name in ("runs/none", "downloads/model.pt"):
        with pytest.raises(CheckpointError, match="is neither a folder, nor a file") as info:
            load_hubert(name)

        assert f"write 'hg://{name}'" in str(info.value)

    for name in ("owner/none", "hg://runs/none"):
        with pytest.raises(CheckpointError, match=r"cannot be downloaded.*There is no connection") as info:
            load_hubert(name)

        assert "Max retries" not in str(info.value)


def test_layers_are_whole_numbers() -> None:
    model = load_hubert(FAIRSEQ / "tiny_post.pt")

    for layer in ("1", 1.0, True):
        with pytest.raises(ValueError, match="`layer` must be a whole number"):
            model.extract_features([torch.zeros(800)], layer=layer)  # type: ignore[arg-type]


def test_configurations_of_another_sample_rate_are_refused() -> None:
    assert "`sample_rate` must be 16000 Hz, but is 8000" in str(tiny_config(sample_rate=8000).validate())


def test_unknown_file_is_answered_with_what_was_looked_for_and_found(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3), "epoch": 1}, tmp_path / "other.pt")

    with pytest.raises(CheckpointError) as info:
        load_hubert(tmp_path / "other.pt")

    for phrase in ("other.pt", "fairseq", "torchaudio", "Hugging Face", "2 entries: epoch, weights"):
        assert phrase in str(info.value)


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    state = load_file(folder / "model.safetensors")

    del state["encoder.layers.1.attention.k_proj.bias"]

    state["encoder.layers.2.feed_forward.output_dense.weight"] = torch.zeros(32, 5)

    save_file(state, folder / "model.safetensors")

    with pytest.raises(CheckpointError) as info:
        load_hubert(folder)

    assert (
        "missing: encoder.layers.1.self_attn.k_proj.bias ('encoder.layers.1.attention.k_proj.bias' in a Hugging "
        "Face HuBERT)"
    ) in str(info.value)
    assert (
        "('encoder.layers.2.feed_forward.output_dense.weight' in a Hugging Face HuBERT) (expected (32, 64), "
        "found (32, 5))"
    ) in str(info.value)

    save_file({**state, "encoder.relative.weight": torch.zeros(1)}, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"1 parameters are not names of a Hugging Face HuBERT:\n.*encoder\.rel"):
        load_hubert(folder)


@pytest.mark.parametrize("format_", ["fairseq", "fairseq ctc", "torchaudio", "minimal_hubert", "Hugging Face"])
def test_each_missing_parameter_is_named_as_in_the_file(format_: str, tmp_path: Path) -> None:
    state_dict = parameters(format_)

    config = of(state_dict, HubertConfig(num_heads=2)).config

    # What a format may leave out, what has a default, and what tells which label sets there are.
    optional = ("mask", "label_emb", "logit_", "aux.", "final_proj.", "lm_head.", "w2v_encoder.proj.")

    load = load_hubert_ctc if isinstance(config, HubertCtcConfig) else load_hubert

    for key in state_dict:
        short = key.removeprefix("wav2vec2.").removeprefix("w2v_encoder.w2v_model.")

        # One layer and one convolution stand for all.
        if short.startswith(optional) or re.search(r"layers\.([2-5]|[7-9]|\d\d)\.", short):
            continue

        torch.save({k: v for k, v in state_dict.items() if k != key}, tmp_path / "damaged.pt")

        with pytest.raises(CheckpointError) as info:
            load(tmp_path / "damaged.pt", config=config)  # type: ignore[operator]

        # PyTorch has two names for the same; the tables know the older one.
        for spelling in (short, short.replace("parametrizations.weight.original0", "weight_g")):
            if spelling in str(info.value):
                break
        else:
            # Parameters that sizes are read from are known by our names only, and a last convolution is not missed.
            expected = r"'encoder\S+(weight_v|inner_proj\.weight|conv\.weight)' is missing|conv_layers: expected"

            assert re.search(expected, str(info.value)), key


def test_parameters_that_are_not_finite_are_named(tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        folder = shutil.copytree(HF_GROUP, tmp_path / f"hf{value}")

        state = load_file(folder / "model.safetensors")

        state["encoder.layers.1.layer_norm.bias"][3] = value

        save_file(state, folder / "model.safetensors")

        with pytest.raises(CheckpointError, match=r"not finite numbers: .*'encoder\.layers\.1\.layer_norm\.bias' in"):
            load_hubert(folder)


def test_devices_and_number_formats_that_cannot_be_are_answered() -> None:
    file = FAIRSEQ / "tiny_post.pt"

    for device in ("gpu", "cuda:77", "cpu:cpu", "meta"):
        with pytest.raises(ConfigError, match=f"`device` must be a device of this machine, .* but is '{device}'"):
            load_hubert(file, device=device)

    for dtype in ("bf16", torch.int8, torch.float8_e4m3fn, None):
        with pytest.raises(ConfigError, match=r"`dtype` must be torch\.float32, torch\.bfloat16"):
            load_hubert(file, dtype=dtype)  # type: ignore[arg-type]


def test_step_is_for_training_runs_only(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Step 5 was asked for, but '.*tiny_post\.pt' is no training run"):
        load_hubert(FAIRSEQ / "tiny_post.pt", step=5)

    (tmp_path / "step_20/model").mkdir(parents=True)

    with pytest.raises(CheckpointError, match=r"Step 5 was asked for, but '.*step_20' is the checkpoint of another"):
        load_hubert(tmp_path / "step_20", step=5)


def test_no_name_is_not_the_working_directory() -> None:
    for name in ("", " "):
        with pytest.raises(CheckpointError, match="the name is empty"):
            load_hubert(name)


def test_parameters_that_are_no_floating_point_numbers_are_listed(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    state = load_file(folder / "model.safetensors")

    state["encoder.layer_norm.bias"] = torch.zeros(32, dtype=torch.int64)

    save_file(state, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"not of floating point: encoder_frontend\.layer_norm\.bias"):
        load_hubert(folder)


def test_entries_that_are_not_what_their_names_say_are_answered(tmp_path: Path) -> None:
    for cfg in ("text", {"model": 3}, {"model": {"encoder_layers": "many"}, "task": {}}):
        torch.save({"model": parameters("fairseq"), "cfg": cfg}, tmp_path / "odd.pt")

        try:
            load_hubert(tmp_path / "odd.pt", config=None)
        except CheckpointError as ex:
            assert "odd.pt" in str(ex)
        else:
            pytest.fail(f"{cfg} was taken")


@pytest.mark.parametrize("where", ["fairseq", "s3prl", "Hugging Face"])
def test_model_of_another_sample_rate_is_refused(where: str, tmp_path: Path) -> None:
    if where == "Hugging Face":
        source = shutil.copytree(HF_GROUP, tmp_path / "hf")

        (source / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    else:
        source = tmp_path / "model.pt"

        if where == "s3prl":
            content = read_checkpoint(DATA / "s3prl/tiny_post.converted.pt")

            content["task_cfg"]["sample_rate"] = 8000
        else:
            content = read_checkpoint(FAIRSEQ / "tiny_post.pt")

            content = {"model": content["model"], "cfg": content["cfg"]}
            content["cfg"]["task"]["sample_rate"] = 8000

        torch.save(content, source)

    with pytest.raises(CheckpointError, match=r"sampl.*rate.*must be 16000, but is 8000"):
        load_hubert(source)


def test_all_that_hubert_does_not_have_is_said_at_once(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    config = json.loads((folder / "config.json").read_text())

    config |= {"model_type": "wav2vec2", "conv_pos_batch_norm": True, "hidden_act": "relu"}

    (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError) as info:
        load_hubert(folder)

    for name in ("`model_type` must be 'hubert', but is 'wav2vec2'", "`conv_pos_batch_norm`", "`hidden_act`"):
        assert name in str(info.value)

    content = read_checkpoint(FAIRSEQ / "tiny_post.pt")

    content["cfg"]["model"] |= {"layer_type": "conformer", "target_glu": True}

    with pytest.raises(CheckpointError) as info:
        of({"model": content["model"], "cfg": content["cfg"]})

    assert "`layer_type` must be transformer, but is conformer" in str(info.value)
    assert "`target_glu`" in str(info.value)


def test_folders_without_a_checkpoint_or_with_several_are_named(tmp_path: Path) -> None:
    folder = shutil.copytree(HF_GROUP, tmp_path / "hf")

    (folder / "model.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"has a 'config\.json', but no parameters: 'model\.safetensors'"):
        load_hubert(folder)

    (folder / "config.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"config\.json' cannot be read as JSON"):
        load_hubert(folder)

    several = tmp_path / "several"

    several.mkdir()

    for name in ("a.pt", "b.pt"):
        shutil.copy(FAIRSEQ / "tiny_post.pt", several / name)

    with pytest.raises(CheckpointError, match=r"2 files that could be checkpoints: a\.pt, b\.pt"):
        load_hubert(several)

    (several / "b.pt").unlink()

    assert load_hubert(several).config.num_layers == 3


def test_models_that_another_format_has_no_place_for_are_refused() -> None:
    config = tiny_config(heads=[HubertHeadConfig(label_set="a", size=3), HubertHeadConfig(label_set="b", size=4)])

    state = create_hubert_model(config).state_dict()

    with pytest.raises(CheckpointError, match="has one label set"):
        ta.export_torchaudio_state_dict(state, config)

    with pytest.raises(CheckpointError, match="has one label set"):
        minimal_hubert.export_minimal_hubert_state_dict(state, config)

    config = tiny_config(logit_temp=0.2)

    with pytest.raises(CheckpointError, match="temperature"):
        ta.export_torchaudio_kwargs(config)
