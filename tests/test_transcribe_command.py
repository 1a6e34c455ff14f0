"""``transcribe`` as users run it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from builders import make_corpus
from processes import assert_answer, command_server, start_ranks, wait_for_all
from transcribing import MODEL, arguments, done, read_records, read_summary, transcribe

from hubert_plugin import load_hubert_ctc
from hubert_plugin.audio import AudioPolicy
from hubert_plugin.decoding.decoder import GreedyDecoder
from hubert_plugin.decoding.emissions import emit
from hubert_plugin.decoding.inputs import open_input
from hubert_plugin.decoding.ngram import NgramEstimate
from hubert_plugin.decoding.recogniser import vocabulary_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("speech"), num_train=1, num_valid=6, seconds=(0.5, 1.2))

    (folder / "valid.wrd").write_text("fa\nfab\na f\nbag\nface\nfade\n")

    return folder


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"

    NgramEstimate([["fa", "bag"], ["f", "a"], ["face"], ["fade", "fa"], ["xyz"]], 2).save(path)

    return path


def test_a_split_is_transcribed_as_the_library_does(corpus: Path, tmp_path: Path) -> None:
    run = done(transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}", "formats=[text,ctm,srt]"))

    model = load_hubert_ctc(MODEL)

    source = open_input([str(corpus / "valid.tsv")], AudioPolicy())

    decoder = GreedyDecoder(vocabulary_of(model))

    expected = [decoder.decode(emit(model, [source.read(i)])[0])[0].text for i in range(6)]

    records = read_records(tmp_path)

    assert any(expected)
    assert [r["text"] for r in records] == expected
    assert [r["id"] for r in records] == list(source.ids)
    assert (tmp_path / "transcripts.txt").read_text() == "".join(f"{t}\n" for t in expected)
    assert len(list((tmp_path / "srt").rglob("*.srt"))) == 6

    summary = read_summary(tmp_path)

    assert summary["num_recordings"] == 6
    assert summary["seconds"] == pytest.approx(source.seconds, abs=0.01)
    assert summary["real_time_factor"] > 0
    assert summary["input"]["manifest"] == str(corpus / "valid.tsv")

    assert "real-time factor" in run.text
    assert not (tmp_path / "parts").exists()

    # Once more: nothing is transcribed again, but what is missing is written.
    (tmp_path / "transcripts.ctm").unlink()

    again = done(transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}"))

    assert "All was transcribed before" in again.text
    assert (tmp_path / "transcripts.ctm").exists()
    assert read_records(tmp_path) == records
    assert read_summary(tmp_path) == summary

    # Another decoder is other work.
    other = done(transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}", "decoder.emissions=logits"))

    assert "All was transcribed before" not in other.text


def test_files_and_folders_are_transcribed(corpus: Path, tmp_path: Path) -> None:
    files = sorted((corpus / "wav").rglob("valid*.wav"), key=lambda p: p.name)[:2]

    run = done(transcribe(tmp_path / "files", f"model={MODEL}", f"input=[{files[0]},{files[1]}]"))

    records = read_records(tmp_path / "files")

    assert [r["id"] for r in records] == [str(f) for f in files]
    assert f"{files[0]}: {records[0]['text']}" in run.text

    done(transcribe(tmp_path / "folder", f"model={MODEL}", f"input={corpus / 'wav'}"))

    by_id = {r["id"]: r["text"] for r in read_records(tmp_path / "folder")}

    assert len(by_id) == 7
    assert [by_id[str(f.relative_to(corpus / "wav"))] for f in files] == [r["text"] for r in records]


def test_another_transcription_leaves_nothing_of_the_first(corpus: Path, tmp_path: Path) -> None:
    first, second = sorted((corpus / "wav").rglob("valid*.wav"), key=lambda p: p.name)[:2]

    done(transcribe(tmp_path, f"model={MODEL}", f"input={first}", "formats=[text,ctm,srt]"))

    assert len(list(tmp_path.rglob("*.srt"))) == 1

    done(transcribe(tmp_path, f"model={MODEL}", f"input={second}", "formats=[text]"))

    assert sorted(p.name for p in tmp_path.glob("transcri*")) == [
        "transcribe.json",
        "transcripts.jsonl",
        "transcripts.txt",
    ]
    assert not (tmp_path / "srt").exists()
    assert [r["id"] for r in read_records(tmp_path)] == [str(second)]


def test_names_that_are_no_utf8_are_written_and_read(corpus: Path, tmp_path: Path) -> None:
    """Names of files are bytes: the log shows them escaped, and files have them as they are."""
    name = os.fsdecode(b"caf\xe9.wav")

    (tmp_path / "audio").mkdir()

    shutil.copy(next((corpus / "wav").rglob("valid00.wav")), tmp_path / "audio" / name)

    args = f"model={MODEL}", f"input={tmp_path / 'audio'}", "formats=[text,ctm,srt]"

    run = done(transcribe(tmp_path / "out", *args))

    assert "Traceback" not in run.raw and "caf\\udce9.wav: " in run.text, run.raw

    assert (tmp_path / "out" / "srt" / os.fsdecode(b"caf\xe9.srt")).is_file()

    (tmp_path / "text").write_bytes(b"caf\xe9.wav fab\n")

    overrides = [f"hypotheses={tmp_path / 'out'}", f"references={tmp_path / 'text'}"]

    run = command_server().run(
        "recipe", "hubert", "evaluate", str(tmp_path / "scores"), "--no-rich", "--config", *overrides
    )

    assert "Traceback" not in done(run).raw, run.raw
    assert b"caf\xe9.wav\t" in (tmp_path / "scores" / "utterances.tsv").read_bytes()


STDIN = """
import os, sys
from hubert_plugin.cli import main

