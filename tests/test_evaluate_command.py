"""``evaluate`` as users run it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import make_corpus
from processes import Run, assert_answer, command_server

from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.data.utterance_ids import write_utterance_ids


def evaluate(out: Path, *overrides: object) -> Run:
    args = ["recipe", "hubert", "evaluate", str(out), "--no-rich", "--config", *map(str, overrides)]

    return command_server().run(*args, timeout=600.0)


def result_of(run: Run, out: Path) -> dict[str, Any]:
    assert run.poll() == 0, run.raw[-3000:]

    result: dict[str, Any] = json.loads((out / "evaluation.json").read_text())

    return result


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)

    path.write_text(text)

    return path


def transcribed(folder: Path, corpus: Path, hypotheses: Sequence[str]) -> Path:
    """What ``transcribe`` leaves of a split."""
    manifest = read_manifest(corpus, "valid")

    records = [{"id": i, "text": t} for i, t in zip(manifest.ids, hypotheses, strict=True)]

    write(folder / "transcripts.jsonl", "".join(json.dumps(r) + "\n" for r in records))

    summary = {
        "input": {"manifest": str(manifest.path), "fingerprint": manifest.fingerprint},
        "real_time_factor": 0.02,
    }

    write(folder / "transcribe.json", json.dumps(summary))

    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_corpus(tmp_path_factory.mktemp("corpus"), num_train=1, num_valid=3, seconds=(0.5, 0.6))

    write(folder / "valid.wrd", "THE CAT\nSAT ON\nTHE MAT\n")

    return folder


def test_files_are_compared_and_the_results_written(tmp_path: Path) -> None:
    refs = write(tmp_path / "refs.wrd", "the cat sat\na dog\n")
    hyps = write(tmp_path / "hyps.txt", "the cat\na dog ran\n")

    run = evaluate(tmp_path / "out", f"references={refs}", f"hypotheses={hyps}")

    result = result_of(run, tmp_path / "out")

    assert result["wer"]["rate"] == 0.4
    assert (result["wer"]["insertions"], result["wer"]["deletions"]) == (1, 1)
    assert {(c["said"], c["written"]) for c in result["confusions"]} == {("sat", ""), ("", "ran")}
    assert "40.00" in run.text
    assert "WER" in run.text
    assert len((tmp_path / "out" / "utterances.tsv").read_text().splitlines()) == 3


def test_a_folder_of_transcribe_brings_its_references(corpus: Path, tmp_path: Path) -> None:
    folder = transcribed(tmp_path / "t", corpus, ["THE CAT", "SAT", "THE BAT"])

    result = result_of(evaluate(tmp_path / "out", f"hypotheses={folder}"), tmp_path / "out")

    assert result["references"] == str(corpus / "valid.wrd")
    assert result["wer"]["rate"] == pytest.approx(2 / 6)
    assert result["real_time_factor"] == 0.02


def test_kaldi_ids_find_their_utterances(corpus: Path, tmp_path: Path) -> None:
    own = make_corpus(tmp_path / "own", num_train=1, num_valid=3, seconds=(0.5, 0.6))

    write_utterance_ids(own / "valid.tsv", ["spk-1", "spk-2", "spk-3"])

    folder = transcribed(tmp_path / "t", own, ["A", "B", "C"])

    text = write(tmp_path / "text", "spk-3 C\nspk-1 A\nspk-2 X\n")

    result = result_of(evaluate(tmp_path / "out", f"hypotheses={folder}", f"references={text}"), tmp_path / "out")

    assert result["confusions"] == [{"said": "X", "written": "B", "count": 1}]


def test_case_and_punctuation_count_unless_they_are_normalised(tmp_path: Path) -> None:
    refs = write(tmp_path / "refs.wrd", "The cat, sat.\n")
    hyps = write(tmp_path / "hyps.wrd", "the cat sat\n")

    places = [f"references={refs}", f"hypotheses={hyps}"]

    assert result_of(evaluate(tmp_path / "a", *places), tmp_path / "a")["wer"]["rate"] == 1.0

    run = command_server().run(
        "recipe", "hubert", "evaluate", tmp_path / "b", "--no-rich", "--preset", "plain_text", "--config", *places,
        timeout=600.0,
    )  # fmt: skip

    assert result_of(run, tmp_path / "b")["wer"]["rate"] == 0.0


def test_empty_references_are_told(tmp_path: Path) -> None:
    refs = write(tmp_path / "refs.wrd", "\na dog\n")
    hyps = write(tmp_path / "hyps.wrd", "uh\na dog\n")

    run = evaluate(tmp_path / "out", f"references={refs}", f"hypotheses={hyps}")

    assert result_of(run, tmp_path / "out")["wer"]["insertions"] == 1
    assert "1 of 2 references are empty" in run.text


@pytest.mark.parametrize(
    ("files", "overrides", "phrases"),
    [
        ({}, [], ["`hypotheses` must name"]),
        ({"h.wrd": "a\n"}, ["hypotheses={0}/h.wrd"], ["name the file with `references=FILE`"]),
        ({"h.wrd": "a\n"}, ["hypotheses={0}/h.wrd", "references={0}/r.wrd"], ["There is no file", "r.wrd"]),
        (
            {"h.wrd": "a\nb\n", "r.wrd": "\n\n"},
            ["hypotheses={0}/h.wrd", "references={0}/r.wrd"],
            ["All 2 references are empty"],
        ),
        (
            {"h.text": "a x\nb y\n", "r.text": "b y\nc z\n"},
            ["hypotheses={0}/h.text", "references={0}/r.text"],
            ["(2 utterances)", "'c' has no hypothesis.", "'a' has no reference."],
        ),
        ({"folder/x": ""}, ["hypotheses={0}/folder"], ["is not the output of a finished run of `transcribe`"]),
        (
            {"h.wrd": "a\n", "r.wrd": "a\n"},
            ["hypotheses={0}/h.wrd", "references={0}/r.wrd", "confidence=95", "on_missing=maybe"],
            ["`confidence` must be between 0 and 1", "'maybe'"],
        ),
    ],
)
def test_what_cannot_be_compared_is_answered_with_sentences(
    files: dict[str, str], overrides: Sequence[str], phrases: Sequence[str], tmp_path: Path
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)

    assert_answer(evaluate(tmp_path / "out", *(o.format(tmp_path) for o in overrides)), phrases)


def test_a_manifest_that_changed_since_is_named(corpus: Path, tmp_path: Path) -> None:
    own = make_corpus(tmp_path / "own", num_train=1, num_valid=3, seconds=(0.5, 0.6))

    write(own / "valid.wrd", "A\nB\nC\n")

    folder = transcribed(tmp_path / "t", own, ["A", "B", "C"])

    lines = (own / "valid.tsv").read_text().splitlines()

    write(own / "valid.tsv", "\n".join([lines[0], lines[2], lines[1], lines[3], ""]))

    assert_answer(evaluate(tmp_path / "out", f"hypotheses={folder}"), ["was changed after it was transcribed"])
