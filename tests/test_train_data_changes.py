"""What a training answers where its data changed, or were moved, since it was started; and where none are named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_corpus, make_labels, pretrain_config, write_config
from fairseq2.gang import create_fake_gangs
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from processes import Run, command_server
from transcribed import assert_ok, finetune, finetune_config, make_transcribed

from hubert_plugin.data.label_convert import convert_labels
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.demo import DemoCorpusConfig
from hubert_plugin.errors import OutputDirError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.tasks import demo_corpus
from hubert_plugin.tasks.data_record import UsedData, keep_or_check
from hubert_plugin.tasks.demo_corpus import make_demo_corpus
from hubert_plugin.tasks.output_dir import _changes


def pretrain(out: Path, corpus: Path | str, num_steps: int = 2) -> Run:
    config = pretrain_config(
        Path(corpus),
        regime={"num_steps": num_steps, "checkpoint_every_n_steps": 2, "validate_every_n_steps": 2},
        lr_scheduler={"config": {"num_warmup_steps": 1}},
    )

    return command_server().pretrain(out, write_config(out.parent / "config.yaml", config))


def assert_refused(run: Run, *phrases: str) -> None:
    for phrase in phrases:
        assert phrase in run.text, run.raw[-3000:]

    assert run.poll() == 2 and "Traceback" not in run.raw, run.raw[-3000:]


class TestPretrain:
    @pytest.fixture(scope="class")
    def started(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with a corpus, and a run on it that has made two updates."""
        folder = tmp_path_factory.mktemp("started")

        make_corpus(folder / "corpus", num_train=8, num_valid=2)

        assert_ok(pretrain(folder / "out", folder / "corpus"))

        return folder

    @pytest.fixture
    def out(self, started: Path, tmp_path: Path) -> Path:
        return shutil.copytree(started / "out", tmp_path / "out")

    def test_other_labels_are_refused_and_the_run_stays_as_it_is(
        self, started: Path, out: Path, tmp_path: Path
    ) -> None:
        corpus = shutil.copytree(started / "corpus", tmp_path / "corpus")

        make_labels(corpus, "train", seed=1)

        before = (out / "config.yaml").read_bytes(), (out / "data.json").read_bytes()

        assert_refused(
            pretrain(out, corpus, 3),
            "was started with other data",
            "the labels 'km' of the split 'train' had the digest",
            "choose a new output folder",
        )

        assert ((out / "config.yaml").read_bytes(), (out / "data.json").read_bytes()) == before

    def test_data_that_were_moved_are_the_same(self, started: Path, out: Path, tmp_path: Path) -> None:
        assert_ok(pretrain(out, shutil.copytree(started / "corpus", tmp_path / "moved"), 3))

    def test_a_run_without_a_record_goes_on_with_the_same_folder_and_has_one_then(
        self, started: Path, out: Path, tmp_path: Path
    ) -> None:
        (out / "data.json").unlink()

        assert_refused(
            pretrain(out, shutil.copytree(started / "corpus", tmp_path / "moved"), 3),
            "holds another run",
            "`dataset.manifest_dir` was",
        )

        assert_ok(pretrain(out, os.path.relpath(started / "corpus"), 3))

        assert (out / "data.json").is_file()


def test_finetuning_on_another_corpus_is_refused_and_on_one_that_was_moved_goes_on(tmp_path: Path) -> None:
    def train(corpus: Path, num_steps: int) -> Run:
        config = finetune_config(corpus, regime={"num_steps": num_steps})

        return finetune(tmp_path / "out", write_config(tmp_path / "config.yaml", config))

    corpus = make_transcribed(tmp_path / "corpus", num_train=8, num_valid=2)

    assert_ok(train(corpus, 2))

    other = make_transcribed(tmp_path / "other", num_train=7, num_valid=2)

    assert_refused(
        train(other, 3), "the manifest of the split 'train'", "(8 utterances)", "other/train.tsv'", "(7 utterances)"
    )

    assert_ok(train(shutil.copytree(corpus, tmp_path / "moved"), 3))