os.dup2(os.open({file!r}, os.O_RDONLY), 0)
sys.stdin = open(0)
sys.exit(main({args!r}))
"""


def test_a_wav_on_standard_input_is_transcribed(corpus: Path, tmp_path: Path) -> None:
    file = next((corpus / "wav").rglob("valid00.wav"))

    args = arguments(tmp_path, f"model={MODEL}", "input=-")

    run = done(command_server().run("x", code=STDIN.format(file=str(file), args=args), timeout=600.0))

    (record,) = read_records(tmp_path)

    assert record["id"] == "stdin"
    assert record["seconds"] == pytest.approx(sf.info(file).duration, abs=1e-3)
    assert f"stdin: {record['text']}" in run.text


def test_what_is_no_wav_on_standard_input_is_answered(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")

    args = arguments(tmp_path / "out", f"model={MODEL}", "input=-")

    code = STDIN.format(file=str(tmp_path / "text"), args=args)

    assert_answer(command_server().run("x", code=code, timeout=600.0), ["What came on standard input (6 bytes)"])


def beam(lm: Path, *overrides: str) -> list[str]:
    return ["decoder.name=beam", f"decoder.lm={lm}", "decoder.beam=50", *overrides]


def test_a_language_model_leads_to_its_own_words(corpus: Path, lm: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")

    run = done(
        transcribe(
            tmp_path,
            f"model={MODEL}",
            f"input={corpus / 'valid.tsv'}",
            *beam(lm, "decoder.nbest=3", "decoder.word_score=2.0"),
        )
    )

    assert "1 of the 7 words of" in run.text
    assert "'xyz'" in run.text

    records = read_records(tmp_path)

    assert {w["word"] for r in records for w in r["words"]} <= {"fa", "bag", "f", "a", "face", "fade"}
    assert any(r["text"] for r in records)
    assert all(len(r["nbest"]) == 3 and r["nbest"][0]["text"] == r["text"] for r in records)


def test_audio_that_decodes_to_nothing_is_told_and_keeps_its_line(corpus: Path, lm: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")

    run = done(
        transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}", *beam(lm, "decoder.word_score=-1000.0"))
    )

    assert "Nothing was recognised in 6 of 6 recordings, whose lines are empty: s0/valid00.wav" in run.text
    assert (tmp_path / "transcripts.txt").read_text() == "\n" * 6
    assert read_summary(tmp_path)["num_empty"] == 6


def test_weights_are_searched_and_used(corpus: Path, lm: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    pytest.importorskip("optuna")

    run = done(transcribe(tmp_path, f"model={MODEL}", f"input={corpus / 'valid.tsv'}", *beam(lm), "tune.trials=4"))

    tuning = json.loads((tmp_path / "tuning.json").read_text())

    assert "The best of 4 pairs of weights" in run.text
    assert len(tuning["history"]) == 4
    assert tuning["wer"] == min(t["wer"] for t in tuning["history"])

    decoder = read_summary(tmp_path)["decoder"]

    assert (decoder["lm_weight"], decoder["word_score"]) == (tuning["lm_weight"], tuning["word_score"])

    # What was found is the error rate of the result.
    evaluated = command_server().run(
        "recipe", "hubert", "evaluate", tmp_path / "evaluation", "--no-rich", "--config", f"hypotheses={tmp_path}"
    )

    done(evaluated)

    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())

    assert evaluation["wer"]["rate"] == pytest.approx(tuning["wer"])
    assert evaluation["real_time_factor"] == pytest.approx(read_summary(tmp_path)["real_time_factor"])


@pytest.fixture(scope="module")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of asset cards with a tiny LLaMA and its tokenizer."""
    import sentencepiece
    import torch
    from fairseq2.models.llama import LLaMAConfig
    from fairseq2.models.llama.factory import create_llama_model

    folder = tmp_path_factory.mktemp("cards")

    (folder / "text.txt").write_text("fa bag\nface fade\nf a b c d e g h\n" * 10)

    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "sp"), vocab_size=16, minloglevel=2
    )

    torch.manual_seed(0)

    overrides = {"model_dim": 16, "max_seq_len": 64, "vocab_size": 16, "num_layers": 1, "num_attn_heads": 2,
                 "num_key_value_heads": 2, "ffn_inner_dim": 32}  # fmt: skip

    torch.save({"model": create_llama_model(LLaMAConfig(**overrides)).state_dict()}, folder / "lm.pt")  # type: ignore[arg-type]

    card = {
        "name": "tiny_causal_lm",
        "model_family": "llama",
        "model_arch": "7b",
        "model_config": overrides,
        "checkpoint": f"file://{folder / 'lm.pt'}",
        "tokenizer_family": "char_tokenizer",
        "tokenizer": f"file://{folder / 'sp.model'}",
    }

    (folder / "cards").mkdir()
    (folder / "cards" / "lm.yaml").write_text(json.dumps(card))

    return folder / "cards"


