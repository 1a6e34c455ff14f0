"""What is said of label files that were edited, misplaced or came without their dictionary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_labels_store import make_manifest, make_units, open_error, write_plain

from hubert_plugin.data.label_convert import conversion_problems, read_kaldi_labels
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.errors import LabelError
from hubert_plugin.registry import LabelSetSpec

BOM = b"\xef\xbb\xbf"


def test_empty_lines_that_are_too_many_are_named(tmp_path: Path) -> None:
    lines: list[list[object]] = [u.tolist() for u in make_units()]

    write_plain(tmp_path, [*lines, []])

    message = open_error(tmp_path, make_manifest(tmp_path))

    assert "train.km has 5 lines, but train.tsv has 4 utterances" in message
    assert "it would fit without the empty ones: remove them" in message
    assert "train.km:5: the last line is empty" in message

    write_plain(tmp_path, [*lines[:2], [], *lines[2:], [], []])

    message = open_error(tmp_path, make_manifest(tmp_path))

    assert "train.km:3: the line is empty" in message and "train.km:6: the line is empty" in message
    assert "train.km:7: the last line is empty" in message

    # Where lines are missing, empty ones are not what is wrong.
    write_plain(tmp_path, [*lines[:2], []])

    message = open_error(tmp_path, make_manifest(tmp_path))

    assert "were all shards merged" in message and "is empty" not in message


def test_byte_order_marks_are_tolerated(tmp_path: Path) -> None:
    units = make_units()

    write_plain(tmp_path, [u.tolist() for u in units])

    for name in ("train.km", "dict.km.txt"):
        path = tmp_path / name

        path.write_bytes(BOM + path.read_bytes())

    labels = open_labels(tmp_path, "train", "km", make_manifest(tmp_path))

    assert [labels[i].tolist() for i in range(4)] == [u.tolist() for u in units]


def test_a_missing_dictionary_tells_what_can_be_done_everywhere(tmp_path: Path) -> None:
    write_plain(tmp_path, [u.tolist() for u in make_units()])

    (tmp_path / "dict.km.txt").unlink()

    message = open_error(tmp_path, make_manifest(tmp_path))

    assert "Write it: a line '<unit> 1' for each unit" in message
    assert "`fairseq2 recipe hubert label OUT" in message and "label_size=K`" in message
    assert "`size`" not in message


@pytest.mark.parametrize(
    ("name", "folder", "label_set"), [("../fine/km", "../fine", "km"), ("/x/train.km", "/x", "km"), ("/km", "/", "km")]
)
def test_label_sets_are_not_named_by_paths(tmp_path: Path, name: str, folder: str, label_set: str) -> None:
    manifest = make_manifest(tmp_path)

    for call in (
        lambda: open_labels(tmp_path, "train", name, manifest),
        lambda: read_kaldi_labels(tmp_path / "ali.scp", name, manifest),
        lambda: conversion_problems(tmp_path / "ali.scp", tmp_path, name, manifest),
    ):
        with pytest.raises(LabelError) as info:
            call()

        assert f"named by how its files end ('km' is 'train.km'), but '{name}' is a path" in str(info.value)
        assert f"the folder '{folder}' as `label_dir`, and the label set '{label_set}'" in str(info.value)


def test_numbers_that_no_unit_has_fill_no_memory(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path)

    lines: list[list[object]] = [u.tolist() for u in make_units()]

    lines[1][0] = "9" * 5000

    write_plain(tmp_path, lines)

    assert "train.km:2: label 99999999999999999999 is out of range" in open_error(tmp_path, manifest)

    write_plain(tmp_path, [u.tolist() for u in make_units()])

    for number in ("9999999999999", "9" * 5000, "٣"):
        (tmp_path / "dict.km.txt").write_text(f"0 1\n{number} 1\n")

        assert f"dict.km.txt:2: '{number[:40]}' is not a unit number from 0 to" in open_error(tmp_path, manifest)


def test_a_record_without_size_or_rate_is_named(tmp_path: Path) -> None:
    manifest, spec = make_manifest(tmp_path), LabelSetSpec("km", 10, 50)

    write_labels(tmp_path, "train", spec, make_units(), manifest, provenance={})

    sidecar = tmp_path / "train.km.json"

    for label_set in ({"name": "km"}, {"name": "km", "size": "ten", "rate": 50}, "km"):
        record = json.loads(sidecar.read_text()) | {"label_set": label_set}

        sidecar.write_text(json.dumps(record))

        assert "must say the size and the rate of its label set" in open_error(tmp_path, manifest)
