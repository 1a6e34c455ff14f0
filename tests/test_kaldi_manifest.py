"""Kaldi data folders become manifests whose audio is what kaldiio reads from them."""

from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.audio import AudioPolicy, read_waveform
from hubert_plugin.audio.source import resolve_ref, split_ref
from hubert_plugin.data.kaldi_manifest import KaldiScan, is_kaldi_folder, scan_kaldi
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.data.scan import ScanOptions
from hubert_plugin.errors import AudioError, HubertError, ManifestError

POLICY = AudioPolicy()


def pcm(seed: int, num_samples: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_samples) * 3000).astype(np.int16)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder: two recordings in an archive (as kaldi), one after kaldiio's mark, two in files."""
    folder = tmp_path / "data"
    folder.mkdir()

    ark = tmp_path / "wav.ark"

    kaldiio.save_ark(str(ark), {f"r{i}": (16_000, pcm(i, 16_000 + 999 * i)) for i in range(2)}, str(folder / "wav.scp"))

    kaldiio.save_ark(
        str(tmp_path / "flac.ark"),
        {"r2": (pcm(2, 20_000), 16_000)},
        str(folder / "more.scp"),
        write_function="soundfile",
        write_kwargs={"format": "flac"},
    )

    (tmp_path / "wav").mkdir()

    sf.write(tmp_path / "wav/r3.flac", pcm(3, 24_000), 16_000)
    sf.write(tmp_path / "wav/r4.wav", pcm(4, 9_000), 8_000)

    with (folder / "wav.scp").open("a") as fp:
        fp.write((folder / "more.scp").read_text())
        fp.write(f"r3 {tmp_path}/wav/r3.flac\nr4 {tmp_path}/wav/r4.wav\n")

    return folder


def scan(folder: Path, **kwargs: object) -> KaldiScan:
    result = scan_kaldi(folder, kwargs.pop("options", ScanOptions(num_workers=2)), **kwargs)  # type: ignore[arg-type]

    assert result is not None

    return result


def fail(folder: Path, **kwargs: object) -> str:
    with pytest.raises(HubertError) as info:
        scan(folder, **kwargs)

    return str(info.value)


def read(found: KaldiScan) -> dict[str, np.ndarray]:
    """Write the manifest and read its audio, as training does."""
    utterances = found.scan.utterances

    path = found.scan.root / "train.tsv"

    write_manifest(path, found.scan.root, [(u.ref, u.num_samples) for u in utterances])

    manifest = read_manifest(path.parent, "train")

    return {
        u.name: read_waveform(manifest.root, i, POLICY, expected_samples=int(n))
        for u, i, n in zip(utterances, manifest.ids, manifest.sizes, strict=True)
    }


