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
from golden import FAIRSEQ
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop import fairseq, huggingface, minimal_hubert
from hubert_plugin.models.interop import torchaudio as ta
from hubert_plugin.models.interop.fit import fit_state_dict
from hubert_plugin.models.interop.keys import with_new_weight_norm, with_old_weight_norm
from hubert_plugin.models.interop.reader import read_checkpoint
from hubert_plugin.models.interop.recognize import Checkpoint, Recognised, recognize
from hubert_plugin.models.interop.shapes import compare_architectures
from hubert_plugin.models.interop.sources import recognize_path

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = FAIRSEQ.parent

HINT = HubertConfig(num_heads=4)

HF_GROUP = DATA / "transformers/hf_group"


def parameters(name: str) -> dict[str, Tensor]:
    """The state dict in a golden file of each format."""
    files = {
        "fairseq": ("fairseq/tiny_post.pt", "model"),
        "fairseq ctc": ("fairseq/tiny_ctc.pt", "model"),
        "torchaudio": ("torchaudio/ta_post.pth", None),
        "minimal_hubert": ("minimal_hubert/mh_base12.pt", "model"),
    }

    if name == "Hugging Face":
        return load_file(HF_GROUP / "model.safetensors")

    if name == "fairseq2":
        return recognize_path(FAIRSEQ / "tiny_post.pt").state_dict

    file, entry = files[name]

    content = read_checkpoint(DATA / file)

    return content[entry] if entry else content


FORMATS = ("fairseq", "fairseq ctc", "torchaudio", "minimal_hubert", "Hugging Face", "fairseq2")

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "bare": lambda s: dict(s),
    "model": lambda s: {"model": s, "step": 3},
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 1},
    "both": lambda s: {"state_dict": {f"model.module.{k}": v for k, v in s.items()}},
}


def of(content: dict[str, Any], hint: HubertConfig | None = HINT) -> Recognised:
    return recognize(Checkpoint(Path("file.pt"), content), hint)


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


def test_unknown_number_of_heads_is_asked_for() -> None:
    with pytest.raises(CheckpointError, match=r"how many attention heads a model of dimension 32 has.*num_heads="):
        load_hubert(DATA / "torchaudio/ta_post.pth")


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

    assert "missing: encoder.layers.1.self_attn.k_proj.bias" in str(info.value)
    assert "encoder.layers.2.ffn.output_proj.weight (expected (32, 64), found (32, 5))" in str(info.value)

    save_file({**state, "encoder.relative.weight": torch.zeros(1)}, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"1 parameters are not names of a Hugging Face HuBERT:\n.*encoder\.rel"):
        load_hubert(folder)


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