def test_a_card_of_a_causal_language_model_rescores(corpus: Path, lm: Path, causal_lm: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")

    done(
        transcribe(
            tmp_path,
            f"model={MODEL}",
            f"input={corpus / 'valid.tsv'}",
            *beam(lm, "decoder.nbest=4"),
            "rescoring={lm: tiny_causal_lm, weight: 3.0}",
            env={"FAIRSEQ2_USER_ASSET_DIR": str(causal_lm)},
        )
    )

    for record in read_records(tmp_path):
        scores = [h["score"] for h in record["nbest"]]

        assert scores == sorted(scores, reverse=True)
        assert all(h["rescored"] < 0 for h in record["nbest"])


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for several blocks of work."""
    return make_corpus(tmp_path_factory.mktemp("long"), num_train=1, num_valid=12, seconds=(10.0, 14.0))


KILL = """
import os, sys
from hubert_plugin.cli import main
from hubert_plugin.decoding.parts import Parts

save = Parts.save

def save_and_die(self, block, records, times):
    save(self, block, records, times)
    if block == 1:
        os.kill(os.getpid(), 9)

Parts.save = save_and_die
main({args!r})
"""


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(long_corpus: Path, tmp_path: Path) -> None:
    overrides = [f"model={MODEL}", f"input={long_corpus / 'valid.tsv'}"]

    done(transcribe(tmp_path / "whole", *overrides))

    killed = command_server().run("x", code=KILL.format(args=arguments(tmp_path / "killed", *overrides)))

    assert killed.poll() == -9, killed.raw[-3000:]
    assert not (tmp_path / "killed" / "transcripts.jsonl").exists()

    parts = sorted(p.name for p in (tmp_path / "killed" / "parts").rglob("*.json"))

    assert parts == ["000000.json", "000001.json"]

    # The first recordings are not read again: they are gone.
    first = json.loads(next((tmp_path / "killed" / "parts").rglob("000000.json")).read_text())["records"]

    away = [long_corpus / "wav" / r["id"] for r in first]

    for path in away:
        samples, rate = sf.read(path)

        sf.write(path, np.zeros_like(samples), rate, subtype="FLOAT")

        path.with_suffix(".bak").write_bytes(b"")

    done(transcribe(tmp_path / "killed", *overrides))

    assert read_records(tmp_path / "killed") == read_records(tmp_path / "whole")
    assert not (tmp_path / "killed" / "parts").exists()


def test_ranks_share_the_work(corpus: Path, tmp_path: Path) -> None:
    long = make_corpus(tmp_path / "long", num_train=1, num_valid=8, seconds=(9.0, 12.0))

    overrides = [f"model={MODEL}", f"input={long / 'valid.tsv'}"]

    runs = start_ranks(arguments(tmp_path / "two", *overrides), 2)

    one = transcribe(tmp_path / "one", *overrides)

    wait_for_all(runs)

    for run in (*runs, one):
        done(run)

    assert read_records(tmp_path / "two") == read_records(tmp_path / "one")
