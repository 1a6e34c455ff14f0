"""The recipe writes manifests that can be read, tells what it did, and overwrites nothing that it did not make."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from hubert_plugin.data.manifest import list_splits, manifest_aside, read_manifest
from hubert_plugin.errors import AudioError, ConfigError, ManifestError, OutputDirError, StorageError
from hubert_plugin.recipes.hubert.manifest.config import ManifestRecipeConfig
from hubert_plugin.recipes.hubert.manifest.recipe import ManifestRecipe


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    for speaker in range(6):
        for idx in range(3):
            path = tmp_path / f"speech/{speaker}/1/{speaker}-1-{idx}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)

            num_channels = 1 + (speaker == 2)

            soundfile.write(path, rng.standard_normal((4000 + 100 * idx, num_channels)) * 0.1, 8000 * (1 + idx % 2))

    return tmp_path / "speech"


class FakeGang:
    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.num_barriers = 0

    def barrier(self) -> None:
        self.num_barriers += 1


def run(out: Path, config: ManifestRecipeConfig, rank: int = 0) -> FakeGang:
    gang = FakeGang(rank)

    context: Any = SimpleNamespace(
        get_config_as=lambda _: config,
        output_dir=out,
        progress_reporter=NOOP_PROGRESS_REPORTER,
        gangs=SimpleNamespace(root=gang),
    )

    ManifestRecipe().create_task(context).run()

    return gang


def test_the_command_makes_manifests_from_a_folder(tmp_path: Path, source: Path) -> None:
    (source / "broken.wav").write_text("no audio")

    command = [sys.executable, "-m", "hubert_plugin.recipes.hubert.manifest", str(tmp_path / "out"), "--no-rich"]
    command += ["--config", f"source={source}", "on_error=skip", "valid_fraction=0.3"]

    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert result.returncode == 0, result.stderr

    ids = []

    for split in ("train", "valid"):
        manifest = read_manifest(tmp_path / "out", split)

        assert manifest.root == source

        for ref, size in zip(manifest.ids, manifest.sizes, strict=True):
            info = soundfile.info(source / ref)

            assert size == info.frames * 16000 // info.samplerate

        ids += manifest.ids

    assert sorted(ids) == sorted(str(p.relative_to(source)) for p in source.glob("*/*/*.wav"))

    assert (tmp_path / "out/skipped.tsv").read_text().startswith("broken.wav\t")

    log = result.stderr + result.stdout

    for words in (
        "1 file(s) were skipped",
        "8000 Hz (12), 16000 Hz (6)",
        "3 utterance(s) have several channels",
        f"fairseq2 recipe hubert pretrain runs/mine --config dataset.manifest_dir={tmp_path / 'out'}",
    ):
        assert words in log


def test_speakers_are_kept_apart_and_the_summary_says_what_was_done(tmp_path: Path, source: Path) -> None:
    gang = run(tmp_path / "out", ManifestRecipeConfig(source=source, speaker_pattern="^([0-9])/", valid_fraction=0.3))

    assert gang.num_barriers == 1

    sides = [read_manifest(tmp_path / "out", s) for s in ("train", "valid")]

    assert not {i[0] for i in sides[0].ids} & {i[0] for i in sides[1].ids}

    summary = json.loads((tmp_path / "out/manifest.json").read_text())

    assert summary["speakers"] == 6
    assert summary["sample_rates"] == {"8000": 12, "16000": 6}
    assert summary["multichannel"] == 3
    assert summary["options"]["source"] == str(source)

    for manifest in sides:
        assert summary["splits"][manifest.split]["fingerprint"] == manifest.fingerprint
        assert summary["splits"][manifest.split]["utterances"] == len(manifest)
        assert summary["splits"][manifest.split]["hours"] == pytest.approx(manifest.hours, abs=1e-4)


def test_the_same_command_writes_the_same_bytes(tmp_path: Path, source: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, ManifestRecipeConfig(source=source))

    run(tmp_path / "a", ManifestRecipeConfig(source=source))

    for name in ("train.tsv", "valid.tsv", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_processes_wait_and_write_nothing(tmp_path: Path, source: Path) -> None:
    assert run(tmp_path / "out", ManifestRecipeConfig(source=source), rank=1).num_barriers == 1

    assert not (tmp_path / "out").exists()


def test_no_validation_means_no_file_not_even_an_old_one(tmp_path: Path, source: Path) -> None:
    config = ManifestRecipeConfig(source=source)

    run(tmp_path, config)

    assert list_splits(tmp_path) == ["train", "valid"]

    run(tmp_path, replace(config, valid_fraction=0.0, overwrite=True))

    assert list_splits(tmp_path) == ["train"]
    assert len(read_manifest(tmp_path, "train")) == 18


def test_manifests_of_another_origin_are_not_overwritten(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.tsv").write_text("mine")

    config = ManifestRecipeConfig(source=source)

    with pytest.raises(OutputDirError, match=r"already holds train\.tsv, but no 'manifest\.json'"):
        run(out, config)

    assert os.listdir(out) == ["train.tsv"]

    run(out, replace(config, overwrite=True))

    before = {p.name: p.read_bytes() for p in out.iterdir()}

    with pytest.raises(OutputDirError, match="`seed` was 1, is 2"):
        run(out, replace(config, seed=2))

    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_validation_may_come_from_another_place(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()

    soundfile.write(other / "v.wav", np.zeros(5_000), 16_000)

    config = ManifestRecipeConfig(source=source, valid_source=other)

    run(tmp_path / "out", config)

    train, valid = (read_manifest(tmp_path / "out", s) for s in ("train", "valid"))

    assert (len(train), valid.ids, valid.root) == (18, ["v.wav"], other)

    with pytest.raises(OutputDirError, match="`valid_source` was"):
        run(tmp_path / "out", replace(config, valid_source=None))


def test_a_kaldi_folder_leaves_ids_and_words_and_other_folders_leave_none(tmp_path: Path, source: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()

    paths = sorted(source.glob("*/1/*.wav"))

    (data / "wav.scp").write_text("".join(f"utt-{p.stem} cat {p} |\n" for p in paths))
    (data / "utt2spk").write_text("".join(f"utt-{p.stem} {p.stem[0]}\n" for p in paths))
    (data / "text").write_text("".join(f"utt-{p.stem} SAY {p.stem}\n" for p in paths))

    config = ManifestRecipeConfig(source=data, valid_fraction=0.3)

    with pytest.raises(ManifestError, match="is a command"):
        run(out, config)

    assert not out.exists()

    config = replace(config, allow_pipes=True)

    run(out, config)

    speakers = []

    for split in ("train", "valid"):
        manifest = read_manifest(out, split)

        ids = (out / f"{split}.ids.txt").read_text().splitlines()

        assert manifest.root == out / "audio"

        # What a command wrote is kept under the recording's name and a digest of the command.
        assert [re.sub(r"-[0-9a-f]{8}(?=\.wav$)", "", i) for i in manifest.ids] == [f"{i}.wav" for i in ids]
        assert all(re.search(r"-[0-9a-f]{8}\.wav$", i) for i in manifest.ids)
        assert (out / f"{split}.wrd").read_text().splitlines() == [f"SAY {i[4:]}" for i in ids]

        speakers.append({i[4] for i in ids})

    assert speakers[0] and speakers[1] and not speakers[0] & speakers[1]

    run(out, replace(config, source=source, overwrite=True))

    assert not list(out.glob("*.ids.txt")) and not list(out.glob("*.wrd"))


def test_manifests_of_two_runs_are_never_there_together(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full leaves both as they were; a kill between the two leaves no training part."""
    out, config = tmp_path / "out", ManifestRecipeConfig(source=source, valid_fraction=0.3)

    def present() -> dict[str, str]:
        return {p.name: p.read_text() for p in out.iterdir() if p.suffix in (".tsv", ".json")}

    run(out, config)

    before = present()

    again = replace(config, seed=config.seed + 1, overwrite=True)

    def fail(path: Path, *args: object) -> object:
        if path.name == "valid.tsv":
            raise StorageError("No space left.")

        return manifest_aside(path, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("hubert_plugin.recipes.hubert.manifest.output.manifest_aside", fail)

        with pytest.raises(StorageError):
            run(out, again)

    assert present() == before

    real_replace = os.replace

    def die(source: Path, target: Path) -> None:
        real_replace(source, target)

        if Path(target).name == "valid.tsv":
            os.kill(os.getpid(), signal.SIGKILL)

    if (pid := os.fork()) == 0:
        monkeypatch.setattr(os, "replace", die)
        run(out, again)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    assert "train.tsv" not in present() and present()["valid.tsv"] != before["valid.tsv"]

    run(out, again)

    assert sorted(present()) == sorted(before) and present()["train.tsv"] != before["train.tsv"]


def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"

    with pytest.raises(ConfigError, match=r"`source`.*fairseq2 recipe hubert manifest .*out --config source="):
        run(out, ManifestRecipeConfig())

    with pytest.raises(ConfigError, match="must have a group"):
        run(out, ManifestRecipeConfig(source=source, speaker_pattern="x"))

    with pytest.raises(ConfigError, match=r"no path.*'0/1/0-1-0\.wav'"):
        run(out, ManifestRecipeConfig(source=source, speaker_pattern="spk_([a-z])"))

    (tmp_path / "nothing").mkdir()

    with pytest.raises(ManifestError, match=r"No audio was found under.*nothing'.*\.wav"):
        run(out, ManifestRecipeConfig(source=tmp_path / "nothing"))

    (source / "broken.wav").touch()

    with pytest.raises(AudioError, match=r"broken\.wav"):
        run(out, ManifestRecipeConfig(source=source))

    assert not out.exists()


def test_values_out_of_range_are_told_at_once() -> None:
    config = ManifestRecipeConfig(
        valid_fraction=1.0, min_seconds=2.0, max_seconds=1.0, num_workers=0, extensions=["WAV"]
    )

    with pytest.raises(ValidationError) as info:
        StandardObjectValidator().validate(config)

    for name in ("valid_fraction", "max_seconds", "num_workers", "extensions"):
        assert name in str(info.value)
