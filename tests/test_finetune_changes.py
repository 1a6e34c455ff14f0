"""What ``finetune`` answers where a checkpoint, or what was changed since a run began, does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import merge, write_config
from processes import assert_answer
from transcribed import assert_ok, finetune, finetune_config, make_transcribed, write_lines

from hubert_plugin.errors import OutputDirError
from hubert_plugin.tasks.ctc_record import UsedTexts, keep_or_check_texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_transcribed(tmp_path_factory.mktemp("bad") / "corpus", num_train=8, num_valid=2)


class TestCheckpoints:
    @pytest.fixture(scope="class")
    def recogniser(self, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp("recogniser")

        config = write_config(folder / "config.yaml", finetune_config(corpus, regime={"num_steps": 4}))

        assert_ok(finetune(folder / "out", config))

        return config, folder / "out"

    def test_output_layer_with_another_vocabulary_is_refused(
        self, corpus: Path, recogniser: tuple[Path, Path], tmp_path: Path
    ) -> None:
        config = finetune_config(
            corpus,
            pretrained=str(recogniser[1]),
            pretraining={"output_layer": "keep"},
            tokenizer={"name": "hubert_paper_letters"},
        )

        config["model"] = {}

        run = finetune(tmp_path / "out", write_config(tmp_path / "config.yaml", config))

        assert_answer(
            run,
            [
                "cannot be kept",
                "of 32 letters (<s> <pad> </s> <unk> |",
                "of 29 letters (<blank> |",
                "pretraining.output_layer=new",
            ],
        )

    def test_another_architecture_than_the_pretrained_is_refused(
        self, corpus: Path, recogniser: tuple[Path, Path], tmp_path: Path
    ) -> None:
        config = finetune_config(corpus, pretrained=str(recogniser[1]))

        config = merge(config, {"model": {"config_overrides": {"encoder": {"num_layers": 3, "model_dim": 64}}}})

        run = finetune(tmp_path / "out", write_config(tmp_path / "config.yaml", config))

        assert_answer(
            run,
            [
                "The architecture is that of the pretrained model",
                "`model.config_overrides.encoder.num_layers` is 3, but 2 in the checkpoint",
                "`model.config_overrides.encoder.model_dim` is 64, but 32 in the checkpoint",
            ],
        )

    def test_another_run_in_the_same_folder_is_refused(self, recogniser: tuple[Path, Path]) -> None:
        config, out = recogniser

        run = finetune(out, config, "tokenizer.name=hubert_paper_letters")

        assert_answer(run, ["holds another run", "`tokenizer.name` was 'hubert_fairseq_letters'"])

    def test_dictionary_that_changed_meanwhile_is_refused(self, corpus: Path, tmp_path: Path) -> None:
        path = tmp_path / "dict.ltr.txt"

        path.write_text("".join(f"{c} 1\n" for c in "|ABCDEGILOST'"))

        sections: dict[str, Any] = {"tokenizer": {"path": str(path)}, "regime": {"num_steps": 4}}

        file = write_config(tmp_path / "config.yaml", finetune_config(corpus, **sections))

        assert_ok(finetune(tmp_path / "out", file))

        path.write_text("".join(f"{c} 1\n" for c in "|ABCDEGILOST'X"))

        run = finetune(tmp_path / "out", file)

        assert_answer(
            run, ["have the vocabulary of 17 letters", "that of the tokenizer is of 18 letters", "start another run"]
        )

    def test_whole_numbers_that_changed_are_printed_as_such(self, corpus: Path, tmp_path: Path) -> None:
        sections: dict[str, Any] = {"tokenizer": {"sentencepiece": {"vocab_size": 20}}, "regime": {"num_steps": 4}}

        file = write_config(tmp_path / "config.yaml", finetune_config(corpus, **sections))

        assert_ok(finetune(tmp_path / "out", file))

        run = finetune(tmp_path / "out", file, "tokenizer.sentencepiece.vocab_size=21")

        assert_answer(run, ["`tokenizer.sentencepiece.vocab_size` was 20, but is 21 now"])


class TestChangedTranscripts:
    """Between a run and its resumption; the vocabulary is the same."""

    @pytest.fixture
    def started(self, corpus: Path, tmp_path: Path) -> tuple[Path, Path]:
        """The folder of the corpus, and the configuration of a run that has made four updates."""
        folder = tmp_path / "corpus"

        shutil.copytree(corpus, folder, copy_function=shutil.copy)

        file = write_config(tmp_path / "config.yaml", finetune_config(folder, regime={"num_steps": 4}))

        assert_ok(finetune(tmp_path / "out", file))

        return folder, file

    def test_they_are_refused_and_counted(self, started: tuple[Path, Path], tmp_path: Path) -> None:
        folder, file = started

        before = (folder / "train.wrd").read_text()

        write_lines("train.wrd", lambda x: [x[0], "ODD", *x[2:5], "EEL IT'S", *x[6:]])(folder)

        run = finetune(tmp_path / "out", file, "regime.num_steps=6")

        assert_answer(
            run,
            [
                "was started with other transcripts",
                "choose a new output folder",
                f"the split 'train' ('{folder / 'train.wrd'}'): 2 of 8 transcripts differ, the first in line 2",
            ],
        )

        assert "the split 'valid'" not in run.text

        # What normalisation takes away is no change; nor is it any to bring the old file back.
        (folder / "train.wrd").write_text(before.lower())

        assert_ok(finetune(tmp_path / "out", file, "regime.num_steps=6"))

    def test_runs_without_a_record_go_on_and_have_one_then(self, started: tuple[Path, Path], tmp_path: Path) -> None:
        folder, file = started

        (tmp_path / "out/transcripts.json").unlink()

        write_lines("valid.wrd", lambda x: ["ODD", *x[1:]])(folder)

        assert_ok(finetune(tmp_path / "out", file, "regime.num_steps=6"))

        write_lines("valid.wrd", lambda x: ["EEL", *x[1:]])(folder)

        run = finetune(tmp_path / "out", file, "regime.num_steps=8")

        assert_answer(run, ["the split 'valid'", "1 of 2 transcripts differs, the first in line 1"])


class TestRecordOfTranscripts:
    def check(self, folder: Path, texts: Sequence[str], *, resumed: bool = True) -> None:
        used = UsedTexts(Path("train.wrd"), texts, range(1, len(texts) + 1))

        keep_or_check_texts(folder, {"train": used}, resumed=resumed, is_first=True)

    def test_another_number_is_refused(self, tmp_path: Path) -> None:
        self.check(tmp_path, ["A", "\u00c4 B"], resumed=False)
        self.check(tmp_path, ["A", "\u00c4 B"])

        with pytest.raises(OutputDirError, match=r"'train' \('train.wrd'\): 2 transcripts took part, but 3 now"):
            self.check(tmp_path, ["A", "\u00c4 B", "C"])

    def test_change_without_checksums_is_refused(self, tmp_path: Path) -> None:
        self.check(tmp_path, ["A"], resumed=False)

        file = tmp_path / "transcripts.json"

        record = json.loads(file.read_text())

        record["splits"]["train"]["digest"] = "0123456789abcdef"

        file.write_text(json.dumps(record))

        with pytest.raises(OutputDirError, match=r"the digest was 0123456789abcdef, but is [0-9a-f]{16} now"):
            self.check(tmp_path, ["A"])

    @pytest.mark.parametrize("content", ["", "[]", '{"splits": {"train": {}}}', '{"splits": {"train": 1}}'])
    def test_damaged_record_is_named(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "transcripts.json").write_text(content)

        with pytest.raises(OutputDirError, match=r"transcripts.json', which says .* cannot be used"):
            self.check(tmp_path, ["A"])

    def test_a_run_that_begins_anew_keeps_its_own(self, tmp_path: Path) -> None:
        self.check(tmp_path, ["A"], resumed=False)
        self.check(tmp_path, ["B"], resumed=False)
        self.check(tmp_path, ["B"])
