"""Output folders, checkpoints and full disks: what stands is never damaged, and the answer says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from builders import make_corpus, make_labels, pretrain_config, speech_like, write_config
from processes import Run, command_server

from hubert_plugin import load_hubert
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.errors import CheckpointError


@dataclass
class Trained:
    """A run of 8 steps with checkpoints at 4 and 8."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def pretrain(self, *overrides: str, **kwargs: object) -> Run:
        return command_server().pretrain(self.out, self.folder / "config.yaml", *overrides, **kwargs)

    def step(self, nr: int) -> Path:
        return self.out / "checkpoints" / f"step_{nr}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = Trained(tmp_path_factory.mktemp("trained"))

    make_corpus(trained.corpus)

    regime = {"num_steps": 8, "checkpoint_every_n_steps": 4, "keep_last_n_checkpoints": 2}

    write_config(trained.folder / "config.yaml", pretrain_config(trained.corpus, regime=regime))

    run = trained.pretrain()

    assert run.poll() == 0, run.raw[-3000:]

    return trained


@pytest.fixture
def trained(original: Trained, tmp_path: Path) -> Trained:
    """A copy of the run's folder, in the same place for its configuration."""
    shutil.copytree(original.out, tmp_path / "out")
    shutil.copy(original.folder / "config.yaml", tmp_path / "config.yaml")

    return Trained(tmp_path)


def assert_sentence(run: Run, phrases: Sequence[str], code: int = 2) -> None:
    for phrase in phrases:
        assert phrase in run.text, run.raw[-3000:]

    assert "Traceback" not in run.raw, run.raw[-3000:]
    assert run.poll() == code, run.raw[-3000:]


