"""What ``transcribe`` refuses or leaves out, and how it names it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from builders import make_corpus
from golden import FAIRSEQ
from processes import assert_answer
from transcribing import MODEL, done, read_records, read_summary, transcribe

from hubert_plugin import load_hubert_ctc


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("speech"), num_train=1, num_valid=6, seconds=(0.5, 1.2))


def make_audio(folder: Path) -> Path:
    """Write a corpus of three recordings; return the folder of its audio."""
    return make_corpus(folder, num_train=1, num_valid=2, seconds=(0.5, 0.6)) / "wav"


def find(audio: Path, name: str) -> Path:
    (path,) = audio.rglob(name)

    return path


def test_symbols_of_another_recogniser_are_refused(tmp_path: Path) -> None:
    """As many as there are outputs, but others: the text would be another one."""
    symbols = load_hubert_ctc(MODEL).config.symbols

    (tmp_path / "same.txt").write_text("".join(f"{s}\n" for s in symbols))
    (tmp_path / "other.txt").write_text("".join(f"{s}\n" for s in [*symbols[:6], *symbols[:5:-1]]))

    recording = find(make_audio(tmp_path / "corpus"), "valid00.wav")

    done(transcribe(tmp_path / "a", f"model={MODEL}", f"input={recording}", f"symbols={tmp_path / 'same.txt'}"))

    run = transcribe(tmp_path / "b", f"model={MODEL}", f"input={recording}", f"symbols={tmp_path / 'other.txt'}")

    assert_answer(run, ["other.txt", f"output 6 is '{symbols[6]}', not '{symbols[-1]}'", "Leave `symbols` out"])


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_recordings_without_a_frame_are_named_or_skipped(kind: str, tmp_path: Path) -> None:
    audio = make_audio(tmp_path / "corpus")

    for name in ("valid00.wav", "valid01.wav"):
        sf.write(find(audio, name), np.zeros(100, np.float32), 16_000)

    what = f"input={audio}" if kind == "folder" else f"input=[{','.join(map(str, sorted(audio.rglob('*.wav'))))}]"

    phrases = ["valid00.wav", "valid01.wav", "it has 100 samples at 16000 Hz, expected at least 400"]

    assert_answer(transcribe(tmp_path / "a", f"model={MODEL}", what), [*phrases, "on_bad_audio=skip"])

    run = done(transcribe(tmp_path / "b", f"model={MODEL}", what, "on_bad_audio=skip"))

    # All are named, and told from those in which nothing was recognised.
    for phrase in [*phrases, "2 of 3 recordings could not be read", "valid00.wav: (skipped)"]:
        assert phrase in run.text, run.raw

    assert read_summary(tmp_path / "b")["num_skipped"] == 2
    assert [Path(r["id"]).name for r in read_records(tmp_path / "b")] == ["train00.wav", "valid00.wav", "valid01.wav"]


def test_a_recording_that_is_missing_is_skipped_on_request(tmp_path: Path) -> None:
    audio = make_audio(tmp_path / "corpus")

    find(audio, "valid01.wav").unlink()

    overrides = [f"model={MODEL}", f"input={tmp_path / 'corpus' / 'valid.tsv'}"]

    assert_answer(transcribe(tmp_path / "a", *overrides), ["valid01.wav"])

    done(transcribe(tmp_path / "b", *overrides, "on_bad_audio=skip"))

    assert ["error" in r for r in read_records(tmp_path / "b")] == [False, True]


def test_a_step_is_named_by_its_number(tmp_path: Path) -> None:
    overrides = [f"model={MODEL}", f"input={find(make_audio(tmp_path / 'corpus'), 'valid00.wav')}"]

    assert_answer(transcribe(tmp_path / "a", *overrides, "step=first"), ["'best', 'last' or the number of a step"])

    # A file has no steps; `best`, the default, is what there is.
    assert_answer(transcribe(tmp_path / "b", *overrides, "step=7"), ["Step 7 was asked for", "is no training run"])

    done(transcribe(tmp_path / "c", *overrides, "step=best"))


def test_the_preset_of_a_language_model_asks_for_one(tmp_path: Path) -> None:
    recording = find(make_audio(tmp_path / "corpus"), "valid00.wav")

    overrides = [f"model={MODEL}", f"input={recording}"]

    run = transcribe(tmp_path / "a", *overrides, args=["--preset", "ngram"])

    assert_answer(run, ["`lm` must name an n-gram model", "set `decoder.lm=FILE`"])

    run = done(transcribe(tmp_path / "b", *overrides, "decoder.needs_lm=false", args=["--preset", "ngram"]))

    assert json.loads((tmp_path / "b" / "transcribe.json").read_text())["decoder"]["name"] == "beam"


def test_subtitles_of_one_name_are_refused_before_anything_is_transcribed(tmp_path: Path) -> None:
    recording = find(make_audio(tmp_path / "corpus"), "valid00.wav")

    other = recording.with_suffix(".flac")

    sf.write(other, *sf.read(recording))

    run = transcribe(tmp_path / "a", f"model={MODEL}", f"input=[{recording},{other}]", "formats=[srt]")

    assert_answer(run, ["Subtitles cannot be written", "valid00.flac' would both be", "leave `srt` out of `formats`"])

    assert not (tmp_path / "a" / "parts").exists()


def test_recordings_that_break_are_skipped_on_request(corpus: Path, tmp_path: Path) -> None:
    broken = make_corpus(tmp_path / "broken", num_train=1, num_valid=2, seconds=(0.5, 0.6))

    next((broken / "wav").rglob("valid01.wav")).write_bytes(b"RIFF")

    overrides = [f"model={MODEL}", f"input={broken / 'valid.tsv'}"]

    assert_answer(transcribe(tmp_path / "a", *overrides), ["1 of 2 recordings cannot be read", "valid01.wav"])

    run = done(transcribe(tmp_path / "b", *overrides, "on_bad_audio=skip"))

    assert "1 of 2 recordings could not be read and have an empty line" in run.text
    assert (tmp_path / "b" / "transcripts.txt").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("overrides", "phrases"),
    [
        (["input=x.wav"], ["`model` must name a fine-tuned HuBERT"]),
        (["model={model}", "input=/no/such/file.wav"], ["What is not there", "'/no/such/file.wav'"]),
        (["model={pretrained}", "input={corpus}/valid.tsv"], ["was not fine-tuned for recognition"]),
        (
            ["model={model}", "input={corpus}/valid.tsv", "symbols=fairseq_letters"],
            ["'fairseq_letters' has 32, but the checkpoint has 13 outputs"],
        ),
        (["model={model}", "input={corpus}/valid.tsv", "decoder.lm=x.arpa"], ["set `decoder.name=beam`"]),
        (
            ["model={model}", "input={corpus}/valid.tsv", "decoder={{name: beam, lm: /no/lm.arpa}}"],
            ["There is no language model '/no/lm.arpa'"],
        ),
        (
            ["model={model}", "input={corpus}/valid.tsv", "tune.trials=3"],
            ["`decoder.lm` must be given"],
        ),
        (
            ["model={model}", "input={corpus}/valid.tsv", "rescoring.lm=some_lm"],
            ["set `decoder.name=beam` and `decoder.nbest`"],
        ),
        (
            ["model={model}", "input={corpus}/valid.tsv", "rescoring.lm=some_lm", "decoder.name=beam"],
            ["must be 2 or more, but is 1"],
        ),
        (["model={model}", "formats=[pdf]", "on_bad_audio=maybe", "input=3"], ["names pdf", "'maybe'", "but is 3"]),
        (["model={model}", "input={corpus}/wav", "decoder.beem=3"], ["beem", "beam"]),
    ],
)
def test_what_cannot_be_done_is_answered_with_sentences(
    overrides: Sequence[str], phrases: Sequence[str], corpus: Path, tmp_path: Path
) -> None:
    places = {"model": MODEL, "pretrained": FAIRSEQ / "tiny_post.pt", "corpus": corpus}

    assert_answer(transcribe(tmp_path / "out", *(o.format(**places) for o in overrides)), phrases)


def test_a_training_run_is_not_written_into(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_10").mkdir(parents=True)

    run = transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}")

    assert_answer(run, ["holds a training run"])


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_a_file_without_a_readable_header_is_named_or_skipped(kind: str, tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "broken", num_train=1, num_valid=2, seconds=(0.5, 0.6)) / "wav"

    (broken,) = folder.rglob("valid01.wav")

    broken.write_bytes(b"RIFF")

    what = f"input={folder}" if kind == "folder" else f"input=[{','.join(map(str, sorted(folder.rglob('*.wav'))))}]"

    run = transcribe(tmp_path / "refused", f"model={MODEL}", what)

    assert_answer(run, ["valid01.wav", "set `on_bad_audio=skip` to give them an empty transcript"])

    # That is a key of `manifest`.
    assert "on_error" not in run.text

    done(transcribe(tmp_path / "out", f"model={MODEL}", what, "on_bad_audio=skip"))

    rows = [json.loads(line) for line in (tmp_path / "out/transcripts.jsonl").read_text().splitlines()]

    assert {Path(row["id"]).name: "error" in row for row in rows} == {
        "train00.wav": False,
        "valid00.wav": False,
        "valid01.wav": True,
    }
