"""What ``finetune`` answers to mistakes: a sentence that names what and where, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builders import write_config
from processes import assert_answer
from transcribed import assert_ok, finetune, finetune_config, make_transcribed, write_lines

from hubert_plugin.data.manifest import read_manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transcribed(tmp_path_factory.mktemp("bad") / "corpus", num_train=8, num_valid=2)


@dataclass(frozen=True)
class Case:
    """A mistake, and what must be in the answer."""

    phrases: Sequence[str]

    sections: dict[str, Any] = field(default_factory=dict)

    spoil: Callable[[Path], None] | None = None
    """Called with the folder of a good corpus."""


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def both(*spoils: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil


def one_table(folder: Path) -> None:
    """Put the transcripts of both splits, and one of neither, into one file."""
    rows = ["ghost BOO"]

    for split in ("train", "valid"):
        texts = (folder / f"{split}.wrd").read_text().splitlines()

        rows += [f"{ref} {text}" for ref, text in zip(read_manifest(folder, split).ids, texts, strict=True)]

        (folder / f"{split}.wrd").unlink()

    (folder / "text").write_text("\n".join(rows) + "\n")


CASES = {
    "no transcripts": Case(
        ["There are no transcripts of the split 'train'", "dataset.transcripts.dir=FOLDER"], spoil=remove("train.wrd")
    ),
    "too few transcripts": Case(
        ["must have a line for each of the 8 utterances", "but have 7"],
        spoil=write_lines("train.wrd", lambda x: x[:-1]),
    ),
    "empty transcript": Case(
        ["1 transcript of the split 'train' is empty", "train.wrd:3: 's2/train02.wav'"],
        spoil=write_lines("train.wrd", lambda x: [*x[:2], "", *x[3:]]),
    ),
    "characters outside": Case(
        ["(1 \u00c4)", "valid.wrd:1: 's0/valid00.wav' has '1', '\u00c4'", "dataset.on_bad_text=skip"],
        spoil=write_lines("valid.wrd", lambda x: ["\u00e4 1", *x[1:]]),
    ),
    "wrong case": Case(
        ["its letters are all upper case: set `task.config.text.case=upper`"],
        {"task": {"config": {"text": {"case": "lower"}}}},
    ),
    "more symbols than frames": Case(
        ["more symbols than its audio has frames", "'s0/train00.wav' needs", "dataset.on_long_text=skip"],
        spoil=write_lines("train.wrd", lambda x: ["CAT " * 80, *x[1:]]),
    ),
    "everything at once, in both splits": Case(
        [
            "1 transcript of the split 'train' has characters that the vocabulary lacks (5 \u00b0)",
            "1 transcript of the split 'train' is empty",
            "1 transcript of the split 'train' has more symbols than its audio has frames",
            "2 transcripts of the split 'valid' are empty",
            "train.wrd:1: 's0/train00.wav' has an empty transcript",
            "train.wrd:2: 's1/train01.wav' has '5', '\u00b0'",
            "train.wrd:3: 's2/train02.wav' needs",
            "valid.wrd:1: 's0/valid00.wav' has an empty transcript",
            "dataset.on_bad_text=skip",
            "dataset.on_long_text=skip",
        ],
        spoil=both(
            write_lines("train.wrd", lambda x: ["", "N\u00b0 5", "CAT " * 100, *x[3:]]),
            write_lines("valid.wrd", lambda x: [""] * len(x)),
        ),
    ),
    "files of both splits": Case(
        ["There are no transcripts of the split 'train'", "utterances of", "valid.tsv', but have 1"],
        spoil=both(remove("train.wrd"), write_lines("valid.wrd", lambda x: x[:1])),
    ),
    "all too long": Case(
        [
            "None of the 8 utterances of the split 'train' of",
            "Left out: 8 longer than `task.config.batching.max_seconds` (0.5 s)",
            "raise `task.config.batching.max_seconds`",
        ],
        {"task": {"config": {"batching": {"max_seconds": 0.5}}}},
    ),
    "all transcripts left out": Case(
        [
            "None of the 8 utterances of the split 'train' of",
            "7 with an empty transcript, 1 with characters that the vocabulary lacks",
            "complete empty transcripts, normalise the text (`task.config.text`)",
        ],
        {"dataset": {"on_bad_text": "skip"}},
        spoil=write_lines("train.wrd", lambda x: ["\u00e4", *[""] * 7]),
    ),
    "nothing to train pieces on": Case(
        ["None of the 8 utterances", "8 with an empty transcript"],
        {"dataset": {"on_bad_text": "skip"}, "tokenizer": {"sentencepiece": {"vocab_size": 20}}},
        spoil=write_lines("train.wrd", lambda x: [""] * 8),
    ),
    "all transcripts of validation left out": Case(
        ["None of the 2 utterances of the split 'valid' of", "2 with an empty transcript", "dataset.valid_split=null"],
        {"dataset": {"on_bad_text": "skip"}},
        spoil=write_lines("valid.wrd", lambda x: [""] * 2),
    ),
    "too little audio after some was left out": Case(
        ["but an update needs 50: 7 utterances", "Left out: 1 with an empty transcript. To change that, complete"],
        {"trainer": {"grad_accumulation": {"num_batches": 50}}, "dataset": {"on_bad_text": "skip"}},
        spoil=write_lines("train.wrd", lambda x: ["", *x[1:]]),
    ),
    "unknown tokenizer": Case(
        ["'hubert_paper_leters' is not a known tokenizer", "Did you mean 'hubert_paper_letters'"],
        {"tokenizer": {"name": "hubert_paper_leters"}},
    ),
    "tokenizer file missing": Case(
        ["The dictionary '/nowhere/dict.ltr.txt' cannot be read"], {"tokenizer": {"path": "/nowhere/dict.ltr.txt"}}
    ),
    "tokenizer file of unknown kind": Case(
        ["`path` ('/nowhere/x.bin') must end with .model, .txt, .json"], {"tokenizer": {"path": "/nowhere/x.bin"}}
    ),
    "two tokenizers": Case(
        ["only one of them can be specified"], {"tokenizer": {"path": "a.model", "sentencepiece": {"vocab_size": 20}}}
    ),
    "impossible SentencePiece model": Case(
        ["they give at most"], {"tokenizer": {"sentencepiece": {"vocab_size": 2000}}}
    ),
    "cropping asked for": Case(
        ["`batching.length` must be 'pad' or 'pad_bucket', not 'bucket'"],
        {"task": {"config": {"batching": {"length": "bucket"}}}},
    ),
    "nothing to start from": Case(
        ["fine-tunes a pretrained model, but names none"], {"pretraining": {"required": True}}
    ),
    "no such model": Case(["'no/such/model'"], {"pretrained": "no/such/model"}),
    "output layer that is not there": Case(
        ["`pretraining.output_layer=keep` takes over the output layer", "no model is named"],
        {"pretraining": {"output_layer": "keep"}},
    ),
    "symbols said twice": Case(
        ["`model.config_overrides` sets vocab_size, which follow from the tokenizer (32 symbols)"],
        {"model": {"config_overrides": {"vocab_size": 29}}},
    ),
    "another criterion": Case(
        ["`criterion.name` must be 'ctc' here, but is 'masked_cross_entropy'"],
        {"criterion": {"name": "masked_cross_entropy"}},
    ),
    "too little audio": Case(
        ["yields", "batches a rank and epoch, but an update needs 50"],
        {"trainer": {"grad_accumulation": {"num_batches": 50}}},
    ),
    "transcripts that no split has": Case(
        ["have 1 transcript of no utterance of 'train' or 'valid': 'ghost' (line 1)", "but an update needs 50"],
        {"trainer": {"grad_accumulation": {"num_batches": 50}}},
        spoil=one_table,
    ),
    "unknown policy": Case(["`on_bad_text` must be 'raise' or 'skip'"], {"dataset": {"on_bad_text": "ignore"}}),
    "impossible rates": Case(
        [
            "`config.betas[1]` must be at least 0 and below 1, but is 1.5",
            "`config.final_lr_scale` must be greater than 0",
        ],
        {"optimizer": {"config": {"betas": [0.9, 1.5]}}, "lr_scheduler": {"config": {"final_lr_scale": 0.0}}},
    ),
    "no minutes": Case(["`train_minutes` must be greater than 0"], {"dataset": {"train_minutes": 0.0}}),
}


@pytest.mark.parametrize("name", CASES)
def test_mistakes_are_answered_with_a_sentence(name: str, corpus: Path, tmp_path: Path) -> None:
    case = CASES[name]

    folder = corpus

    if case.spoil is not None:
        folder = tmp_path / "corpus"

        shutil.copytree(corpus, folder, copy_function=shutil.copy)

        case.spoil(folder)

    config = write_config(tmp_path / "config.yaml", finetune_config(folder, **case.sections))

    run = finetune(tmp_path / "out", config)

    assert_answer(run, case.phrases)

    assert not list((tmp_path / "out").glob("checkpoints/step_*"))


def test_utterances_are_left_out_where_the_policy_says_so_and_counted(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"

    shutil.copytree(corpus, folder)

    write_lines("train.wrd", lambda x: ["CAT " * 80, "", "\u00e9", *x[3:]])(folder)

    dataset = {"on_bad_text": "skip", "on_long_text": "skip"}

    file = write_config(tmp_path / "config.yaml", finetune_config(folder, dataset=dataset, regime={"num_steps": 4}))

    run = finetune(tmp_path / "out", file)

    assert_ok(run)

    data = json.loads((tmp_path / "out/report.json").read_text())["data"]["train"]

    assert data["num_utterances"] == 5
    assert data["left_out"] == {"empty": 1, "unspellable": 1, "too_long": 1}

    for name in ("'s0/train00.wav' needs", "'s1/train01.wav' has an empty transcript", "'s2/train02.wav' has '\u00c9'"):
        assert name in run.text