def contents(folder: Path, *, but: Sequence[str] = ("logs", "cache")) -> Mapping[str, bytes]:
    """All files of a folder; logs may grow."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.relative_to(folder).parts[0] not in but
    }


@pytest.mark.parametrize(
    ("overrides", "phrases"),
    [
        (["model.config_overrides.ffn_dim=32"], ["holds another run", "`model.config_overrides.ffn_dim` was 64"]),
        (["dataset.train_split=valid"], ["holds another run", "`dataset.train_split` was 'train'", "'valid' now"]),
        (["criterion.config.alpha=1.0"], ["holds another run", "`criterion.config.alpha`"]),
        (["task.config.mask.span_len=6"], ["holds another run", "`task.config.mask.span_len`"]),
        (["optimizer.name=adamw", "set:optimizer.config={}"], ["holds another run", "`optimizer.name` was 'muon'"]),
    ],
)
def test_folder_of_another_run_is_refused_and_untouched(
    trained: Trained, overrides: Sequence[str], phrases: Sequence[str]
) -> None:
    before = contents(trained.out)

    assert_sentence(trained.pretrain(*overrides), [*phrases, str(trained.out)])

    assert contents(trained.out) == before


def test_folder_of_another_verb_is_refused_and_untouched(original: Trained, tmp_path: Path) -> None:
    run = command_server().run(
        "recipe", "hubert", "cluster", tmp_path, "--no-rich", "--config", f"manifest_dir={original.corpus}",
        "units.config.num_clusters=4",
    )  # fmt: skip

    assert run.poll() == 0, run.raw[-3000:]

    before = contents(tmp_path)

    run = command_server().pretrain(tmp_path, original.folder / "config.yaml")

    assert_sentence(run, ["another recipe", str(tmp_path), "Choose another folder"])

    assert contents(tmp_path) == before


def test_output_folder_that_is_a_file_is_refused(original: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")

    run = command_server().pretrain(tmp_path / "out", original.folder / "config.yaml")

    assert_sentence(run, ["is a file"])

    assert (tmp_path / "out").read_text() == "precious"


def test_more_steps_and_another_learning_rate_are_the_same_run(trained: Trained) -> None:
    run = trained.pretrain("regime.num_steps=10", "optimizer.config.lr=0.0005")

    assert run.poll() == 0, run.raw[-3000:]
    assert "Resuming from step 8." in run.raw


@pytest.mark.parametrize("part", ["model", "optimizer", "trainer", "data_reader"])
def test_checkpoint_that_was_cut_off_is_named_and_the_others_stay(trained: Trained, part: str) -> None:
    (file,) = (trained.step(8) / part).rglob("*.pt")

    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    before = contents(trained.out)

    run = trained.pretrain("regime.num_steps=10")

    assert_sentence(run, [str(file), "cut off", f"Delete the folder '{trained.step(8)}'", "from step 4"])

    assert contents(trained.out / "checkpoints") == {
        k.removeprefix("checkpoints/"): v for k, v in before.items() if k.startswith("checkpoints/")
    }

    if part == "model":
        with pytest.raises(CheckpointError, match="cut off or damaged"):
            load_hubert(trained.out)

    assert load_hubert(trained.out, step=4).config.model_dim == 32

    # The advice helps.
    shutil.rmtree(trained.step(8))

    run = trained.pretrain()

    assert run.poll() == 0, run.raw[-3000:]
    assert "Resuming from step 4." in run.raw


def test_checkpoint_that_lacks_a_part_is_named(trained: Trained) -> None:
    shutil.rmtree(trained.step(8) / "optimizer")

    assert_sentence(
        trained.pretrain("regime.num_steps=10"),
        ["step 8 is damaged", f"'{trained.step(8) / 'optimizer'}'", f"Delete the folder '{trained.step(8)}'"],
    )


def test_checkpoint_with_other_contents_than_were_written_is_named(trained: Trained) -> None:
    (file,) = (trained.step(8) / "optimizer").rglob("*.pt")

    data = bytearray(file.read_bytes())

    data[len(data) // 2 : len(data) // 2 + 512] = bytes(512)

    file.write_bytes(data)

    assert_sentence(
        trained.pretrain("regime.num_steps=10"),
        [str(file), "other contents than were written", f"Delete the folder '{trained.step(8)}'"],
    )


def test_score_that_is_no_number_is_named(trained: Trained) -> None:
    file = trained.out / "checkpoints/scores/step_8.txt"

    assert file.exists()

    file.write_text("much\n")

    assert_sentence(trained.pretrain("regime.num_steps=10"), [str(file), "holds 'much'", "Delete the file"])

    file.unlink()

    run = trained.pretrain("regime.num_steps=10")

    assert run.poll() == 0, run.raw[-3000:]


@pytest.mark.parametrize("text", ["", "model: [", "\x00\x00"])
def test_configuration_of_a_run_that_was_killed_while_it_was_written_is_written_anew(
    trained: Trained, text: str
) -> None:
    (trained.out / "config.yaml").write_text(text)

    run = trained.pretrain("regime.num_steps=9")

    assert run.poll() == 0, run.raw[-3000:]
    assert "is taken for that of this run" in run.text
    assert "Resuming from step 8." in run.raw
    assert "config_overrides" in (trained.out / "config.yaml").read_text()


def test_configuration_that_lacks_its_end_is_told_from_that_of_another_recipe(trained: Trained) -> None:
    file = trained.out / "config.yaml"

    # In the order of its sections, which begins with those of the model.
    file.write_text(file.read_text().partition("\ntask:")[0] + "\n")

    assert_sentence(trained.pretrain("regime.num_steps=9"), ["or a damaged one", "has no 'task'"])


def test_resuming_with_an_optimizer_of_another_form_is_answered(trained: Trained) -> None:
    """The name is compared; what else does not fit is found when its state is restored."""
    (file,) = (trained.step(8) / "optimizer").rglob("*.pt")

    # A file of our own run; what fairseq2 keeps in it is more than tensors.
    state = torch.load(file, weights_only=False)

    def double(value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if key == "param_groups":
                    item.append(dict(item[0]))

                double(item)

    double(state)

    torch.save(state, file)

    assert_sentence(
        trained.pretrain("regime.num_steps=10"), ["cannot go on from its last checkpoint", "parameter group"]
    )


def test_resuming_a_sharded_run_with_whole_parameters_is_refused(trained: Trained) -> None:
    """What FSDP wrote is in as many parts as there were ranks."""
    (shard,) = (trained.step(8) / "model").rglob("sdp_00.pt")

    shard.with_name("sdp_01.pt").write_bytes(shard.read_bytes())

    assert_sentence(trained.pretrain("regime.num_steps=10"), ["step_8", "sharded over 2 processes", "is to be whole"])


def test_resuming_with_smaller_batches_is_what_the_answer_to_short_memory_says(trained: Trained) -> None:
    run = trained.pretrain("regime.num_steps=10", "task.config.batching.batch_seconds=3.0")

    assert run.poll() == 0, run.raw[-3000:]
    assert "Resuming from step 8." in run.raw


def test_validation_split_of_short_utterances_only_is_named_before_training(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_valid=1, seconds=(1.0, 2.3), seed=3)

    longest = read_manifest(corpus, "valid").sizes.max() / 16_000 + 0.01

    assert longest < 2.4 and (read_manifest(corpus, "train").sizes / 16_000 > longest).sum() > 5

    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus))

    run = command_server().pretrain(tmp_path / "out", config, f"task.config.batching.min_seconds={longest}")

    assert_sentence(run, ["'valid'", "no utterance of at least", "min_seconds", "valid_split=null"])


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_full_disk_while_a_checkpoint_is_written_leaves_the_previous_one_valid(trained: Trained, share: float) -> None:
    """PyTorch says other things where it is the last write that fails."""
    before = contents(trained.out / "checkpoints")

    size = max(len(v) for v in before.values())

    run = trained.pretrain("regime.num_steps=16", max_file_bytes=int(size * share))

    assert_sentence(run, ["could not be written", "free space", "same command"])

    after = contents(trained.out / "checkpoints")

    assert {k: after[k] for k in before} == before

    assert not [k for k in after.keys() - before.keys() if not k.startswith("step_12.tmp")]

    assert load_hubert(trained.out).config.model_dim == 32

    # With space again, the same command goes on.
    run = trained.pretrain("regime.num_steps=16")

    assert run.poll() == 0, run.raw[-3000:]
    assert "Resuming from step 8." in run.raw
    assert trained.step(16).exists()


def test_full_disk_while_labels_are_written_leaves_the_previous_ones_valid(tmp_path: Path) -> None:
    """Labels of ten minutes, by another unit model: more bytes than any other file of the command."""
    waveform = speech_like(600.0, 0, np.random.default_rng(0))

    sf.write(tmp_path / "long.flac", waveform, 16_000)

    write_manifest(tmp_path / "train.tsv", ".", [("long.flac", waveform.size)])

    server = command_server()

    data = f"manifest_dir={tmp_path}"

    for seed in (0, 1):
        run = server.run(
            "recipe", "hubert", "cluster", tmp_path / f"units{seed}", "--no-rich",
            "--config", data, f"seed={seed}", "units.config.num_clusters=12", "units.config.max_frames=5000",
        )  # fmt: skip

        assert run.poll() == 0, run.raw[-3000:]

    args = ["recipe", "hubert", "label", tmp_path / "labels", "--no-rich", "--config", data]

    assert server.run(*args, f"unit_model={tmp_path / 'units0/units.safetensors'}").poll() == 0

    before = contents(tmp_path / "labels", but=("logs", "cache", "config.yaml"))

    assert len(before["train.km"]) > 100_000

    args += [f"unit_model={tmp_path / 'units1/units.safetensors'}", "overwrite=true"]

    run = server.run(*args, max_file_bytes=50_000)

    assert_sentence(run, ["labels/train.", "cannot be written", "untouched", "free space"])

    assert contents(tmp_path / "labels", but=("logs", "cache", "config.yaml")) == before


def test_full_disk_while_labels_are_made_on_the_way(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=10, seconds=(20.0, 30.0), label_sets={})

    config = write_config(
        tmp_path / "config.yaml",
        pretrain_config(corpus, dataset={"labels": [], "label_making": {"num_clusters": 12}}),
    )

    run = command_server().pretrain(tmp_path / "out", config, max_file_bytes=40_000)

    assert_sentence(run, ["train.km", "cannot be written", "free space"])

    assert not [p.name for p in corpus.glob("labels/*/*") if p.name.startswith("train.km")]

    run = command_server().pretrain(tmp_path / "out", config, "regime.num_steps=3")

    assert run.poll() == 0, run.raw[-3000:]


def test_labels_of_another_rate_need_no_word_where_their_record_tells(original: Trained, tmp_path: Path) -> None:
    """100 Hz labels (MFCC units) train as they are: every second one is taken (trap T7)."""
    corpus = shutil.copytree(original.corpus, tmp_path / "corpus")

    for split in ("train", "valid"):
        make_labels(corpus, split, "km", 8, rate=100)

    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 3}))

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 0, run.raw[-3000:]