class TestRecord:
    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Path:
        corpus = make_corpus(tmp_path / "corpus", num_train=2, num_valid=1)

        label(corpus, corpus, "aaaa")

        return corpus

    def check(self, corpus: Path, labels: Path, *, resumed: bool = True, is_first: bool = True) -> None:
        manifest = read_manifest(corpus, "train")

        used = UsedData(manifest, [open_labels(labels, "train", "km", manifest)])

        keep_or_check(corpus.parent, {"train": used}, resumed=resumed, is_first=is_first)

    def test_only_the_first_rank_writes(self, corpus: Path) -> None:
        self.check(corpus, corpus, resumed=False, is_first=False)

        assert not (corpus.parent / "data.json").exists()

    def test_labels_of_another_unit_model_are_refused(self, corpus: Path, tmp_path: Path) -> None:
        self.check(corpus, corpus, resumed=False)

        # The same units: what they stand for is another thing.
        label(corpus, tmp_path / "labels", "bbbb")

        with pytest.raises(OutputDirError, match=r"'km' of the split 'train' came from the unit model aaaa.* bbbb"):
            self.check(corpus, tmp_path / "labels")

    def test_labels_in_the_other_form_are_the_same_if_their_unit_model_tells(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        self.check(corpus, corpus, resumed=False)

        convert_labels(corpus, tmp_path / "binary", "km", read_manifest(corpus, "train"), form="binary")

        self.check(corpus, tmp_path / "binary")

    def test_labels_that_lost_their_sidecar_are_the_same(self, corpus: Path) -> None:
        self.check(corpus, corpus, resumed=False)

        (corpus / "train.km.json").unlink()

        self.check(corpus, corpus)

    @pytest.mark.parametrize("content", ["", "[]", '{"splits": {"train": {}}}', '{"splits": {"train": 1}}'])
    def test_a_damaged_record_is_named(self, content: str, corpus: Path) -> None:
        (corpus.parent / "data.json").write_text(content)

        with pytest.raises(OutputDirError, match=r"data.json', which says .* cannot be used"):
            self.check(corpus, corpus)


def label(corpus: Path, folder: Path, unit_model: str) -> None:
    manifest = read_manifest(corpus, "train")

    units = [np.arange((n - 400) // 320 + 1, dtype=np.int32) % 8 for n in manifest.sizes.tolist()]

    write_labels(folder, "train", LabelSetSpec("km", 8, 50), units, manifest, {"unit_model_fingerprint": unit_model})


def test_a_run_without_a_manifest_says_that_it_is_of_the_demo_corpus(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo_corpus, "ensure_demo_corpus", lambda config, **kwargs: tmp_path)

    with caplog.at_level("INFO"):
        gangs = create_fake_gangs(torch.device("cpu"))

        assert make_demo_corpus(DemoCorpusConfig(), gangs, NOOP_PROGRESS_REPORTER) == tmp_path

    assert "No manifest is named (`dataset.manifest_dir`): training on the embedded demo corpus." in caplog.text


@pytest.mark.parametrize("spell", [str, os.path.relpath, lambda p: f"{p}/../{p.name}/"])
def test_the_same_place_in_other_words_is_no_change(spell: Callable[[Path], str], tmp_path: Path) -> None:
    key = "dataset.manifest_dir"

    assert _changes(str(tmp_path), spell(tmp_path), key, frozenset()) == []

    assert len(_changes(str(tmp_path), spell(tmp_path.parent), key, frozenset())) == 1


def test_with_a_record_places_may_change_but_a_card_is_no_place() -> None:
    recorded = {"dataset.manifest_dir", "dataset.label_dir"}

    before, now = {"manifest_dir": "a", "label_dir": None}, {"manifest_dir": "b", "label_dir": "c"}

    assert _changes(before, now, "dataset", recorded) == []

    (change,) = _changes({"manifest_dir": "a"}, {"manifest_dir": None}, "dataset", recorded)

    assert change == "`dataset.manifest_dir` was 'a', but is None now"
