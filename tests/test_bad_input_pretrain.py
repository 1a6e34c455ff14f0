"""What ``pretrain`` answers to bad data: a sentence that names file and remedy, exit code 2, nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from builders import make_corpus, pretrain_config, read_metrics, write_config
from processes import Run, command_server, run_command

from hubert_plugin.data.labels import write_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.registry import LabelSetSpec

VICTIM = "wav/s1/train04.wav"


@dataclass(frozen=True)
class Case:
    """A mistake: what is done to a good corpus, and what must be in the answer."""

    spoil: Callable[[Path], None]
    """Called with the folder of a good corpus."""

    phrases: Sequence[str]

    overrides: Sequence[str] = ()


def edit(name: str, change: Callable[[list[str]], Sequence[str]], *, record: bool = False) -> Callable[[Path], None]:
    """Change the lines of a text file; without ``record``, remove the record that would tell of the change."""

    def spoil(folder: Path) -> None:
        path = folder / name

        path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))

        if not record:
            path.with_name(path.name + ".json").unlink(missing_ok=True)

    return spoil


def replace_line(line_nr: int, change: Callable[[str], str]) -> Callable[[list[str]], list[str]]:
    return lambda lines: [change(x) if nr == line_nr else x for nr, x in enumerate(lines, start=1)]


def cut_off(name: str) -> Callable[[Path], None]:
    """Leave the first half of a file."""

    def spoil(folder: Path) -> None:
        path = folder / name

        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def write_audio(num_samples: int, *, rate: int = 16_000, value: float = 0.1) -> Callable[[Path], None]:
    """Put another file in the place of the victim."""

    def spoil(folder: Path) -> None:
        waveform = np.full(num_samples, 0.1, np.float32)

        waveform[num_samples // 2 :] = value

        sf.write(folder / VICTIM, waveform, rate, subtype="FLOAT")

    return spoil


def label_with(fingerprint: str) -> Callable[[Path], None]:
    """Label the validation split, and the training split, by two different unit models."""

    def spoil(folder: Path) -> None:
        for split, made_by in (("train", "0123456789abcdef"), ("valid", fingerprint)):
            manifest = read_manifest(folder, split)

            units = [np.zeros((n - 400) // 320 + 1, np.int32) for n in manifest.sizes.tolist()]

            write_labels(folder, split, LabelSetSpec("km", 8, 50), units, manifest, {"unit_model_fingerprint": made_by})

    return spoil


def set_dict(text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "dict.km.txt").write_text(text)

    return spoil


CASES: dict[str, Case] = {
    "manifest_folder_missing": Case(
        lambda folder: shutil.rmtree(folder), ["/corpus' is not a folder", "fairseq2 recipe hubert manifest"]
    ),
    "split_missing": Case(
        lambda folder: (folder / "valid.tsv").unlink(), ["valid.tsv' does not exist", "splits there are: train"]
    ),
    "manifest_empty": Case(edit("train.tsv", lambda lines: []), ["train.tsv:1", "found an empty file"]),
    "manifest_without_utterances": Case(
        edit("train.tsv", lambda lines: lines[:1]), ["train.tsv:2", "there are no utterances"]
    ),
    "line_without_tab": Case(
        edit("train.tsv", replace_line(3, lambda x: x.replace("\t", " "))), ["train.tsv:3", "found no tab"]
    ),
    "all_problems_of_a_manifest_at_once": Case(
        edit("train.tsv", lambda lines: [lines[0], *(x.replace("\t", " ") for x in lines[1:])]),
        ["train.tsv:2", "train.tsv:21", "and 4 more"],
    ),
    "manifest_tells_of_under_400_samples": Case(
        edit("train.tsv", replace_line(5, lambda x: x.split("\t")[0] + "\t399")),
        ["train.tsv:5", "at least 400 samples", "found 399"],
    ),
    "audio_missing": Case(lambda folder: (folder / VICTIM).unlink(), ["train.tsv:6", VICTIM, "found none"]),
    "audio_folder_moved": Case(
        lambda folder: (folder / "wav").rename(folder / "elsewhere"), ["train.tsv:1", "Was the data moved?"]
    ),
    "audio_truncated": Case(cut_off(VICTIM), [VICTIM, "is truncated"]),
    "audio_empty_file": Case(lambda folder: (folder / VICTIM).write_bytes(b""), [VICTIM, "0 bytes"]),
    "audio_is_no_audio": Case(lambda folder: (folder / VICTIM).write_text("no audio"), [VICTIM, "libsndfile"]),
    "audio_of_another_rate": Case(
        write_audio(20_000, rate=8_000),
        [VICTIM, "8000 Hz", "`dataset.sample_rate_policy=resample`"],
        ["dataset.sample_rate_policy=refuse"],
    ),
    "audio_of_zero_samples": Case(write_audio(0), [VICTIM]),
    "audio_of_under_400_samples": Case(write_audio(399), [VICTIM, "399 samples"]),
    "audio_with_nan": Case(lambda folder: _poison(folder / VICTIM), [VICTIM, "not finite", "the first at sample 1000"]),
    "labels_missing": Case(lambda folder: (folder / "train.km").unlink(), ["train.km'", "There are no labels"]),
    "labels_with_fewer_lines": Case(
        edit("train.km", lambda lines: lines[:-2]), ["train.km has 22 lines", "train.tsv has 24 utterances"]
    ),
    "labels_with_more_lines": Case(
        edit("train.km", lambda lines: [*lines, lines[0]]), ["train.km has 25 lines", "24 utterances"]
    ),
    "label_line_too_short": Case(
        edit("train.km", replace_line(7, lambda x: " ".join(x.split()[:-2]))),
        ["train.km:7", "too short", "train.tsv:8"],
    ),
    "label_line_too_long": Case(
        edit("train.km", replace_line(7, lambda x: x + " 0 0")), ["train.km:7", "too long", "train.tsv:8"]
    ),
    "label_line_empty": Case(edit("train.km", replace_line(2, lambda x: "")), ["train.km:2", "the line is empty"]),
    "label_out_of_range": Case(
        edit("valid.km", replace_line(1, lambda x: "8 " + x.partition(" ")[2])), ["valid.km:1", "label 8", "0 … 7"]
    ),
    "label_is_no_number": Case(
        edit("valid.km", replace_line(1, lambda x: "x " + x.partition(" ")[2])), ["valid.km:1", "'x' is not an integer"]
    ),
    "labels_changed_behind_their_record": Case(
        edit("train.km", replace_line(1, lambda x: "7 " + x.partition(" ")[2]), record=True),
        ["train.km", "was changed", "Label again"],
    ),
    "labels_of_another_manifest": Case(
        edit("train.tsv", lambda lines: lines[:-1]), ["train.km", "another manifest", "24 utterances", "23 utterances"]
    ),
    "labels_of_two_unit_models": Case(
        label_with("fedcba9876543210"), ["'km'", "0123456789abcdef", "fedcba9876543210", "one unit model"]
    ),
    "dictionary_of_another_size": Case(set_dict("0 1\n1 1\n"), ["dict.km.txt", "2 units", "8"]),
    "rate_that_the_labels_do_not_have": Case(
        lambda folder: None, ["train.km", "50 Hz", "100 Hz"], ["dataset.label_rates.km=100"]
    ),
    "label_folder_without_the_names_of_label_sets": Case(
        lambda folder: (folder / "train.km").rename(folder / "train.kn"),
        ["`dataset.label_dir` is '", "names no label set", "`dataset.labels=[km]` (it holds: km, kn)"],
        ["dataset.labels=[]", "dataset.label_dir={corpus}"],
    ),
    "more_units_than_frames": Case(
        lambda folder: None, ["100000", "frames"], ["dataset.labels=[]", "dataset.label_making.num_clusters=100000"]
    ),
    "nothing_long_enough": Case(
        lambda folder: None,
        ["yields 0 batches", "task.config.batching"],
        ["task.config.batching.min_seconds=5", "task.config.batching.max_seconds=6"],
    ),
    "head_of_an_unknown_label_set": Case(
        lambda folder: None,
        ["'kn'", "km", "config_overrides.heads"],
        ["model.config_overrides.heads=[{label_set: kn}]"],
    ),
    "head_of_another_size": Case(
        lambda folder: None, ["'km'", "size 9", "have 8"], ["model.config_overrides.heads=[{label_set: km, size: 9}]"]
    ),
    "head_of_an_unknown_kind": Case(
        lambda folder: None,
        ["'cosin' is not a known", "'cosine'"],
        ["model.config_overrides.heads=[{label_set: km, kind: cosin}]"],
    ),
    "warm_up_longer_than_the_run": Case(
        lambda folder: None,
        ["`lr_scheduler.config.num_warmup_steps` (100) must be less than `regime.num_steps` (20)"],
        ["lr_scheduler.config.num_warmup_steps=100", "regime.num_steps=20"],
    ),
    "unknown_criterion": Case(
        lambda folder: None,
        ["'masked_crossentropy' is not a known", "'masked_cross_entropy'"],
        ["criterion.name=masked_crossentropy"],
    ),
    "unknown_task": Case(
        lambda folder: None, ["'hubert_pretran' is not a known", "'hubert_pretrain'"], ["task.name=hubert_pretran"]
    ),
    "unknown_feature_source": Case(
        lambda folder: None,
        ["'mfc' is not a known", "'mfcc'"],
        ["dataset.labels=[]", "dataset.label_making.features.name=mfc"],
    ),
    "unknown_architecture": Case(lambda folder: None, ["'tinny' is not a known", "'tiny'"], ["model.arch=tinny"]),
    "unknown_model_key": Case(
        lambda folder: None, ["model_dimm", "model_dim"], ["model.config_overrides.model_dimm=3"]
    ),
    "model_that_is_not_valid": Case(
        lambda folder: None, ["`model_dim` (33) must be a multiple"], ["model.config_overrides.model_dim=33"]
    ),
    "unknown_dataset": Case(
        lambda folder: None,
        ["hubert_demmo", "Did you mean 'hubert_demo'"],
        ["dataset.manifest_dir=null", "dataset.name=hubert_demmo"],
    ),
}


def _poison(path: Path) -> None:
    waveform, rate = sf.read(path, dtype="float32")

    waveform[1000] = np.nan

    sf.write(path, waveform, rate, subtype="FLOAT")


@pytest.fixture(scope="module")
def good_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("good") / "corpus")


@pytest.fixture
def corpus(good_corpus: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(good_corpus, tmp_path / "corpus")


def pretrain(corpus: Path, *overrides: str, **kwargs: object) -> Run:
    config = pretrain_config(corpus, regime={"num_steps": 20, "checkpoint_every_n_steps": 4})

    return command_server().pretrain(
        corpus.parent / "out", write_config(corpus.parent / "config.yaml", config), *overrides, **kwargs
    )


def assert_sentence(run: Run, phrases: Sequence[str], code: int = 2) -> None:
    for phrase in phrases:
        assert phrase in run.text, run.raw[-3000:]

    assert "Traceback" not in run.raw, run.raw[-3000:]
    assert run.poll() == code, run.raw[-3000:]


@pytest.mark.parametrize("name", list(CASES))
def test_bad_input_is_answered_with_a_sentence(corpus: Path, name: str) -> None:
    case = CASES[name]

    case.spoil(corpus)

    run = pretrain(corpus, *(o.replace("{corpus}", str(corpus)) for o in case.overrides))

    assert_sentence(run, case.phrases)

    leftovers = [p.name for p in corpus.parent.rglob("*") if p.suffix == ".tmp"]

    assert not leftovers, "half-written files were left"


def test_unreadable_audio_is_skipped_and_counted_where_the_policy_says_so(corpus: Path) -> None:
    cut_off(VICTIM)(corpus)

    run = pretrain(corpus, "dataset.on_bad_audio=skip")

    assert run.poll() == 0, run.raw[-3000:]

    records = read_metrics(corpus.parent / "out")

    # One utterance, in each epoch that was begun.
    assert sum(r.get("Skipped Utterances", 0) for r in records) >= 1
    assert "Skipped an utterance" in run.text
    assert VICTIM in run.text


@pytest.mark.parametrize(
    ("override", "phrase"),
    [
        ("regime.validate_every_n_steps=0", "`regime.validate_every_n_steps` must be 1 or greater"),
        ("regime.publish_metrics_every_n_steps=0", "`regime.publish_metrics_every_n_steps` must be 1 or greater"),
        ("trainer.max_grad_norm=-1", "`trainer.max_grad_norm` must be greater than 0"),
        ("common.seed=-1", "`common.seed` must be a number from 0"),
        ("optimizer.config.lr=.nan", "`optimizer.config.lr` must be a number, but is NaN"),
        ("task.config.batching.batch_seconds=.inf", "`task.config.batching.batch_seconds` must be a finite number"),
        ("trainer.mixed_precision.dtype=int8", "`trainer.mixed_precision.dtype` must be a floating-point type"),
        (
            "model.name=hubert_bas_ls960",
            "'hubert_bas_ls960' is not a known model (`model.name`). Did you mean 'hubert_base_ls960'",
        ),
        ("lr_scheduler.name=polynomial", "Did you mean 'polynomial_decay'"),
        ("model.config_overrides=5", "`model.config_overrides` must hold keys and values, but is 5"),
        ("dataset.label_rates={km: 25}", "`label_rates.km` must be 50 or 100 labels per second, but is 25"),
        ("dataset.label_rates={kn: 50}", "'kn' is not a known label set"),
        ("dataset.label_making.num_clusters=2.5", "must be a whole number, but is 2.5"),
        ("dataset.labels=km", "`dataset.labels` must be a list, such as [km], but is 'km'"),
        ("dataset.labels=[km,km]", "must name each label set once"),
        ("task.config.max_valid_batches=0", "`max_valid_batches` must be greater than or equal to 1, or null"),
        ("task.config.mask={prob: 0, min_spans: 0}", "`task.config.mask` masks nothing (`prob` and `min_spans` are 0)"),
    ],
)
def test_values_that_cannot_be_used_are_answered(corpus: Path, override: str, phrase: str) -> None:
    assert_sentence(pretrain(corpus, override), [phrase])


def test_a_score_that_validation_cannot_have_is_not_blamed_on_the_audio(corpus: Path) -> None:
    """All of it was read, but nothing was masked."""
    run = pretrain(corpus, "task.config.mask={prob: 0, min_spans: 0}", "criterion.config.alpha=0")

    assert_sentence(run, ["no value of 'masked_accuracy' (`regime.score_metric`)", "of 4 utterances that were read"])


def test_a_section_that_holds_itself_is_answered(corpus: Path) -> None:
    file = corpus.parent / "itself.yaml"

    file.write_text("dataset: &a\n  name: *a\n")

    run = command_server().pretrain(corpus.parent / "out", file)

    assert_sentence(run, ["itself.yaml' a section holds itself"])


def test_validation_without_readable_audio_is_answered(corpus: Path) -> None:
    for line in (corpus / "valid.tsv").read_text().splitlines()[1:]:
        cut_off(f"wav/{line.partition(chr(9))[0].removeprefix('wav/')}")(corpus)

    run = pretrain(corpus, "dataset.on_bad_audio=skip", "regime.validate_every_n_steps=4")

    assert_sentence(run, ["none of the audio of the validation split could be read", "dataset.valid_split"])


def test_labels_that_are_made_on_the_way_need_readable_audio(corpus: Path) -> None:
    cut_off(VICTIM)(corpus)

    run = pretrain(corpus, "dataset.labels=[]", "dataset.label_making.num_clusters=4")

    assert_sentence(run, [VICTIM])

    # Nothing that looks like a label store stands.
    assert not list(corpus.glob("labels/*/*.km"))


def test_a_new_process_answers_the_same(corpus: Path) -> None:
    """The same through the real command in a process of its own, once."""
    edit("train.tsv", replace_line(3, lambda x: x.replace("\t", " ")))(corpus)

    config = write_config(corpus.parent / "config.yaml", pretrain_config(corpus))

    result = run_command("recipe", "hubert", "pretrain", str(corpus.parent / "out"), "--config-file", str(config))

    output = " ".join((result.stdout + result.stderr).split())

    assert result.returncode == 2
    assert "found no tab" in output
    assert "Traceback" not in output


def test_record_of_labels_that_is_damaged_is_named(corpus: Path) -> None:
    (corpus / "train.km.json").write_text(json.dumps({"format": "something else"}))

    assert_sentence(pretrain(corpus), ["train.km.json", "must be a record of labels"])
