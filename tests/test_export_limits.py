"""What exports leave out, refuse and replace, and how it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import one_thread, speech_like, tiny_config  # noqa: F401 - a fixture
from exports import TARGETS, WAVE, create_model, create_recogniser, golden_model
from golden import FAIRSEQ

from hubert_plugin import export_hubert, load_hubert, load_hubert_ctc
from hubert_plugin.decoding.recogniser import vocabulary_of
from hubert_plugin.errors import AudioError, CheckpointError, ConfigError, OutputDirError, StorageError, TextError
from hubert_plugin.models.export import onnx as onnx_export
from hubert_plugin.models.export.several import export_all
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # of the exporter and of the peers
]


def test_heads_that_a_format_has_no_place_for_are_left_out_and_said(tmp_path: Path) -> None:
    model = golden_model("tiny_pre")  # two label sets

    report = export_hubert(model, tmp_path / "a.pth", format="torchaudio", audio=WAVE)

    assert any("Target heads (km20, km12) are left out" in note for note in report.notes)

    assert json.loads((tmp_path / "a.json").read_text())["function"] == "wav2vec2_model"

    with pytest.raises(CheckpointError, match=r"one label set.*2 heads"):
        export_hubert(model, tmp_path / "b.pth", format="torchaudio", heads=True, audio=WAVE)

    with pytest.raises(CheckpointError, match="'onnx' has no place for target heads"):
        export_hubert(model, tmp_path / "b.onnx", format="onnx", heads=True, audio=WAVE)

    heads = replace(tiny_config().heads[0], kind="linear")

    with pytest.raises(CheckpointError, match=r"cosines from the last layer.*km \(linear, 50 Hz\).*`heads: false`"):
        export_hubert(create_model(heads=[heads]), tmp_path / "b.pt", format="fairseq", heads=True, audio=WAVE)

    export_hubert(create_model(heads=[heads]), tmp_path / "c.pt", format="fairseq", heads=False, audio=WAVE)

    assert not list(tmp_path.glob("b.*"))


@pytest.mark.parametrize("head_layers", ["spread", "spread_reverse"])
def test_the_encoder_of_ms_hubert_is_one_to_fairseq_and_its_heads_are_not(head_layers: str, tmp_path: Path) -> None:
    few, many = (replace(tiny_config().heads[0], label_set=f"km{k}", size=k) for k in (5, 9))

    model = create_model(heads=[few, many], head_layers=head_layers)

    with pytest.raises(
        CheckpointError, match=r"km5 \(cosine, 50 Hz\), km9 .*, on several layers. Export .*`heads: false`"
    ):
        export_hubert(model, tmp_path / "a.pt", format="fairseq", heads=True, audio=WAVE)

    # Left out if nothing is said, as in other formats.
    for name, heads in (("b.pt", None), ("c.pt", False)):
        report = export_hubert(model, tmp_path / name, format="fairseq", heads=heads, audio=WAVE)

        assert heads is False or any("Target heads (km5, km9) are left out" in note for note in report.notes)

        theirs = load_hubert(tmp_path / name).state_dict()

        for key, parameter in model.state_dict().items():
            assert key.startswith("target_heads.") or torch.equal(theirs[key], parameter), key

    # A single head reads the last layer, however it is called.
    report = export_hubert(
        create_model(heads=[many], head_layers=head_layers), tmp_path / "d.pt", format="fairseq", audio=WAVE
    )

    assert not any("left out" in note for note in report.notes)


def test_parity_sees_a_wrong_export(tmp_path: Path) -> None:
    """The line must not be a formality: weights that changed on the way show."""
    from safetensors.torch import load_file, save_file

    from hubert_plugin.models.export.huggingface import huggingface_outputs
    from hubert_plugin.models.export.parity import compare, open_probe, our_outputs

    model = golden_model("tiny_post")

    export_hubert(model, tmp_path / "hf", format="huggingface", audio=WAVE)

    path = tmp_path / "hf/model.safetensors"

    tensors = load_file(path)

    tensors["encoder.layers.0.attention.v_proj.weight"] *= 1.1

    save_file(tensors, path, metadata={"format": "pt"})

    probe = open_probe(WAVE)

    theirs, peer = huggingface_outputs(tmp_path / "hf", model, probe)

    assert compare(our_outputs(model, probe), theirs, peer, probe).max_difference > 1e-3


def test_what_cannot_be_exported_is_refused_with_a_sentence(tmp_path: Path) -> None:
    model = create_model()

    with pytest.raises(ConfigError, match=r"'hugingface' is not a known format.*'huggingface'.*Known names: .*onnx"):
        export_hubert(model, tmp_path / "x", format="hugingface", audio=WAVE)

    with pytest.raises(ConfigError, match="`layer` must be between 0 and 2, but is 3"):
        export_hubert(model, tmp_path / "x.onnx", format="onnx", layer=3, audio=WAVE)

    with pytest.raises(AudioError, match=r"no audio file at '.*none.wav'"):
        export_hubert(model, tmp_path / "x", format="onnx", audio=tmp_path / "none.wav")

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("dear to somebody")

    with pytest.raises(OutputDirError, match=r"holds something else than an earlier export \(thesis.tex\).*another"):
        export_hubert(model, other, format="huggingface", overwrite=True, audio=WAVE)

    for format in ("torchaudio", "fairseq", "onnx"):
        with pytest.raises(OutputDirError, match="must be the name of a file to write, but is a folder"):
            export_hubert(model, other, format=format, audio=WAVE)

        with pytest.raises(OutputDirError, match="exists already"):
            export_hubert(model, other / "thesis.tex", format=format, audio=WAVE)

        # A path below a file: no folder can be made there, whoever asks.
        with pytest.raises(StorageError, match=r"cannot be written.*choose another folder"):
            export_hubert(model, other / "thesis.tex" / "x.bin", format=format, audio=WAVE)

    with pytest.raises(OutputDirError, match="must be the name of a folder to write, but is a file"):
        export_hubert(model, other / "thesis.tex", format="huggingface", audio=WAVE)

    with pytest.raises(StorageError, match="cannot be written"):
        export_hubert(model, other / "thesis.tex" / "hf", format="huggingface", audio=WAVE)

    source = tmp_path / "m.pt"
    source.write_bytes((FAIRSEQ / "tiny_post.pt").read_bytes())

    with pytest.raises(OutputDirError, match="is what is to be exported"):
        export_hubert(source, source, format="fairseq", overwrite=True, audio=WAVE)

    assert sorted(p.name for p in tmp_path.rglob("*")) == ["m.pt", "other", "thesis.tex"]


def test_an_earlier_export_is_replaced_only_on_request(tmp_path: Path) -> None:
    for format, name in TARGETS.items():
        export_hubert(create_model(), tmp_path / name, format=format, audio=WAVE)

        with pytest.raises(OutputDirError, match=r"earlier export|exists already"):
            export_hubert(create_model(), tmp_path / name, format=format, audio=WAVE)

        export_hubert(create_recogniser(), tmp_path / name, format=format, overwrite=True, audio=WAVE)

    assert "HubertForCTC" in (tmp_path / "hf/config.json").read_text()

    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_dictionaries_of_somebody_else_stay(tmp_path: Path) -> None:
    (tmp_path / "dict.ltr.txt").write_text("mine 1\n")

    with pytest.raises(OutputDirError, match=r"dict\.ltr\.txt', which .* exists already and lists other units"):
        export_hubert(create_recogniser(), tmp_path / "m.pt", format="fairseq", audio=WAVE)

    assert [p.name for p in tmp_path.iterdir()] == ["dict.ltr.txt"]
    assert (tmp_path / "dict.ltr.txt").read_text() == "mine 1\n"

    export_hubert(create_recogniser(), tmp_path / "m.pt", format="fairseq", overwrite=True, audio=WAVE)

    assert (tmp_path / "dict.ltr.txt").read_text() == "| 1\nA 1\nB 1\nC 1\n"

    # A second model with the same symbols.
    export_hubert(create_recogniser(), tmp_path / "n.pt", format="fairseq", audio=WAVE)


def test_dictionaries_of_an_export_go_with_it(tmp_path: Path) -> None:
    """fairseq would read them as those of the model that takes its place."""
    nameless = HubertCtcConfig(encoder=replace(tiny_config(), heads=[]), vocab_size=8, symbols=list("-|ABCDEF"))

    export_hubert(create_recogniser(), tmp_path / "m.pt", format="fairseq", audio=WAVE)

    (tmp_path / "dict.mine.txt").write_text("mine 1\n")

    model = create_hubert_ctc_model(nameless).eval()

    export_hubert(model, tmp_path / "m.pt", format="fairseq", overwrite=True, audio=WAVE)

    assert sorted(p.name for p in tmp_path.iterdir()) == ["dict.mine.txt", "m.pt"]

    # Heads likewise.
    export_hubert(create_model(), tmp_path / "m.pt", format="fairseq", overwrite=True, audio=WAVE)

    assert (tmp_path / "dict.km.txt").exists()

    export_hubert(create_model(), tmp_path / "m.pt", format="fairseq", heads=False, overwrite=True, audio=WAVE)

    assert not (tmp_path / "dict.km.txt").exists()

    # One that was not written by the export is somebody's.
    (tmp_path / "dict.ltr.txt").write_text("| 1\nmine 1\n")

    export_hubert(model, tmp_path / "m.pt", format="fairseq", overwrite=True, audio=WAVE)

    assert (tmp_path / "dict.ltr.txt").exists()


@pytest.mark.parametrize("symbols", [[], ["-", "|", "A", "B", "C", "D", "E", "F"]])
def test_recognisers_without_special_symbols_get_no_dictionary(symbols: list[str], tmp_path: Path) -> None:
    encoder = replace(tiny_config(), heads=[])

    config = HubertCtcConfig(encoder=encoder, vocab_size=8, symbols=symbols)

    report = export_hubert(create_hubert_ctc_model(config).eval(), tmp_path / "m.pt", format="fairseq", audio=WAVE)

    assert any("No dict.ltr.txt is written" in note for note in report.notes)

    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]

    with pytest.raises(CheckpointError, match=r"output 0 .* the blank, but the model's blank is output 3"):
        export_hubert(
            create_hubert_ctc_model(replace(config, blank=3)), tmp_path / "b.pt", format="fairseq", audio=WAVE
        )

    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_symbols_that_are_not_known_stay_unknown_in_fairseqs_file(tmp_path: Path) -> None:
    """Its dictionary has to have as many symbols as there are outputs; what stands in for them is no text."""
    config = HubertCtcConfig(encoder=replace(tiny_config(), heads=[]), vocab_size=8, symbols=[])

    export_hubert(create_hubert_ctc_model(config).eval(), tmp_path / "m.pt", format="fairseq", audio=WAVE)

    assert len(torch.load(tmp_path / "m.pt", weights_only=True)["task_state"]["target_dictionary"]) == 8

    model = load_hubert_ctc(tmp_path / "m.pt")

    assert model.config.symbols == []

    with pytest.raises(TextError, match="does not say which symbols its 8 outputs stand for"):
        vocabulary_of(model)

    (tmp_path / "dict.txt").write_text("| 1\nA 1\nB 1\nC 1\n")

    assert vocabulary_of(model, str(tmp_path / "dict.txt")).text([5, 4, 6]) == "A B"


@pytest.mark.parametrize("symbols", [[], ["|", "A", "B", "C", "D", "E", "F", "<blank>"]])
def test_torchaudios_plan_says_what_the_outputs_stand_for(symbols: list[str], tmp_path: Path) -> None:
    config = HubertCtcConfig(encoder=replace(tiny_config(), heads=[]), vocab_size=8, symbols=symbols, blank=7)

    export_hubert(create_hubert_ctc_model(config).eval(), tmp_path / "m.pth", format="torchaudio", audio=WAVE)

    plan = json.loads((tmp_path / "m.json").read_text())

    assert (plan["symbols"], plan["blank"]) == (symbols, 7)

    read = load_hubert_ctc(tmp_path / "m.pth").config

    assert (read.symbols, read.blank) == (symbols, 7)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubert_plugin.errors import MissingDependencyError

    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)

    with pytest.raises(MissingDependencyError, match=r"fairseq2-hubert\[onnx\]"):
        export_hubert(create_model(), tmp_path / "x.onnx", format="onnx", audio=WAVE)

    # Before anything is exported.
    with pytest.raises(MissingDependencyError):
        next(export_all(FAIRSEQ / "tiny_post.pt", tmp_path, ["huggingface", "onnx"]))

    assert not any(tmp_path.iterdir())
