"""Slices of zip and tar archives hold exactly what the files held."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.audio import AudioPolicy, iter_archive_members, probe_audio, read_waveform
from hubert_plugin.audio.source import AudioSource, open_slice, split_ref
from hubert_plugin.errors import AudioError

NAMES = ["a.wav", "deep/er/b.flac", "deep/c.ogg", "d.mp3", "e.aiff"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)

    for idx, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)

        kwargs = {"subtype": "VORBIS"} if name.endswith(".ogg") else {}
        soundfile.write(folder / name, rng.standard_normal(5000 + 777 * idx) * 0.1, [16000, 8000][idx % 2], **kwargs)

    return folder


def make_zip(path: Path, folder: Path, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("deep/", "")

        for name in NAMES:
            archive.write(folder / name, name)

        # An entry of unknown size when its header is written (a zip made in a pipe) lies behind a longer local header.
        with archive.open(zipfile.ZipInfo("streamed.wav"), "w", force_zip64=True) as fp:
            fp.write((folder / "a.wav").read_bytes())


def make_tar(path: Path, folder: Path, fmt: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=fmt) as archive:
        archive.add(folder / "deep", "deep", recursive=False)

        for name in NAMES:
            archive.add(folder / name, name)

        archive.add(folder / "a.wav", f"{'long/' * 40}a.wav")


def test_zip_slices_equal_the_files(tmp_path: Path, folder: Path) -> None:
    make_zip(tmp_path / "data.zip", folder)

    refs = dict(iter_archive_members(tmp_path / "data.zip"))

    assert list(refs) == [*NAMES, "streamed.wav"]

    check_slices(tmp_path, folder, {**refs, "a.wav": refs["streamed.wav"]})
    check_slices(tmp_path, folder, refs)


@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_slices_equal_the_files(tmp_path: Path, folder: Path, fmt: int) -> None:
    make_tar(tmp_path / "data.tar", folder, fmt)

    refs = dict(iter_archive_members(tmp_path / "data.tar"))

    assert list(refs) == [*NAMES, f"{'long/' * 40}a.wav"]

    check_slices(tmp_path, folder, {**refs, "a.wav": refs[f"{'long/' * 40}a.wav"]})
    check_slices(tmp_path, folder, refs)


def check_slices(root: Path, folder: Path, refs: dict[str, str]) -> None:
    for name in NAMES:
        archive, offset, length = refs[name].split(":")

        data = (root / archive).read_bytes()[int(offset) : int(offset) + int(length)]

        assert data == (folder / name).read_bytes()

        expected = read_waveform(folder, name, AudioPolicy())

        # The bytes are the same, but libmpg123 rounds differently from call to call.
        np.testing.assert_allclose(read_waveform(root, refs[name], AudioPolicy()), expected, rtol=0, atol=1e-6)

        assert probe_audio(root, refs[name]) == probe_audio(folder, name)


def test_members_can_be_chosen_by_extension(tmp_path: Path, folder: Path) -> None:
    make_tar(tmp_path / "data.TAR", folder)

    assert [n for n, _ in iter_archive_members(tmp_path / "data.TAR", [".flac", ".ogg"])] == NAMES[1:3]


def test_compressed_members_are_refused_only_if_they_are_wanted(tmp_path: Path, folder: Path) -> None:
    make_zip(tmp_path / "data.zip", folder, zipfile.ZIP_DEFLATED)

    with pytest.raises(AudioError, match=r"data\.zip.*'a\.wav' is compressed"):
        list(iter_archive_members(tmp_path / "data.zip"))

    assert list(iter_archive_members(tmp_path / "data.zip", [".opus"])) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.rar", "none.zip", "none.tar"])
def test_what_is_no_archive_is_named(tmp_path: Path, name: str) -> None:
    if not name.startswith("none"):
        (tmp_path / name).write_bytes(b"no archive" * 100)

    with pytest.raises(AudioError, match=name):
        list(iter_archive_members(tmp_path / name))


def test_cut_archives_are_named(tmp_path: Path, folder: Path) -> None:
    make_zip(tmp_path / "data.zip", folder)
    make_tar(tmp_path / "data.tar", folder)

    for name in ("data.zip", "data.tar"):
        refs = dict(iter_archive_members(tmp_path / name))
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])

        with pytest.raises(AudioError, match=name):
            list(iter_archive_members(tmp_path / name))

        with pytest.raises(AudioError, match=f"{name}:.* is outside its archive"):
            read_waveform(tmp_path, refs["e.aiff"], AudioPolicy())


def test_slices_outside_the_archive_or_empty_or_of_no_audio_are_refused(tmp_path: Path, folder: Path) -> None:
    make_zip(tmp_path / "data.zip", folder)

    size = (tmp_path / "data.zip").stat().st_size

    for ref, words in {
        f"data.zip:{size}:10": "outside its archive",
        "data.zip:0:99999999": "outside its archive",
        "data.zip:10:0": "outside its archive",
        "data.zip:1:5000": "libsndfile can decode",
        "none.zip:1:5000": "no file there",
        "none.tar:1:5000": "no file there",
    }.items():
        for function in (probe_audio, lambda r, f: read_waveform(r, f, AudioPolicy())):
            with pytest.raises(AudioError, match=words) as info:
                function(tmp_path, ref)

            assert str(tmp_path / ref) in str(info.value)


def test_only_slices_of_archives_are_taken_for_slices() -> None:
    assert split_ref("dir/a.zip:12:345") == ("dir/a.zip", 12, 345)
    assert split_ref("dir/a.TAR:0:1") == ("dir/a.TAR", 0, 1)
    assert split_ref("dir/12:30:45") == ("dir/12:30:45", None, 0)
    assert split_ref("dir/a.zip:1") == ("dir/a.zip:1", None, 0)
    assert split_ref("dir/a.zip:1:2.wav") == ("dir/a.zip:1:2.wav", None, 0)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_slice_behaves_as_a_file_of_its_own(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "slice.tar"
    content = bytes(range(200))
    path.write_bytes(content)

    offset = data.draw(st.integers(0, 150))
    length = data.draw(st.integers(1, 50))

    oracle = io.BytesIO(content[offset : offset + length])

    with open_slice(AudioSource(str(path), offset, length), in_memory=False) as window:
        for _ in range(data.draw(st.integers(1, 8))):
            if data.draw(st.booleans()):
                where = data.draw(st.integers(0, 60)), data.draw(st.sampled_from([0, 1, 2]))

                assert window.seek(*where) == oracle.seek(*where)
            else:
                size = data.draw(st.integers(0, 60))

                assert window.read(size) == oracle.read(size)

            assert window.tell() == oracle.tell()
