"""Exports, read back by the libraries they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import one_thread, speech_like, tiny_config  # noqa: F401 - a fixture
from exports import SYMBOLS, TARGETS, WAVE, create_model, create_recogniser, golden_model
from golden import CASES, FAIRSEQ, load_checkpoint
from torch import Tensor

from hubert_plugin import export_hubert
from hubert_plugin.errors import OutputDirError
from hubert_plugin.models.export import onnx as onnx_export
from hubert_plugin.models.export.fairseq import SPECIAL_SYMBOLS
from hubert_plugin.models.export.onnx import open_session
from hubert_plugin.models.export.source import load_source
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.models.interop.huggingface import import_huggingface_state_dict
from hubert_plugin.models.interop.torchaudio import import_torchaudio_state_dict

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # of the exporter and of the peers
]

PEERS = {"huggingface": "transformers", "torchaudio": "torchaudio", "fairseq": "fairseq", "onnx": "onnxruntime"}


def assert_same_tensors(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()

    different = [k for k, v in expected.items() if not torch.equal(actual[k], v) or actual[k].dtype != v.dtype]

    assert not different


@pytest.mark.parametrize("format", list(TARGETS))
@pytest.mark.parametrize("case", CASES)
def test_golden_models_give_the_same_numbers_where_they_arrive(case: str, format: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / TARGETS[format]

    report = export_hubert(golden_model(case), target, format=format, audio=WAVE)

    assert report.path == target and target.exists()

    assert report.parity is not None

    assert report.parity.max_difference < 2e-5, report

    assert PEERS[format] in str(report)

    assert "on the given waveform (2.03 s)" in str(report)

    if format != "onnx":
        num_layers = json.loads((FAIRSEQ / f"{case}.json").read_text())["model_cfg"]["encoder_layers"]

        # Transformers norms its last hidden state, so there the last layer is compared as the output.
        assert {f"layer {nr}" for nr in range(1, num_layers)} | {"output"} <= report.parity.differences.keys()


@pytest.mark.parametrize("format", list(TARGETS))
@pytest.mark.parametrize("overrides", [{}, {"norm_order": "pre", "conv_norm": "layer", "normalize_audio": True}])
def test_recognisers_give_the_same_logits_where_they_arrive(
    overrides: dict[str, Any], format: str, tmp_path: Path
) -> None:
    report = export_hubert(create_recogniser(**overrides), tmp_path / TARGETS[format], format=format, audio=WAVE)

    assert report.parity is not None

    assert report.parity.differences["logits"] < 2e-5

    left_out = ["The mask embedding is left out: only models with target heads have one there."]

    assert report.notes == (left_out if format == "torchaudio" else [])


@pytest.mark.parametrize("case", CASES)
def test_fairseq_file_comes_back_bit_for_bit_with_its_special_rows(case: str, tmp_path: Path) -> None:
    report = export_hubert(FAIRSEQ / f"{case}.pt", tmp_path / "back.pt", format="fairseq", audio=WAVE)

    assert not report.notes

    content = torch.load(tmp_path / "back.pt", weights_only=True)  # tensors and plain data, or this fails

    original = load_checkpoint(case)

    assert_same_tensors(content["model"], original["model"])

    # What fairseq would read of the configuration: all its fields, and those that shape the model equal.
    for section in ("model", "task"):
        assert content["cfg"][section].keys() == original["cfg"][section].keys()

    def text(value: object) -> object:
        from hubert_plugin.models.interop.fairseq import parse_conv_layers

        return parse_conv_layers(value) if isinstance(value, str) and value.startswith("[") else value

    of_training = {"mask_prob", "mask_length", "final_dim"}

    for key, value in original["cfg"]["model"].items():
        if key not in of_training:
            assert text(content["cfg"]["model"][key]) == text(value), key

    for key in ("labels", "label_rate", "sample_rate", "normalize", "fine_tuning"):
        assert content["cfg"]["task"][key] == original["cfg"]["task"][key]

    # fairseq takes the length of each dictionary; the golden ones are its own objects.
    symbols = [d.symbols for d in original["task_state"]["dictionaries"]]

    assert [len(d) for d in content["task_state"]["dictionaries"]] == [len(s) for s in symbols]

    assert all(
        d[:4] == list(SPECIAL_SYMBOLS) == s[:4]
        for d, s in zip(content["task_state"]["dictionaries"], symbols, strict=True)
    )

    for name in original["cfg"]["task"]["labels"]:
        assert (tmp_path / f"dict.{name}.txt").read_text().splitlines()[0] == "0 1"


def test_fresh_special_rows_are_as_fairseq_draws_them_and_the_same_each_time(tmp_path: Path) -> None:
    model = create_model()

    rows = []

    for name in ("a.pt", "b.pt"):
        report = export_hubert(model, tmp_path / name, format="fairseq", audio=WAVE)

        assert any("special symbols" in note for note in report.notes)

        rows.append(torch.load(tmp_path / name, weights_only=True)["model"]["label_embs_concat"])

    assert torch.equal(*rows)

    assert torch.equal(rows[0][4:], model.state_dict()["target_heads.heads.0.codewords"])

    assert ((rows[0][:4] >= 0.0) & (rows[0][:4] < 1.0)).all() and rows[0][:4].std() > 0.1


def test_fairseq_files_restore_every_tensor(tmp_path: Path) -> None:
    """Also without label sets, and of recognisers."""
    models = [golden_model("tiny_tied"), create_model(heads=[]), create_recogniser()]

    for nr, model in enumerate(models):
        export_hubert(model, tmp_path / f"{nr}.pt", format="fairseq", audio=WAVE)

        loaded = load_source(tmp_path / f"{nr}.pt").model

        assert_same_tensors(loaded.state_dict(), model.state_dict())

    assert isinstance(loaded, HubertCtcModel)

    assert loaded.config.symbols == SYMBOLS


@pytest.mark.parametrize("model", [*CASES, "recogniser"])
def test_huggingface_folder_restores_every_tensor(model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    ours = create_recogniser() if model == "recogniser" else golden_model(model)

    export_hubert(ours, tmp_path / "hf", format="huggingface", audio=WAVE)

    config = ours.config if isinstance(ours.config, HubertCtcConfig) else replace(ours.config, heads=[])

    tensors = import_huggingface_state_dict(load_file(tmp_path / "hf/model.safetensors"), config)

    expected = {k: v for k, v in ours.state_dict().items() if not k.startswith("target_heads.")}

    assert_same_tensors(tensors, expected)


@pytest.mark.parametrize("model", ["tiny_post", "tiny_rate100", "without heads", "recogniser"])
def test_torchaudio_file_restores_every_tensor(model: str, tmp_path: Path) -> None:
    ours: Any = {"without heads": lambda: create_model(heads=[]), "recogniser": create_recogniser}.get(
        model, lambda: golden_model(model)
    )()

    export_hubert(ours, tmp_path / "m.pth", format="torchaudio", audio=WAVE)

    tensors = import_torchaudio_state_dict(torch.load(tmp_path / "m.pth", weights_only=True), ours.config)

    expected = dict(ours.state_dict())

    # The one thing that torchaudio's encoder has no place for.
    if not getattr(ours.config, "heads", []):
        for key in ("masker.temporal_mask_embed", "hubert.masker.temporal_mask_embed"):
            expected.pop(key, None)
            tensors.pop(key, None)

    assert_same_tensors(tensors, expected)


def test_huggingface_folder_says_how_waveforms_are_prepared(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    for normalize in (False, True):
        model = create_model(normalize_audio=normalize, conv_norm="layer")

        folder = tmp_path / str(normalize)

        export_hubert(model, folder, format="huggingface", audio=WAVE)

        extractor = AutoFeatureExtractor.from_pretrained(folder)

        assert (extractor.do_normalize, extractor.sampling_rate) == (normalize, 16_000)

        # From raw audio to features with Transformers alone, a padded batch too.
        waves = [5.0 * WAVE, WAVE[:20_000]]

        inputs = extractor(waves, sampling_rate=16_000, return_tensors="pt", padding=True)

        with torch.inference_mode():
            output = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state

        for row, expected in zip(output, model.extract_features(waves), strict=True):
            torch.testing.assert_close(row[: len(expected)], expected, atol=5e-4, rtol=1e-3)


def test_huggingface_recogniser_brings_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    export_hubert(create_recogniser(), tmp_path / "hf", format="huggingface", audio=WAVE)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")

    # Blank (0) between equal symbols keeps them apart; repeats are joined.
    assert tokenizer.decode([0, 5, 5, 0, 5, 6, 4, 4, 7, 0]) == "AAB C"


def test_huggingface_tokenizer_knows_special_symbols_in_brackets(tmp_path: Path) -> None:
    """As Transformers' own fine-tuning names them, the blank last."""
    from transformers import AutoTokenizer

    symbols = ["|", "a", "b", "[UNK]", "[BOS]", "[EOS]", "[PAD]"]

    config = HubertCtcConfig(encoder=replace(tiny_config(), heads=[]), vocab_size=7, symbols=symbols, blank=6)

    export_hubert(create_hubert_ctc_model(config).eval(), tmp_path / "hf", format="huggingface", audio=WAVE)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")

    assert tokenizer("aXb").input_ids == [1, 3, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (6, 4, 5)
    assert tokenizer.decode([4, 1, 6, 3, 0, 2, 5], skip_special_tokens=True) == "a b"


@pytest.mark.parametrize("conv_norm", ["group", "layer"])
@pytest.mark.parametrize("normalize", [False, True])
def test_onnx_takes_any_length_and_batch(conv_norm: str, normalize: bool, tmp_path: Path) -> None:
    model = create_model(conv_norm=conv_norm, normalize_audio=normalize, pos_conv_kernel=9 if normalize else 16)

    for layer in (1, 0, None):
        path = tmp_path / f"{layer}.onnx"

        export_hubert(model, path, format="onnx", layer=layer, audio=WAVE)

        session = open_session(path)

        for lengths in ([400], [719], [720], [16_000], [31_999, 400, 8_001], [5_000] * 5):
            waves = [speech_like(4, i, np.random.default_rng(i))[:n] for i, n in enumerate(lengths)]

            batch = np.full(
                (len(lengths), max(lengths)), 7.0, np.float32
            )  # what lies behind the end counts for nothing

            for row, wave in zip(batch, waves, strict=True):
                row[: wave.size] = wave

            output, counts = session.run(None, {"waveforms": batch, "num_samples": np.asarray(lengths, np.int64)})

            for row, count, expected in zip(output, counts, model.extract_features(waves, layer), strict=True):
                assert count == len(expected)

                np.testing.assert_allclose(row[:count], expected.numpy(), atol=5e-5, rtol=1e-3)

                assert (row[count:] == 0.0).all()


def test_onnx_of_a_large_model_has_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "MAX_INLINE_BYTES", 1000)

    report = export_hubert(create_model(), tmp_path / "m.onnx", format="onnx", audio=WAVE)

    assert report.parity is not None and report.parity.max_difference < 2e-5

    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]

    assert (tmp_path / "m.onnx").stat().st_size < (tmp_path / "m.onnx.data").stat().st_size

    (tmp_path / "n.onnx.data").write_text("dear to somebody")

    with pytest.raises(OutputDirError, match=r"n\.onnx\.data' exists already"):
        export_hubert(create_model(), tmp_path / "n.onnx", format="onnx", audio=WAVE)

    assert (tmp_path / "n.onnx.data").read_text() == "dear to somebody"
    assert not (tmp_path / "n.onnx").exists()

    export_hubert(create_model(), tmp_path / "m.onnx", format="onnx", overwrite=True, audio=WAVE)


