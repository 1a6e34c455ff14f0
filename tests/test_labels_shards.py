"""Labelling in pieces: killed, sharded over ranks and over array jobs, the labels are those of one unbroken run."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from processes import command_server, start_ranks, wait_until
from tiny_labels import leftovers

from hubert_plugin.data.label_convert import read_kaldi_labels
from hubert_plugin.data.labels import open_labels
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import KMeansUnitModel


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")

    rng = np.random.default_rng(0)

    (folder / "wav").mkdir()

    rows = []

    for i in range(48):
        n = int(rng.integers(8 * 16_000, 12 * 16_000))

        sf.write(folder / f"wav/{i:02}.wav", 0.1 * rng.standard_normal(n), 16_000)

        rows.append((f"{i:02}.wav", n))

    write_manifest(folder / "train.tsv", "wav", rows)
    write_manifest(folder / "valid.tsv", "wav", rows[:3])

    source = MfccSource(MfccConfig(rate=100))

    codebooks = {
        LabelSetSpec(f"km{k}", k, 100): rng.standard_normal((k, source.dim)).astype(np.float32) * 10 for k in (5, 20)
    }

    KMeansUnitModel(codebooks, {}).save(folder / "units.safetensors")

    return folder


@pytest.fixture(scope="module")
def unbroken(corpus: Path) -> dict[str, bytes]:
    run = command_server().run(*label_args(corpus, corpus / "unbroken"))

    assert run.poll() == 0, run.raw

    return labels_in(corpus / "unbroken")


def label_args(corpus: Path, out: Path, *more: str, splits: str = "[train, valid]") -> list[str]:
    return [
        *("recipe", "hubert", "label", str(out), "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"unit_model={corpus}/units.safetensors", f"splits={splits}", "num_workers=1", *more),
    ]


def labels_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith(("train.", "valid.", "dict."))}


def test_a_killed_run_goes_on_with_what_is_finished(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"

    pieces_made: dict[str, int] = {}

    for _ in range(3):
        run = command_server().start(*label_args(corpus, out))

        num_before = len(pieces_made)

        # Killed at a moment that is not chosen: some time after another piece was finished.
        wait_until(lambda: len(list(out.glob("train.*.pieces/*.safetensors"))) > num_before, run=run)  # noqa: B023

        time.sleep(random.Random(num_before).uniform(0.0, 0.02))

        run.kill()

        now = {p.name: p.stat().st_mtime_ns for p in out.glob("train.*.pieces/*.safetensors")}

        # What was finished before was not made again.
        assert {k: now[k] for k in pieces_made} == pieces_made and len(now) > num_before

        pieces_made = now

    assert not (out / "train.km5").exists()

    (folder,) = out.glob("train.*.pieces")

    (folder / ".00000000-00000006.safetensors.abcd1234.tmp").touch()  # in case that no kill met a write
    (out / ".train.km5.abcd1234.tmp").touch()

    run = command_server().run(*label_args(corpus, out))

    assert run.poll() == 0, run.raw
    assert "pieces were finished before" in run.text

    assert labels_in(out) == unbroken and leftovers(out) == []

    # The same command once more has nothing to do, and does nothing.
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("*.km*")}

    (out / "labels.lock").touch()  # killed at the very last moment

    run = command_server().run(*label_args(corpus, out))

    assert run.poll() == 0 and "are there already, and fit" in run.text
    assert leftovers(out) == []
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.km*")} == stamps


def test_jobs_of_an_array_leave_the_labels_of_one_run(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    runs = [
        command_server().start(*label_args(corpus, tmp_path, "num_shards=3", f"shard={i}", splits="[train, valid]"))
        for i in (2, 0)
    ]

    for run in runs:
        assert run.wait() == 0, run.raw
        assert "whoever finishes the last one joins them" in run.text

    assert not (tmp_path / "train.km5").exists()

    run = command_server().run(*label_args(corpus, tmp_path, "num_shards=3", "shard=1"))

    assert run.poll() == 0, run.raw

    assert labels_in(tmp_path) == unbroken and leftovers(tmp_path) == []


def test_two_ranks_leave_the_labels_of_one(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    for run in start_ranks(label_args(corpus, tmp_path), 2):
        assert run.wait() == 0, run.raw

    assert labels_in(tmp_path) == unbroken and leftovers(tmp_path) == []


def test_a_rank_that_fails_ends_the_others_and_keeps_what_is_finished(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    broken = tmp_path / "corpus"

    shutil.copytree(corpus, broken, ignore=shutil.ignore_patterns("unbroken"))

    victim = broken / "wav/40.wav"

    data = victim.read_bytes()

    victim.write_bytes(data[:1000])

    out = tmp_path / "out"

    args = label_args(broken, out, splits="[train]")

    runs = start_ranks(args, 2)

    assert [run.wait() for run in runs] == [2, 2], [run.raw for run in runs]

    # Ranks beyond the first tell their story to a file only.
    texts = [" ".join(p.read_text().split()) for p in (out / "logs").glob("rank_*.log")]

    assert sum("40.wav' is truncated" in t for t in texts) == 1
    assert sum("Another process of this job failed" in t for t in texts) == 1

    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("train.*.pieces/*.safetensors")}

    assert kept and not (out / "train.km5").exists()

    victim.write_bytes(data)

    run = command_server().start(*args)

    assert run.wait() == 0, run.raw
    assert f"{len(kept)} of" in run.text and leftovers(out) == []

    assert labels_in(out) == {k: v for k, v in unbroken.items() if not k.startswith("valid.")}


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_space(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, splits="[train]"), max_file_bytes=60_000)

    assert run.poll() == 2 and "cannot be written" in run.text, run.raw
    assert not (tmp_path / "train.km5").exists() and list(tmp_path.glob("train.*.pieces/*.safetensors"))

    run = command_server().run(*label_args(corpus, tmp_path, splits="[train]"))

    assert run.poll() == 0 and leftovers(tmp_path) == [], run.raw
    assert labels_in(tmp_path) == {k: v for k, v in unbroken.items() if not k.startswith("valid.")}


def test_the_binary_form_and_kaldi_vectors_come_from_the_same_verb(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, "format=binary", "kaldi_ark=true", splits="[valid]"))

    assert run.poll() == 0, run.raw

    manifest = read_manifest(corpus, "valid")

    for name in ("km5", "km20"):
        binary = open_labels(tmp_path, "valid", name, manifest)
        text = open_labels(corpus / "unbroken", "valid", name, manifest)
        kaldi = read_kaldi_labels(tmp_path / f"valid.{name}.scp", name, manifest)

        for i in range(3):
            assert binary[i].tolist() == text[i].tolist() == kaldi[i].tolist()

    # Back to text, by the verb: the very files of the run that wrote text.
    back = tmp_path / "back"

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"labels_from={tmp_path}", "splits=[valid]"),
    )

    assert run.poll() == 0, run.raw

    assert labels_in(back) == {k: v for k, v in unbroken.items() if not k.startswith("train.")}

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}", "splits=[valid]"),
        *(f"labels_from={tmp_path}/valid.km5.scp", "label_sets=[pdf]", "label_size=5"),
    )

    assert run.poll() == 0 and (back / "valid.pdf").read_bytes() == unbroken["valid.km5"], run.raw

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"labels_from={tmp_path}/valid.km5.scp", "splits=[train]"),
    )

    assert run.poll() == 2 and "45 of 48 utterances are missing" in run.text


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["num_shards=3", "shard=3"], "`shard` must be at least 0 and below `num_shards` (3), but is 3"),
        (["format=text"], "`format` must be km or binary, but is 'text'"),
        (["labels_from=/x"], "must not both be given"),
        (["label_rate=50"], "belong to `labels_from`"),
        (["allow_pipes=true"], "`allow_pipes` belongs to `labels_from`"),
    ],
)
def test_settings_that_cannot_be_are_refused(corpus: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, *overrides))

    assert run.poll() == 2 and message in run.text, run.raw
