"""Scanning finds the audio there is, measures it, and names what cannot be used."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_plugin.audio import AudioPolicy, read_waveform
from hubert_plugin.data.scan import ScanOptions, ScanResult, scan_audio
from hubert_plugin.errors import AudioError, ManifestError


def write_audio(path: Path, num_samples: int = 800, sample_rate: int = 16000, num_channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)

    samples = np.random.default_rng(num_samples).standard_normal((num_samples, num_channels)) * 0.1

    soundfile.write(path, samples, sample_rate)


def scan(source: Path, **options: object) -> ScanResult:
    result = scan_audio(source, ScanOptions(**options))  # type: ignore[arg-type]

    assert result is not None

    return result


def test_everything_that_is_audio_is_found_and_measured(tmp_path: Path) -> None:
    lengths = {"a.wav": 800, "B.FLAC": 801, "x/c.ogg": 802, "x/y/d.mp3": 803, "x/y/e.aiff": 804}

    for name, num_samples in lengths.items():
        write_audio(tmp_path / name, num_samples)

    write_audio(tmp_path / ".hidden.wav")
    write_audio(tmp_path / ".cache/f.wav")
    (tmp_path / "x/readme.txt").touch()
    (tmp_path / "x/._c.ogg").write_bytes(b"macOS")

    result = scan(tmp_path)

    assert result.root == tmp_path
    assert [(u.name, u.num_samples) for u in result.utterances] == sorted(lengths.items())
    assert [u.ref for u in result.utterances] == sorted(lengths)

    for utterance in result.utterances:
        assert len(read_waveform(result.root, utterance.ref, AudioPolicy())) == utterance.num_samples


def test_rates_and_channels_are_counted_and_lengths_are_at_16_khz(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 16000)
    write_audio(tmp_path / "b.wav", 8001, 8000, num_channels=2)
    write_audio(tmp_path / "c.wav", 8001, 8000)

    result = scan(tmp_path)

    assert result.sample_rates == {8000: 2, 16000: 1}
    assert result.num_multichannel == 1
    assert [u.num_samples for u in result.utterances] == [16000, 16002, 16002]


def test_other_rates_can_be_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 16000)
    write_audio(tmp_path / "b.wav", 8001, 8000)

    with pytest.raises(AudioError, match=r"b\.wav' has a sample rate of 8000 Hz"):
        scan(tmp_path, policy=AudioPolicy(sample_rate="refuse"))


def test_lengths_are_filtered_and_counted(tmp_path: Path) -> None:
    for num_samples in (1, 399, 400, 8000, 16000, 16001):
        write_audio(tmp_path / f"{num_samples:05}.wav", num_samples)

    result = scan(tmp_path)

    assert [u.num_samples for u in result.utterances] == [400, 8000, 16000, 16001]
    assert (result.num_too_short, result.num_too_long) == (2, 0)

    result = scan(tmp_path, min_seconds=0.5, max_seconds=1.0)

    assert [u.num_samples for u in result.utterances] == [8000, 16000]
    assert (result.num_too_short, result.num_too_long) == (3, 1)

    with pytest.raises(ManifestError, match="6 are too short, 0 too long"):
        scan(tmp_path, min_seconds=2.0)


def test_archives_in_folders_and_alone_are_looked_into(tmp_path: Path) -> None:
    write_audio(tmp_path / "x/a.wav", 900)
    write_audio(tmp_path / "x/b.flac", 1000)

    with zipfile.ZipFile(tmp_path / "x/data.zip", "w") as archive:
        archive.write(tmp_path / "x/a.wav", "spk1/a.wav")
        archive.writestr("readme.txt", "Text." * 100, zipfile.ZIP_DEFLATED)

    with tarfile.open(tmp_path / "x/data.tar", "w") as tar:
        tar.add(tmp_path / "x/b.flac", "spk2/b.flac")

    result = scan(tmp_path)

    assert [(u.name, u.num_samples) for u in result.utterances] == [
        ("x/a.wav", 900),
        ("x/b.flac", 1000),
        ("x/data.tar/spk2/b.flac", 1000),
        ("x/data.zip/spk1/a.wav", 900),
    ]

    for utterance, name in zip(result.utterances[2:], ["x/b.flac", "x/a.wav"], strict=True):
        np.testing.assert_array_equal(
            read_waveform(result.root, utterance.ref, AudioPolicy()), read_waveform(tmp_path, name, AudioPolicy())
        )

    alone = scan(tmp_path / "x/data.zip")

    assert alone.root == tmp_path / "x"
    assert [u.name for u in alone.utterances] == ["data.zip/spk1/a.wav"]


def test_all_broken_files_are_named_at_once_or_skipped_and_listed(tmp_path: Path) -> None:
    write_audio(tmp_path / "good.wav")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.flac").write_text("no audio" * 100)
    write_audio(tmp_path / "cut.wav", 10000)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:5000])

    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "good.wav", "a.wav")

    broken = ["cut.wav", "empty.wav", "packed.zip", "text.flac"]

    with pytest.raises(AudioError, match="4 of the audio files") as info:
        scan(tmp_path)

    for name in broken:
        assert f"'{tmp_path / name}'" in str(info.value)

    result = scan(tmp_path, on_error="skip")

    assert [u.name for u in result.utterances] == ["good.wav"]
    assert sorted(ref for ref, _ in result.skipped) == broken
    assert all(str(tmp_path / ref) in reason for ref, reason in result.skipped)


def test_nothing_to_scan_is_named(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()

    with pytest.raises(ManifestError, match=r"No audio was found under.*\.flac, .*\.wav.*\.tar, \.zip"):
        scan(tmp_path)

    with pytest.raises(ManifestError, match="nothing there"):
        scan(tmp_path / "none")

    with pytest.raises(ManifestError, match="another file"):
        scan(tmp_path / "readme.txt")


def test_results_do_not_depend_on_listing_order_or_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for idx in range(150):
        write_audio(tmp_path / f"{idx % 7}/{idx}.wav", 400 + idx)

    (tmp_path / "3/bad.wav").touch()

    first = scan(tmp_path, on_error="skip", num_workers=1)

    walk = os.walk

    def walk_backwards(*args: object, **kwargs: object) -> object:
        for folder, subfolders, files in walk(*args, **kwargs):  # type: ignore[call-overload]
            subfolders.reverse()

            yield folder, subfolders, files[::-1]

    monkeypatch.setattr(os, "walk", walk_backwards)

    assert scan(tmp_path, on_error="skip", num_workers=5) == first


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_audio(tmp_path / "data/real/a.wav")
    (tmp_path / "data/real/up").symlink_to(tmp_path / "data")
    write_audio(tmp_path / "elsewhere/b.wav")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")

    assert [u.name for u in scan(tmp_path / "data").utterances] == ["link/b.wav", "real/a.wav"]


def test_progress_is_told_and_a_stop_is_obeyed(tmp_path: Path) -> None:
    for idx in range(130):
        write_audio(tmp_path / f"{idx}.wav", 400)

    found: list[int] = []
    steps: list[int] = []

    scan_audio(tmp_path, ScanOptions(), on_found=found.append, on_progress=steps.append)

    assert found == [130]
    assert sum(steps) == 130
    assert len(steps) > 1

    assert scan_audio(tmp_path, ScanOptions(), should_stop=lambda: True) is None
