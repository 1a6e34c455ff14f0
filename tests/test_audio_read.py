"""Files of every format are read as soundfile and torchaudio read them, and bad ones are answered with a sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from hubert_plugin.audio import AudioInfo, AudioPolicy, probe_audio, read_waveform
from hubert_plugin.errors import AudioError

KEEP = AudioPolicy()

FORMATS = {
    "pcm16.wav": {"subtype": "PCM_16"},
    "pcm24.wav": {"subtype": "PCM_24"},
    "float.wav": {"subtype": "FLOAT"},
    "double.wav": {"subtype": "DOUBLE"},
    "a.flac": {},
    "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "a.opus": {"format": "OGG", "subtype": "OPUS"},
    "a.mp3": {},
    "a.aiff": {},
    "a.aif": {"format": "AIFF"},
    "a.sph": {"format": "NIST"},
}


def make_speech(num_samples: int, num_channels: int = 1, seed: int = 0) -> NDArray[np.float64]:
    samples = np.random.default_rng(seed).standard_normal((num_samples, num_channels)) * 0.1

    return samples[:, 0] if num_channels == 1 else samples


def read_mono(path: Path) -> NDArray[np.float32]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)

    assert rate == 16000

    return samples.mean(axis=1)


def assert_refused(folder: Path, ref: str, *words: str, policy: AudioPolicy = KEEP, **kwargs: int) -> None:
    with pytest.raises(AudioError) as info:
        read_waveform(folder, ref, policy, **kwargs)

    for word in (str(folder / ref), *words):
        assert word in str(info.value)

    assert str(info.value).endswith(".")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_soundfile_reads_it(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, make_speech(24037), 16000, **FORMATS[name])

    waveform = read_waveform(tmp_path, name, KEEP)

    # libmpg123 rounds differently from call to call, by the alignment of its buffers.
    np.testing.assert_allclose(waveform, read_mono(tmp_path / name), rtol=0, atol=1e-6 if name == "a.mp3" else 0)

    assert waveform.dtype == np.float32
    assert waveform.flags.c_contiguous
    assert probe_audio(tmp_path, name) == AudioInfo(len(waveform), 16000, 1)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_channels_are_averaged(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, make_speech(9001, num_channels=2), 16000)

    waveform = read_waveform(tmp_path, name, KEEP)

    np.testing.assert_allclose(waveform, read_mono(tmp_path / name), atol=1e-7)

    assert waveform.flags.c_contiguous
    assert probe_audio(tmp_path, name) == AudioInfo(len(waveform), 16000, 2)


def test_integer_samples_are_scaled_to_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(np.array([-32768, 0, 32767], np.int16), 400), 16000)

    assert set(read_waveform(tmp_path, "a.wav", KEEP).tolist()) == {-1.0, 0.0, 32767 / 32768}


def test_normalised_waveforms_equal_torch_layer_norm_over_the_whole_file(tmp_path: Path) -> None:
    for idx, scale in enumerate((1.0, 0.01, 1e-4)):
        soundfile.write(tmp_path / f"{idx}.wav", make_speech(20011, seed=idx) * scale + 0.05, 16000, subtype="FLOAT")

        waveform = torch.from_numpy(read_mono(tmp_path / f"{idx}.wav"))
        expected = torch.nn.functional.layer_norm(waveform, waveform.shape)

        actual = read_waveform(tmp_path, f"{idx}.wav", AudioPolicy(normalize=True))

        np.testing.assert_allclose(actual, expected.numpy(), atol=2e-5)


def test_silence_normalises_to_finite_zeros(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), 16000)

    np.testing.assert_array_equal(read_waveform(tmp_path, "a.wav", AudioPolicy(normalize=True)), np.zeros(1000))


def test_names_that_are_no_unicode_are_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.wav")

    try:
        soundfile.write(os.fsencode(tmp_path / name), make_speech(1000), 16000, format="WAV")
    except (OSError, soundfile.SoundFileError):
        pytest.skip("the file system takes Unicode names only")

    assert len(read_waveform(tmp_path, name, KEEP)) == 1000


def test_reading_16_khz_imports_no_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(1000), 16000)

    code = (
        "import sys; from pathlib import Path; from hubert_plugin.audio import *; "
        "read_waveform(Path(sys.argv[1]), 'a.wav', AudioPolicy(normalize=True)); assert 'torch' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parent.parent)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()

    assert_refused(tmp_path, "none.wav", "no file there")
    assert_refused(tmp_path, "folder.wav", "a folder")

    with pytest.raises(AudioError, match="no file there"):
        probe_audio(tmp_path, "none.wav")


def test_files_without_audio_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("This is no audio.\n" * 100)
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16000)

    assert_refused(tmp_path, "empty.wav", "0 bytes")
    assert_refused(tmp_path, "text.wav", "libsndfile can decode")
    assert_refused(tmp_path, "header.wav", "zero samples")

    for name in ("empty.wav", "text.wav", "header.wav"):
        with pytest.raises(AudioError, match=re.escape(name)):
            probe_audio(tmp_path, name)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("name", ["pcm16.wav", "pcm24.wav", "float.wav", "a.flac", "a.mp3", "a.aiff"])
def test_truncated_files_are_named_by_reading_and_probing(tmp_path: Path, name: str, share: float) -> None:
    soundfile.write(tmp_path / name, make_speech(50000), 16000, **FORMATS[name])

    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])

    assert_refused(tmp_path, name, "truncated")

    with pytest.raises(AudioError, match=f"{re.escape(name)}' is truncated"):
        probe_audio(tmp_path, name)


@pytest.mark.parametrize("name", ["vorbis.ogg", "a.sph"])
def test_truncations_that_formats_hide_are_caught_by_the_expected_length(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, make_speech(50000), 16000, **FORMATS[name])

    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * 0.7)])

    assert_refused(tmp_path, name, "its manifest says 50000", expected_samples=50000)


def test_damaged_flac_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", make_speech(50000), 16000)

    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.flac").write_bytes(data)

    assert_refused(tmp_path, "a.flac", "damaged")


def test_streamed_headers_are_read_where_the_end_is_known_and_refused_where_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(5000), 16000, subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", make_speech(5000), 16000)

    expected = read_mono(tmp_path / "a.wav")

    # A program that writes to a pipe cannot go back and fill in the sizes: all ones stay there (RIFF, data).
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)

    np.testing.assert_array_equal(read_waveform(tmp_path, "a.wav", KEEP), expected)

    # In FLAC's STREAMINFO the number of samples is the low 4 bits of byte 21 and bytes 22-25; 0 means unknown.
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)

    assert_refused(tmp_path, "a.flac", "does not say how long it is")


def test_mp3_without_a_length_is_measured_by_decoding(tmp_path: Path) -> None:
    # Silence first: a decoder that judges the length by the first frame expects twice as many samples.
    samples = np.concatenate([np.zeros(160000), make_speech(160000)])
    soundfile.write(tmp_path / "a.mp3", samples, 16000, bitrate_mode="VARIABLE", compression_level=0.5)

    data = (tmp_path / "a.mp3").read_bytes()
    start = data.index(data[:2], 4)  # behind the frame that holds the Xing header
    (tmp_path / "a.mp3").write_bytes(data[start:])

    num_samples = len(soundfile.read(tmp_path / "a.mp3")[0])

    assert soundfile.info(tmp_path / "a.mp3").frames > num_samples + 100000
    assert probe_audio(tmp_path, "a.mp3").num_samples == num_samples
    assert len(read_waveform(tmp_path, "a.mp3", KEEP)) == num_samples


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    samples = make_speech(2000)
    samples[1234] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")

    assert_refused(tmp_path, "a.wav", "1 samples that are not finite", "sample 1234")


def test_huge_finite_samples_are_not_called_infinite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1000, 3e38), 16000, subtype="FLOAT")

    assert len(read_waveform(tmp_path, "a.wav", KEEP)) == 1000


@pytest.mark.parametrize(("num_samples", "sample_rate"), [(1, 16000), (399, 16000), (1000, 44100)])
def test_less_than_one_frame_is_refused(tmp_path: Path, num_samples: int, sample_rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(num_samples), sample_rate)

    assert_refused(tmp_path, "a.wav", "too short", "at least 400")


def test_one_frame_is_enough(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(400), 16000)

    assert len(read_waveform(tmp_path, "a.wav", KEEP)) == 400


def test_other_rates_are_refused_on_request(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(9000), 22050)

    assert_refused(tmp_path, "a.wav", "22050 Hz", "expected 16000 Hz", policy=AudioPolicy(sample_rate="refuse"))


def test_another_length_than_expected_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(5000), 16000)
    soundfile.write(tmp_path / "b.wav", make_speech(5000), 8000)

    assert len(read_waveform(tmp_path, "a.wav", KEEP, expected_samples=5000)) == 5000
    assert len(read_waveform(tmp_path, "b.wav", KEEP, expected_samples=10000)) == 10000

    assert_refused(tmp_path, "a.wav", "5000 samples", "says 5001", expected_samples=5001)
    assert_refused(tmp_path, "b.wav", "counts samples at 8000 Hz", expected_samples=5000)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", make_speech(5000), 16000)

    def refuse(*_: object, **__: object) -> Callable[[], None]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(soundfile, "SoundFile", refuse)

    assert_refused(tmp_path, "a.wav", "Permission denied")
