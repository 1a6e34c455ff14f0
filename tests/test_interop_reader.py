"""Files of strangers: nothing in them is run, nothing is allocated on their word, and what is wrong is said."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pickle
import pickletools
import re
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import FAIRSEQ

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.interop.pickles import InertRecord, to_plain
from hubert_plugin.models.interop.reader import read_checkpoint


class Calls:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def write_zip(path: Path, data: bytes, **records: bytes) -> Path:
    """Write a file of PyTorch's zip format around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")

        for name, record in records.items():
            archive.writestr(f"archive/data/{name}", record)

    return path


def write_old(path: Path, data: bytes) -> Path:
    """Write a file of the format before PyTorch 1.6 around a pickle."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]

    path.write_bytes(b"".join(pickle.dumps(p, protocol=2) for p in parts) + data + pickle.dumps([], protocol=2))

    return path


FORMATS = {"zip": write_zip, "old": write_old}


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    touch = f"touch '{marker}'"

    nested = Calls(eval, Calls(str.format, "__import__('os').system({!r})", touch))

    def dump(value: object) -> bytes:
        return pickle.dumps({"model": value}, protocol=2)

    return {
        "os.system": dump(Calls(os.system, touch)),
        "posix.system": b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(touch)) + touch.encode() + b"\x85R.",
        "eval": dump(Calls(eval, f"open({str(marker)!r}, 'w')")),
        "exec": dump(Calls(exec, f"open({str(marker)!r}, 'w')")),
        "open": dump(Calls(open, str(marker), "w")),
        "import": dump(Calls(__import__, "antigravity")),
        "nested reduce": dump(nested),
        "method through getattr": dump(Calls(Path.touch, marker)),
        "subprocess": dump(Calls(__import__("subprocess").check_call, ["touch", str(marker)])),
        "python 2 name": f"\x80\x02c__builtin__\neval\nX{chr(4)}\0\0\0'a'a\x85R.".encode("latin1"),
        "old instance opcode": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "unpickle within": dump(Calls(pickle.loads, pickle.dumps(Calls(os.system, touch)))),
        "call of an attribute of a record": b"\x80\x02cmod\nthing\nX\x01\0\0\0a\x85RX\x01\0\0\0b\x85R.",
        "persistent id": b"\x80\x02X\x08\0\0\0os.getid\x85Q.",
        "persistent id of text": b"\x80\x02Pos.system\n.",
        "extension registry": b"\x80\x02\x82\x01.",
        "stack global": pickle.dumps(Calls(os.system, touch), protocol=4),
    }


@pytest.mark.parametrize("format_", list(FORMATS))
@pytest.mark.parametrize("name", list(hostile_pickles(Path("x"))))
def test_hostile_pickle_is_refused_and_runs_nothing(name: str, format_: str, tmp_path: Path) -> None:
    marker = tmp_path / "was here"

    data = hostile_pickles(marker)[name]

    file = FORMATS[format_](tmp_path / "evil.pt", data)

    before = set(sys.modules)

    with pytest.raises(CheckpointError, match=r"evil\.pt") as info:
        read_checkpoint(file)

    assert "cannot be read" in str(info.value)
    assert not marker.exists()
    assert not {m for m in set(sys.modules) - before if "antigravity" in m or m == "mod"}


def test_the_hostile_pickles_do_harm_where_they_are_let(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    marker = tmp_path / "was here"

    for name in ("os.system", "posix.system", "eval", "open", "nested reduce", "old instance opcode", "stack global"):
        pickle.loads(hostile_pickles(marker)[name])

        assert marker.exists(), name

        marker.unlink()


def foreign_module(name: str, **classes: type) -> types.ModuleType:
    module = types.ModuleType(name)

    for key, kls in classes.items():
        kls.__module__, kls.__qualname__ = name, key

        setattr(module, key, kls)

    return module


def test_build_on_a_foreign_class_sets_attributes_of_a_record_only(tmp_path: Path, monkeypatch: Any) -> None:
    """The class exists here and would act when its state is set; the file does not get it."""
    acted = []

    class Trap:
        def __setstate__(self, state: object) -> None:
            acted.append(state)

        def __reduce__(self) -> tuple[Any, ...]:
            return Trap, (), {"a": 1, "__class__": "x", "inert_args": "mine"}

    monkeypatch.setitem(sys.modules, "foreign_mod", foreign_module("foreign_mod", Trap=Trap))

    torch.save({"thing": Trap()}, tmp_path / "file.pt")

    assert not acted

    record = read_checkpoint(tmp_path / "file.pt")["thing"]

    assert not acted
    assert isinstance(record, InertRecord) and not isinstance(record, Trap)
    assert (record.a, record.inert_name) == (1, "foreign_mod.Trap")  # type: ignore[attr-defined]


def test_configuration_objects_come_back_as_plain_data(tmp_path: Path, monkeypatch: Any) -> None:
    """Namespaces, enumerations, default dictionaries and a Dictionary of fairseq, with no fairseq installed."""
    choice = enum.Enum("Mode", {"default": "default", "layer_norm": "layer_norm"})

    class Dictionary:
        def __init__(self) -> None:
            self.symbols = ["<s>", "a"]

    # An attribute dictionary, as Lightning's.
    class AttributeDict(dict):  # type: ignore[type-arg]
        pass

    module = foreign_module("fairseq_like", Mode=choice, Dictionary=Dictionary, AttributeDict=AttributeDict)

    monkeypatch.setitem(sys.modules, "fairseq_like", module)

    content = {
        "args": argparse.Namespace(mode=choice.layer_norm, layers=3, nested=argparse.Namespace(rate=50.0)),
        "dictionaries": [Dictionary()],
        "counts": collections.defaultdict(int, {"a": 1}),
        "params": AttributeDict(x=1, y=[2]),
    }

    torch.save(content, tmp_path / "file.pt")

    monkeypatch.delitem(sys.modules, "fairseq_like")

    assert to_plain(read_checkpoint(tmp_path / "file.pt")) == {
        "args": {"mode": "layer_norm", "layers": 3, "nested": {"rate": 50.0}},
        "dictionaries": [{"symbols": ["<s>", "a"]}],
        "counts": {"a": 1},
        "params": {"x": 1, "y": [2]},
    }


@pytest.mark.parametrize("file", ["tiny_post.pt", "tiny_post.dictconfig.pt", "tiny_post.args.pt"])
def test_real_configurations_are_one_and_the_same(file: str) -> None:
    """omegaconf's and argparse's objects, written by fairseq, against the plain dictionary of the newer layout."""
    content = read_checkpoint(FAIRSEQ / file)

    plain = to_plain(content["cfg"] or content["args"])

    expected = to_plain(read_checkpoint(FAIRSEQ / "tiny_post.pt")["cfg"])

    assert isinstance(plain, dict) and isinstance(expected, dict)

    model = plain.get("model", plain)

    for name in ("encoder_layers", "encoder_embed_dim", "conv_feature_layers", "layer_norm_first", "logit_temp"):
        assert model[name] == expected["model"][name], name

    assert to_plain(content["task_state"]["dictionaries"][0])["symbols"][:5] == ["<s>", "<pad>", "</s>", "<unk>", "0"]  # type: ignore[index,call-overload]


def test_no_module_of_the_file_is_imported(monkeypatch: Any) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("omegaconf", "fairseq"):
            monkeypatch.delitem(sys.modules, name)

    # An import of either would fail here.
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    monkeypatch.setitem(sys.modules, "fairseq", None)

    assert read_checkpoint(FAIRSEQ / "tiny_post.dictconfig.pt")["cfg"] is not None


def test_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    data = pickle.dumps({"x": 1}, protocol=2)

    path = tmp_path / "bomb.pt"

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", b"\0" * (16 << 20))

    assert path.stat().st_size < 1 << 20

    with pytest.raises(CheckpointError, match=r"it has [\d,]+ bytes, but claims to hold 16,7\d\d,\d{3}"):
        read_checkpoint(path)


def test_pickle_bomb_in_a_zip_is_refused_likewise(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * (16 << 20) + b".")

    with pytest.raises(CheckpointError, match="claims to hold"):
        read_checkpoint(path)


def test_old_file_that_claims_huge_storages_is_refused_before_they_are_made(tmp_path: Path) -> None:
    """The old format makes a storage of the size that the pickle says, before it reads any data."""
    buffer = io.BytesIO()

    torch.save({"x": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)

    # The length 3 of the storage and of the tensor are one-byte integers after the location 'cpu'.
    size = b"\\1\x8a\x06" + (1 << 40).to_bytes(6, "little")

    huge = re.sub(rb"(cpuq.)K\x03", size, buffer.getvalue(), flags=re.DOTALL)

    assert huge != buffer.getvalue()

    (tmp_path / "huge.pt").write_bytes(huge)

    with pytest.raises(CheckpointError, match="claims to hold 4,398,046,511,104"):
        read_checkpoint(tmp_path / "huge.pt")


def test_zip_file_that_claims_more_than_it_stores_is_refused(tmp_path: Path) -> None:
    """PyTorch before 2.10 reads the claimed number of bytes, beyond the end of the record."""
    torch.save({"x": torch.zeros(3)}, tmp_path / "good.pt")

    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        data, record = archive.read("good/data.pkl"), archive.read("good/data/0")

    huge = re.sub(rb"(cpuq.)K\x03", b"\\1J" + struct.pack("<i", 1 << 30), data, flags=re.DOTALL)

    assert huge != data

    with pytest.raises(
        CheckpointError, match="claims 4,294,967,296 bytes for the tensor storage '0', but 12 are stored"
    ):
        read_checkpoint(write_zip(tmp_path / "huge.pt", huge, **{"0": record}))

    assert read_checkpoint(write_zip(tmp_path / "again.pt", data, **{"0": record}))["x"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("format_", list(FORMATS))
def test_writing_into_tensors_is_refused(format_: str, tmp_path: Path) -> None:
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)RK\x00K\x01s."

    with pytest.raises(CheckpointError, match="writes into a tensor"):
        read_checkpoint(FORMATS[format_](tmp_path / "x.pt", data))


def test_old_file_with_a_zip_file_at_its_end_is_read_as_what_it_begins_with(tmp_path: Path) -> None:
    hostile = write_old(tmp_path / "old.pt", hostile_pickles(tmp_path / "marker")["os.system"]).read_bytes()

    harmless = write_zip(tmp_path / "zip.pt", pickle.dumps({}, protocol=2)).read_bytes()

    (tmp_path / "both.pt").write_bytes(hostile + harmless)

    assert zipfile.is_zipfile(tmp_path / "both.pt")

    with pytest.raises(CheckpointError, match="hostile"):
        read_checkpoint(tmp_path / "both.pt")


def test_tensor_that_is_larger_than_its_data_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1).expand(1 << 40)}}, tmp_path / "wide.pt")

    with pytest.raises(
        CheckpointError, match=r"tensor 'w' in .* claims 4,398,046,511,104 bytes, but only 4 are stored"
    ):
        read_checkpoint(tmp_path / "wide.pt")


def test_large_index_into_the_memo_costs_nothing(tmp_path: Path) -> None:
    """Unpicklers in C reserve memory for the largest index."""
    data = b"\x80\x02}r" + struct.pack("<I", (1 << 31) - 1) + b"."

    assert pickletools.optimize(data)

    assert read_checkpoint(write_zip(tmp_path / "memo.pt", data)) == {}


def test_endless_nesting_of_a_configuration_is_refused() -> None:
    value: list[object] = []

    value.append(value)

    with pytest.raises(CheckpointError, match="nested more than"):
        to_plain(value)