def test_audio_in_archives_and_files_is_what_kaldiio_reads(data: Path) -> None:
    assert is_kaldi_folder(data) and not is_kaldi_folder(data.parent)

    found = scan(data)

    assert (found.speakers, found.texts) == (None, None)
    assert [u.name for u in found.scan.utterances] == ["r0", "r1", "r2", "r3", "r4"]
    assert found.scan.sample_rates == {8_000: 1, 16_000: 4}

    waveforms = read(found)

    for key, (rate, samples) in kaldiio.load_scp(str(data / "wav.scp")).items():
        if key == "r4":
            assert len(waveforms[key]) == 18_000  # at 16 kHz
        else:
            scale = 32768.0 if samples.dtype == np.int16 else 1.0

            np.testing.assert_allclose(waveforms[key], samples / scale, atol=1e-6)
            assert rate == 16_000


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["r0", "r1", "r2", "r3"]), st.floats(0, 0.9), st.floats(0.03, 0.6)), min_size=1)
)
def test_segments_are_those_of_kaldiio(
    tmp_path_factory: pytest.TempPathFactory, segments: list[tuple[str, float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("segments")

    kaldiio.save_ark(
        str(folder / "wav.ark"), {f"r{i}": (16_000, pcm(i, 16_000)) for i in range(4)}, str(folder / "wav.scp")
    )

    lines = [
        f"u{i:03} {rec} {start:.4f} {min(start + length, 1.0):.4f}" for i, (rec, start, length) in enumerate(segments)
    ]

    lines.append("whole r2 0.5 -1")

    # A manifest cannot list the same audio twice.
    lines = list({line.split(maxsplit=1)[1]: line for line in lines}.values())

    (folder / "segments").write_text("\n".join(lines) + "\n")

    try:
        waveforms = read(scan(folder))
    except ManifestError as ex:
        assert "are of exactly the same samples" in str(ex)  # other seconds, same samples
        return

    theirs = kaldiio.load_scp(str(folder / "wav.scp"), segments=str(folder / "segments"))

    assert len(waveforms) == len(lines)

    for key, waveform in waveforms.items():
        np.testing.assert_array_equal(waveform, theirs[key][1].astype(np.float32) / 32768)


def test_a_segment_a_little_beyond_the_recording_ends_with_it(data: Path) -> None:
    (data / "segments").write_text("a r3 0.5 1.9\nb r4 0.25 -1\nc r4 0.5 1.0\n")

    waveforms = read(scan(data))

    samples, _ = sf.read(data.parent / "wav/r3.flac", dtype="float32")

    np.testing.assert_array_equal(waveforms["a"], samples[8_000:])

    assert [len(waveforms[k]) for k in "bc"] == [14_000, 8_000]  # of 8 kHz, at 16 kHz


def test_speakers_and_texts_are_read(data: Path) -> None:
    (data / "utt2spk").write_text("".join(f"r{i} s{i % 2}\n" for i in range(5)))
    (data / "text").write_text("r0 HELLO  WORLD\nr1\nr2 A\nr3 ÄÖ\nr4 B\n")

    found = scan(data)

    assert found.speakers == {f"r{i}": f"s{i % 2}" for i in range(5)}
    assert found.texts == {"r0": "HELLO  WORLD", "r1": "", "r2": "A", "r3": "ÄÖ", "r4": "B"}


def test_what_does_not_belong_together_is_named_all_at_once(data: Path) -> None:
    (data / "utt2spk").write_text("r0 s\nr1\nr0 s\n")

    message = fail(data)

    for part in ("utt2spk:2: 'r1' has no value", "utt2spk:3: 'r0' is there already", "no line for the utterance 'r4'"):
        assert part in message

    (data / "utt2spk").unlink()

    (data / "segments").write_text("a r0 0.5 0.2\nb r9 0 1\nc r0 x 1\nd r0 0 0.5\nd r1 0 0.5\ne r0 0\n")

    message = fail(data)

    for part in (
        "segments:1: 'a' must end after it starts, but goes from 0.5 to 0.2 s",
        "segments:2: 'b' is of the recording 'r9', which wav.scp does not have",
        "segments:3: the start of 'c' must be a number of seconds, but is 'x'",
        "segments:5: 'd' is also in line 4",
        "segments:6: must be 'utterance recording start end' in seconds, but is 'e r0 0'",
    ):
        assert part in message

    (data / "segments").write_text("a r0 0.1 0.2\nb r0 0.5 7\nc r1 3 -1\n")

    message = fail(data)

    assert "segments:2: 'b' ends at 7 s, but the recording 'r0' ends at 1.00 s" in message and "segments:3" in message

    with pytest.raises(AudioError, match="cannot be used"):
        scan(data)

    found = scan(data, options=ScanOptions(on_error="skip", num_workers=2))

    assert [u.name for u in found.scan.utterances] == ["a"] and len(found.scan.skipped) == 2


def test_a_damaged_archive_of_audio_is_named(data: Path) -> None:
    ark = data.parent / "wav.ark"

    whole = ark.read_bytes()

    ark.write_bytes(whole[:-1_000])

    assert "wav.ark:" in (message := fail(data)) and "is cut off" in message and "r0" not in message

    ark.write_bytes(whole[:20])

    message = fail(data)

    assert "2 of the audio files" in message and "the archive ends there or before" in message

    ark.write_bytes(b"x" * len(whole))

    assert "holds no audio: expected a WAV or FLAC file, found b'xxxxxxxx'" in fail(data)

    ark.unlink()

    message = fail(data)

    assert "wav.scp:1: 'r0' lies in" in message and "wav.scp:2: 'r1' lies in" in message and "no such file" in message


def test_recordings_whose_files_are_missing_are_left_out_on_request(data: Path) -> None:
    skip = ScanOptions(on_error="skip", num_workers=2)

    (data.parent / "wav/r3.flac").unlink()

    assert "wav.scp:4: 'r3' lies in" in fail(data)

    found = scan(data, options=skip)

    assert [u.name for u in found.scan.utterances] == ["r0", "r1", "r2", "r4"]

    ((key, reason),) = found.scan.skipped

    assert key == "r3" and "wav.scp:4: it lies in '" in reason and "r3.flac', but there is no such file" in reason

    # It is no mistake then if tables have lines for it.
    (data / "segments").write_text("a r0 0.1 0.9\nb r3 0 1\n")
    (data / "utt2spk").write_text("a s\nb s\n")

    found = scan(data, options=skip)

    assert [u.name for u in found.scan.utterances] == ["a"] and [key for key, _ in found.scan.skipped] == ["r3"]

    # Nothing is left.
    (data / "segments").unlink()
    (data / "utt2spk").unlink()
    (data / "wav.scp").write_text("r3 /no/such.wav\n")

    message = fail(data, options=skip)

    assert (
        "Nothing is left of the 1 audio files" in message
        and "1 cannot be used" in message
        and "no such file" in message
    )


def test_commands_are_refused_unless_they_are_allowed(data: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"

    (data / "wav.scp").write_text(
        f"a/b echo x >> {count}; cat {tmp_path}/wav/r4.wav |\nc cat {tmp_path}/wav/r3.flac |\n"
        f"d {tmp_path}/wav/r3.flac\n"
    )

    message = fail(data)

    assert "wav.scp:1: 'a/b' is a command" in message and "wav.scp:2: 'c' is a command" in message
    assert "set `allow_pipes: true`" in message and not count.exists()

    for _ in range(2):
        found = scan(data, allow_pipes=True, audio_dir=tmp_path / "out/audio")

        waveforms = read(found)

        assert sorted(waveforms) == ["a/b", "c", "d"] and len(waveforms["a/b"]) == 18_000

        np.testing.assert_array_equal(waveforms["c"], waveforms["d"])

    assert count.read_text() == "x\n"  # each command runs once

    # Another command is not taken for the one whose audio is there.
    (data / "wav.scp").write_text(f"a/b cat {tmp_path}/wav/r3.flac |\nd {tmp_path}/wav/r3.flac\n")

    waveforms = read(scan(data, allow_pipes=True, audio_dir=tmp_path / "out/audio"))

    np.testing.assert_array_equal(waveforms["a/b"], waveforms["d"])

    (data / "wav.scp").write_text(f"a echo hello |\nb echo no >&2; false |\nd {tmp_path}/wav/r3.flac\n")

    message = fail(data, allow_pipes=True, audio_dir=tmp_path / "out/audio")

    assert "must write audio (WAV, FLAC, Ogg, NIST or AIFF), but wrote 6 bytes" in message
    assert "The command of 'b'" in message and "ended with 1: no" in message


def test_what_a_command_wrote_is_kept_only_if_it_can_be_used(data: Path, tmp_path: Path) -> None:
    stream, whole = tmp_path / "stream.wav", (tmp_path / "wav/r4.wav").read_bytes()

    (data / "wav.scp").write_text(f"a/b cat {stream} |\n")

    for content in (whole[:44], whole[: len(whole) // 2]):
        stream.write_bytes(content)

        message = fail(data, allow_pipes=True, audio_dir=tmp_path / "out/audio")

        assert f"The command of 'a/b' ('cat {stream}') must write audio" in message
        assert not list((tmp_path / "out/audio").iterdir())

    stream.write_bytes(whole)

    assert len(read(scan(data, allow_pipes=True, audio_dir=tmp_path / "out/audio"))["a/b"]) == 18_000


def test_segments_and_archives_in_manifest_entries() -> None:
    assert split_ref("dir/a.ark:12:345") == ("dir/a.ark", 12, 345)
    assert split_ref("dir/a.ark:12:345[16:320]") == ("dir/a.ark", 12, 345)
    assert split_ref("dir/a.wav[1:2]") == ("dir/a.wav", None, 0)
    assert split_ref("dir/a[1:2].wav") == ("dir/a[1:2].wav", None, 0)

    source = resolve_ref("/root", "a.ark:12:345[16:320]")

    assert (source.path, source.offset, source.length, source.start, source.stop) == ("/root/a.ark", 12, 345, 16, 320)
    assert str(source) == "/root/a.ark:12:345[16:320]" and str(resolve_ref("/r", "a.wav[1:2]")) == "/r/a.wav[1:2]"


@pytest.mark.parametrize("segment", ["[0:24001]", "[5:5]", "[9:5]"])
def test_a_segment_that_is_none_is_refused(data: Path, segment: str) -> None:
    with pytest.raises(AudioError, match="is no segment of its audio, which has 24000 samples"):
        read_waveform(data.parent / "wav", f"r3.flac{segment}", POLICY)


def test_times_of_segments_that_are_none_say_what_is_wrong(data: Path) -> None:
    times = {
        "0 inf": "the end of 'a' must be a finite number of seconds, but is 'inf'",
        "nan 1": "the start of 'a' must be a finite number of seconds, but is 'nan'",
        "0.5 0.5": "'a' has no length: it starts and ends at 0.5 s",
        "-0.5 1": "'a' must start at 0 s or later, but starts at -0.5 s",
        "0 -2": "the end of 'a' must be later than its start, or -1 (that of the recording), but is -2 s",
        "0 1e308": "'a' ends at 1e+308 s, but the recording 'r0' ends at 1.00 s",
        "1e308 -1": "'a' starts at 1e+308 s, but the recording 'r0' ends at 1.00 s",
        "1 -1": "'a' starts at 1 s, but the recording 'r0' ends at 1.00 s",
    }

    for time, message in times.items():
        (data / "segments").write_text(f"b r1 0 0.5\na r0 {time}\n")

        assert f"segments:2: {message}" in fail(data), time


@pytest.mark.parametrize("same", ["u2 r0 0 0.5", "u2 r0 0.00001 0.50001"])
def test_utterances_of_the_same_samples_are_refused_with_their_ids(data: Path, same: str) -> None:
    (data / "segments").write_text(f"u1 r0 0 0.5\n{same}\nu3 r0 0.5 1\n")

    message = fail(data, options=ScanOptions(on_error="skip", num_workers=2))

    assert f"Utterances of '{data}' are of exactly the same samples" in message
    assert "'u1' and 'u2' are 'wav.ark:3:32044[0:8000]'" in message and "u3" not in message

    # Recordings, too.
    (data / "segments").unlink()

    with (data / "wav.scp").open("a") as fp:
        fp.write(f"r5 {data.parent}/wav/r3.flac\nr6 {data.parent}/wav/r3.flac\n")

    assert "'r3', 'r5' and 'r6' are" in fail(data)


def test_ranges_of_recordings_are_refused(data: Path) -> None:
    with (data / "wav.scp").open("a") as fp:
        fp.write(f"r5 {data.parent}/wav.ark:3[0:10]\n")

    message = fail(data, options=ScanOptions(on_error="skip", num_workers=2))

    assert "wav.scp:6: 'r5' must be a whole recording, but has the range [0:10]" in message
    assert "To cut recordings, list the parts in 'segments'." in message


def test_an_offset_of_audio_that_no_file_reaches_is_told(data: Path) -> None:
    (data / "wav.scp").write_text(f"r0 {data.parent}/wav.ark:{'9' * 25}\n")

    assert "the archive ends there or before" in fail(data)
