"""Names of files that a manifest cannot express, or that are no UTF-8, and files that are in train and valid."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from builders import make_corpus, pretrain_config, write_config
from processes import Run, command_server

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.kaldi_manifest import scan_kaldi
from hubert_plugin.data.manifest import list_splits, read_manifest, write_manifest
from hubert_plugin.data.scan import ScanOptions, scan_audio
from hubert_plugin.decoding.inputs import open_input
from hubert_plugin.errors import AudioError, HubertError, LabelError, ManifestError, format_problems

BAD = ("a\tb.wav", "line\nbreak.wav", "sub\t/c.wav")

LATIN_1 = os.fsdecode(b"M\xfcller.wav")


def write_audio(path: Path, seed: int = 0, num_samples: int = 8_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    sf.write(path, np.random.default_rng(seed).standard_normal(num_samples) * 0.1, 16_000, format="WAV")


def manifest(out: Path, source: Path, *options: str, expected: int = 0) -> Run:
    run = command_server().run(
        "recipe", "hubert", "manifest", out, "--no-rich", "--config", f"source={source}", *options
    )

    assert run.poll() == expected, run.raw
    assert "Logging error" not in run.raw

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "audio"

    for i, name in enumerate(("x.wav", "y.wav", "z.wav", *BAD)):
        write_audio(folder / name, i)

    return folder


def test_names_that_a_manifest_cannot_express_are_named_and_nothing_is_written(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    run = manifest(out, source, expected=2)

    assert "3 of the audio files under" in run.text and "`on_error: skip`" in run.text

    for name in BAD:
        assert f"The name of {str(source / name)!r} is empty or holds a tab or a line break" in run.text

    assert not [p.name for p in out.iterdir() if p.suffix in (".tsv", ".json")]

    # What is there stays as it is.
    manifest(out, source, "on_error=skip")

    before = {p.name: p.read_bytes() for p in out.glob("*.*s*")}

    manifest(out, source, "overwrite=true", "seed=3", expected=2)

    assert {p.name: p.read_bytes() for p in out.glob("*.*s*") if p.name in before} == before


def test_names_that_a_manifest_cannot_express_are_skipped_and_listed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    run = manifest(out, source, "on_error=skip")

    assert "3 file(s) were skipped" in run.text

    ids = [i for split in list_splits(out) for i in read_manifest(out, split).ids]

    assert sorted(ids) == ["x.wav", "y.wav", "z.wav"]

    rows = [line.split("\t") for line in (out / "skipped.tsv").read_text().splitlines()]

    assert [len(r) for r in rows] == [2, 2, 2]
    assert [r[0] for r in rows] == [r"a\tb.wav", r"line\nbreak.wav", r"sub\t/c.wav"]


def test_the_name_of_an_archive_counts_and_those_of_its_members_do_not(tmp_path: Path) -> None:
    write_audio(tmp_path / "plain.wav")

    (tmp_path / "in").mkdir()

    for name in ("good.zip", "bad\t.zip"):
        with zipfile.ZipFile(tmp_path / "in" / name, "w") as archive:
            archive.write(tmp_path / "plain.wav", "mem\tber.wav")

    result = scan_audio(tmp_path / "in", ScanOptions(on_error="skip"))

    assert result is not None
    assert [u.name for u in result.utterances] == ["good.zip/mem\tber.wav"]
    assert [ref for ref, _ in result.skipped] == ["bad\t.zip"]

    write_manifest(tmp_path / "train.tsv", result.root, [(u.ref, u.num_samples) for u in result.utterances])


def test_a_folder_that_a_manifest_cannot_name_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a\tb/x.wav")

    with pytest.raises(ManifestError, match=r"The folder '.*a\\tb' is empty or holds a tab"):
        scan_audio(tmp_path / "a\tb", ScanOptions(on_error="skip"))


def test_what_is_recognised_may_have_any_name(source: Path) -> None:
    assert set(BAD) <= set(open_input([str(source)], AudioPolicy()).ids)


def test_paths_of_kaldi_that_a_manifest_cannot_express_are_named_or_skipped(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()

    (data / "wav.scp").write_text(f"u1 {source}/x.wav\nu2 {source}/a\tb.wav\n")

    with pytest.raises(AudioError, match=r"'u2': the name of '.*a\\tb\.wav' is empty or holds a tab"):
        scan_kaldi(data, ScanOptions())

    found = scan_kaldi(data, ScanOptions(on_error="skip"))

    assert found is not None and [u.name for u in found.scan.utterances] == ["u1"]
    assert [ref for ref, _ in found.scan.skipped] == ["u2"]


def test_files_in_train_and_valid_are_counted_in_a_warning(tmp_path: Path) -> None:
    mine = tmp_path / "mine"

    for i, name in enumerate(("a/1.wav", "a/2.wav", "b/3.wav", "b/4.wav")):
        write_audio(mine / name, i)

    for i in (9, 10, 11):
        write_audio(tmp_path / f"other/{i}.wav", i)

    (tmp_path / "other/linked.wav").symlink_to(mine / "a/1.wav")

    warning = "validation file(s) (`valid_source`) are also in train (`source`)"

    assert f"2 of the 2 {warning}" in manifest(tmp_path / "inside", mine, f"valid_source={mine}/b").text
    assert f"1 of the 4 {warning}" in manifest(tmp_path / "link", mine, f"valid_source={tmp_path}/other").text

    assert warning not in manifest(tmp_path / "apart", mine / "a", f"valid_source={mine}/b").text


def test_names_that_are_no_utf_8_are_escaped_in_the_log(tmp_path: Path) -> None:
    """A name in latin-1 cannot be written in UTF-8, which the log is in."""
    corpus = make_corpus(tmp_path / "corpus", num_train=4, num_valid=2)

    path = corpus / "train.tsv"

    path.write_bytes(path.read_bytes() + b"M\xfcller.wav\t16000\n")

    config = write_config(tmp_path / "config.yaml", pretrain_config(corpus))

    run = command_server().pretrain(tmp_path / "out", config)

    assert run.poll() == 2, run.raw
    assert "expected an audio file, found none at" in run.text and r"M\udcfcller.wav'" in run.raw.replace("\n", "")
    assert "Logging error" not in run.raw and "Traceback" not in run.raw

    (tmp_path / "audio").mkdir()

    write_audio(tmp_path / "audio/good.wav")

    (tmp_path / "audio" / LATIN_1).write_text("no audio")

    run = manifest(tmp_path / "data", tmp_path / "audio", "on_error=skip")

    assert r"M\udcfcller.wav" in run.raw and "Traceback" not in run.raw
    assert r"M\udcfcller.wav" in (tmp_path / "data/skipped.tsv").read_text()


@pytest.mark.parametrize("kls", [HubertError, LabelError])
def test_sentences_can_always_be_written(kls: type[HubertError]) -> None:
    sentence = str(kls(f"'{LATIN_1}' is missing."))

    assert sentence == r"'M\udcfcller.wav' is missing." and sentence.encode()
    assert format_problems("Head:", [LATIN_1]).encode()
