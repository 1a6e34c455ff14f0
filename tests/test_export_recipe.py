"""The verbs ``export`` and ``features``, and exports inside a training run, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from builders import make_corpus, one_thread, pretrain_config, speech_like, write_config  # noqa: F401
from golden import FAIRSEQ
from processes import command_server

from hubert_plugin import load_hubert

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

MODEL = FAIRSEQ / "tiny_post.pt"


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"

    sf.write(path, speech_like(1.5, 0, np.random.default_rng(1)), 16_000)

    return path


def test_one_command_exports_to_everything_and_says_how_near_it_is(tmp_path: Path, audio: Path) -> None:
    from transformers import HubertModel

    out = tmp_path / "out"

    args = ["recipe", "hubert", "export", out, "--preset", "everything", "--no-rich", "--config"]

    run = command_server().run(*args, f"model={MODEL}", f"audio={audio}")

    assert run.wait() == 0, run.raw

    for format in ("huggingface", "torchaudio", "fairseq", "onnx"):
        assert f"{format}: max |difference| " in run.text

    assert "on 'speech.wav' (1.50 s)" in run.text

    records = json.loads((out / "parity.json").read_text())

    assert list(records) == ["huggingface", "torchaudio", "fairseq", "onnx"]

    for record in records.values():
        assert (out / record["path"]).exists()

        assert max(record["max_differences"].values()) < 2e-5

    ours = load_hubert(MODEL)

    waveform = speech_like(1.0, 2, np.random.default_rng(2))

    with torch.inference_mode():
        theirs = HubertModel.from_pretrained(out / "hubert_huggingface")(torch.from_numpy(waveform)[None])

    (expected,) = ours.extract_features([waveform])

    torch.testing.assert_close(theirs.last_hidden_state[0], expected, atol=2e-5, rtol=1e-4)

    # What was exported is itself what the package takes.
    for record in records.values():
        if record["path"] != "hubert.onnx":
            (features,) = load_hubert(out / record["path"]).extract_features([waveform])

            torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-6)

    # The same command again ends the same way.
    run = command_server().run(*args, f"model={MODEL}", f"audio={audio}", "formats=[huggingface]")

    assert run.wait() == 0, run.raw


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["formats=[hugginface]"], "'hugginface' is not a known format of an export. Did you mean 'huggingface'?"),
        (["formats=[onnx]", "layer=9"], "`layer` must be between 0 and 3, but is 9"),
        (["layer=1"], "`layer` is for the format 'onnx' only"),
        (["model=no_such_model"], "'no_such_model' is neither a folder, nor a file, nor the name of an asset card"),
        (["audio=none.wav"], "There is no audio file at 'none.wav'"),
    ],
)
def test_wrong_options_of_export_are_answered_with_a_sentence(
    options: list[str], message: str, tmp_path: Path, audio: Path
) -> None:
    config = [f"model={MODEL}", f"audio={audio}", *options]

    run = command_server().run("recipe", "hubert", "export", tmp_path / "out", "--no-rich", "--config", *config)

    assert run.wait() == 2, run.raw

    assert message in run.text

    assert "Traceback" not in run.text


def test_a_full_disk_leaves_no_part_of_an_export(tmp_path: Path, audio: Path) -> None:
    out = tmp_path / "out"

    args = ["recipe", "hubert", "export", out, "--preset", "everything", "--no-rich", "--config"]

    run = command_server().run(*args, f"model={MODEL}", f"audio={audio}", max_file_bytes=30_000)

    assert run.wait() == 2, run.raw

    assert "cannot be written" in run.text and "run the same command again" in run.text

    assert not [p for p in out.iterdir() if "hubert" in p.name]

    assert command_server().run(*args, f"model={MODEL}", f"audio={audio}").wait() == 0


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, audio: Path) -> None:
    out = tmp_path / "out"

    (out / "hubert_huggingface").mkdir(parents=True)
    (out / "hubert_huggingface/thesis.tex").write_text("dear to somebody")

    config = [f"model={MODEL}", f"audio={audio}"]

    run = command_server().run("recipe", "hubert", "export", out, "--no-rich", "--config", *config)

    assert run.wait() == 2, run.raw

    assert "holds something else than an earlier export (thesis.tex)" in run.text

    assert [p.name for p in (out / "hubert_huggingface").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_training_run_exports_to_hugging_face(tmp_path: Path) -> None:
    from transformers import HubertModel

    make_corpus(tmp_path / "data", num_train=8, num_valid=2)

    # fairseq2 exports in a process of its own, which it starts when a checkpoint is saved.
    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            tmp_path / "data",
            model={"config_overrides": {"layer_drop_p": 0.0}},
            regime={
                "num_steps": 4,
                "validate_every_n_steps": 4,
                "checkpoint_every_n_steps": 4,
                "export_hugging_face": True,
            },
        ),
    )

    run = command_server().pretrain(tmp_path / "run", config, timeout=240.0)

    step = tmp_path / "run/checkpoints/step_4"

    errors = step / "hg.stderr"

    assert run.wait() == 0, run.raw

    assert (step / "hg/model.safetensors").is_file(), errors.read_text() if errors.exists() else run.raw

    waveform = speech_like(1.0, 2, np.random.default_rng(2))

    (expected,) = load_hubert(tmp_path / "run").extract_features([waveform])

    with torch.inference_mode():
        theirs = HubertModel.from_pretrained(step / "hg")(torch.from_numpy(waveform)[None])

    torch.testing.assert_close(theirs.last_hidden_state[0], expected, atol=2e-5, rtol=1e-4)

    # And back.
    (features,) = load_hubert(step / "hg").extract_features([waveform])

    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-6)