def test_onnx_of_a_small_model_takes_the_weights_of_a_large_one_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "MAX_INLINE_BYTES", 1000)

        export_hubert(create_model(), tmp_path / "m.onnx", format="onnx", audio=WAVE)

    assert (tmp_path / "m.onnx.data").exists()

    (tmp_path / "n.onnx.data").write_text("dear to somebody")

    for name in ("m", "n"):
        export_hubert(create_model(), tmp_path / f"{name}.onnx", format="onnx", overwrite=True, audio=WAVE)

    # Where no graph stood before, what looks like its weights is of somebody else.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "n.onnx", "n.onnx.data"]
    assert (tmp_path / "n.onnx.data").read_text() == "dear to somebody"


def test_half_precision_models_are_exported_in_full_precision(tmp_path: Path) -> None:
    model = create_model()

    half = create_model().to(torch.bfloat16)

    report = export_hubert(half, tmp_path / "m.pth", format="torchaudio", audio=WAVE)

    assert report.parity is not None and report.parity.max_difference < 2e-5

    assert half.masker.temporal_mask_embed.dtype == torch.bfloat16  # the model itself is left alone

    tensors = torch.load(tmp_path / "m.pth", weights_only=True)

    assert {t.dtype for t in tensors.values()} == {torch.float32}

    assert model.config == half.config


def test_what_was_left_out_on_loading_is_said(tmp_path: Path) -> None:
    """A fine-tuned fairseq file still has the label embeddings of pretraining, which a recogniser has no place for."""
    report = export_hubert(FAIRSEQ / "tiny_ctc.pt", tmp_path / "m.pt", format="fairseq", audio=WAVE)

    assert report.notes[0] == "The parameter label_embs_concat, which recognition does not use, was left out."
