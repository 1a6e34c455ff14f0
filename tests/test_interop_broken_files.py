"""Files that are cut off, or no checkpoints at all."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from golden import FAIRSEQ

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.interop.reader import read_checkpoint


@pytest.mark.parametrize("file", ["tiny_post.pt", "tiny_post.fp16_nonzip.pt"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_half_written_file_is_named(file: str, share: float, tmp_path: Path) -> None:
    data = (FAIRSEQ / file).read_bytes()

    (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])

    with pytest.raises(CheckpointError, match=r"cut\.pt.*cannot be read.*damaged"):
        read_checkpoint(tmp_path / "cut.pt")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_half_written_safetensors_file_is_named(share: float, tmp_path: Path) -> None:
    data = (FAIRSEQ.parent / "transformers/hf_group/model.safetensors").read_bytes()

    (tmp_path / "cut.safetensors").write_bytes(data[: int(share * len(data))])

    with pytest.raises(CheckpointError, match=r"cut\.safetensors.*cannot be read.*damaged"):
        read_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
        (b"RIFF....WAVEfmt ", "begins with b'RIFF"),
        (b"", "cut off"),
    ],
)
def test_file_of_another_kind_is_named(content: bytes, phrase: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"model\.pt") as info:
        read_checkpoint(tmp_path / "model.pt")

    assert phrase in str(info.value)


def test_zip_of_something_else_and_missing_file_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")

    with pytest.raises(CheckpointError, match=r"one 'data\.pkl' was looked for, 0 were found"):
        read_checkpoint(tmp_path / "other.pt")

    with pytest.raises(CheckpointError, match="no checkpoint file at"):
        read_checkpoint(tmp_path / "none.pt")


def test_whole_module_is_answered_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")

    with pytest.raises(CheckpointError, match=r"holds a torch\.nn\.modules\.linear\.Linear object.*state_dict\(\)"):
        read_checkpoint(tmp_path / "module.pt")


def test_files_of_later_pickle_protocols_are_told_how_to_be_saved(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "a.pt", pickle_protocol=4)

    with pytest.raises(CheckpointError, match=r"pickle protocol 3 or later.*save it again"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_that_are_not_pytorchs_are_told_so(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"weight": [0.0] * 20}, protocol=protocol))

    with pytest.raises(CheckpointError, match=r"is a pickle, but not one of PyTorch's.*torch\.save"):
        read_checkpoint(tmp_path / "a.pt")
