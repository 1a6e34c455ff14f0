"""Pieces of labels: whoever finishes the last one joins them, and what is damaged or of other origin is not used."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_labels import PROVENANCE, SPECS, files, leftovers, make_manifest, make_units

from hubert_plugin.data import label_pieces
from hubert_plugin.data.label_convert import list_label_sets
from hubert_plugin.data.label_pieces import MIN_PIECE_SECONDS, NUM_PIECES, LabelPieces, cut_pieces
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.shards import shard_range
from hubert_plugin.errors import LabelError, StorageError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(400, 30 * 16_000), min_size=1, max_size=300), st.integers(1, 5), st.integers(1, 40))
def test_pieces_cover_each_shard_once_in_order(sizes: list[int], num_shards: int, num_ranks: int) -> None:
    manifest = make_manifest(Path("x"), sizes)

    shards = cut_pieces(manifest, num_shards, num_ranks=num_ranks)

    for index, pieces in enumerate(shards):
        shard = shard_range(len(sizes), (index, num_shards))

        assert [i for p in pieces for i in p] == list(shard)
        assert all(len(p) > 0 for p in pieces)

        for piece in pieces[:-1]:  # no piece but the last of a shard is shorter than the least length
            assert sum(sizes[i] for i in piece) >= min(MIN_PIECE_SECONDS * 16_000, sum(sizes) / NUM_PIECES)

    if num_ranks <= 16:
        assert shards == cut_pieces(manifest, num_shards)


@pytest.mark.parametrize("form", ["km", "binary"])
def test_pieces_are_joined_by_whoever_finishes_last(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_pieces, "MIN_PIECE_SECONDS", 1)

    manifest = make_manifest(tmp_path, [16_000 + 320 * i for i in range(40)])

    store = LabelPieces(tmp_path, manifest, SPECS, PROVENANCE, form=form)  # type: ignore[arg-type]

    pieces = [p for shard in cut_pieces(manifest, 3) for p in shard]

    assert len(pieces) > 10

    order = random.Random(0).sample(pieces, len(pieces))

    for piece in order:
        assert not store.is_joined() and not store.join(pieces) and not store.has(piece)

        store.write(piece, [make_units(manifest, i) for i in piece])

        assert store.has(piece)

    assert store.join(pieces) and store.is_joined() and leftovers(tmp_path) == []

    assert store.join(pieces)  # the second that finishes at the same time

    expected = tmp_path / "expected"

    for k, spec in enumerate(SPECS):
        units = [make_units(manifest, i)[k] for i in range(40)]

        write_labels(expected, "train", spec, units, manifest, PROVENANCE, form=form)  # type: ignore[arg-type]

        labels = open_labels(tmp_path, "train", spec.name, manifest)

        for i, u in enumerate(units):
            np.testing.assert_array_equal(labels[i], u)

    for name, content in files(expected).items():
        assert (tmp_path / name).read_bytes() == content

    # Labels of another origin are no reason to do nothing.
    other = {**PROVENANCE, "unit_model_fingerprint": "other"}

    assert not LabelPieces(tmp_path, manifest, SPECS, other, form=form).is_joined()  # type: ignore[arg-type]
    assert not LabelPieces(tmp_path, manifest, SPECS[:1], {**PROVENANCE, "features": 1}, form=form).is_joined()  # type: ignore[arg-type]
    assert not LabelPieces(tmp_path, make_manifest(tmp_path, [16_000]), SPECS, PROVENANCE, form=form).is_joined()  # type: ignore[arg-type]


def test_what_tells_labels_apart_is_the_fingerprint_of_a_model_and_not_its_name(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [16_000, 16_000])

    def store(model: str, fingerprint: str | None) -> LabelPieces:
        features = {"name": "hubert_layer", "model": model, "model_fingerprint": fingerprint}

        return LabelPieces(tmp_path, manifest, SPECS[:1], {**PROVENANCE, "features": features})

    piece = range(2)

    for fingerprint in ("1234", None):
        ours = store("runs/a", fingerprint)

        ours.write(piece, [make_units(manifest, i)[:1] for i in piece])

        assert ours.has(piece)
        assert store("runs/b", fingerprint).has(piece) == (fingerprint is not None)
        assert not store("runs/a", "5678").has(piece)

        assert ours.join([piece]) and ours.is_joined()
        assert store("runs/b", fingerprint).is_joined() == (fingerprint is not None)
        assert not store("runs/a", "5678").is_joined()


def test_transcripts_beside_labels_are_no_label_sets(tmp_path: Path) -> None:
    for name in ("km", "km.json", "tsv", "wrd", "ltr", "phn", "ids.txt", "ark", "it2.safetensors"):
        (tmp_path / f"train.{name}").write_text("1\n")

    assert list(list_label_sets(tmp_path, "train")) == ["it2", "km"]


def test_pieces_of_other_origin_or_damaged_are_not_used(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [16_000] * 4)

    piece = range(0, 4)

    labels = [make_units(manifest, i) for i in piece]

    LabelPieces(tmp_path, manifest, SPECS, {**PROVENANCE, "features": "others"}).write(piece, labels)

    store = LabelPieces(tmp_path, manifest, SPECS, PROVENANCE)

    assert not store.has(piece) and not store.join([piece])

    store.write(piece, labels)

    (path,) = store.folder.iterdir()

    data = path.read_bytes()

    path.write_bytes(data[:100])
    assert not store.has(piece)

    path.write_bytes(data[:-4])

    with pytest.raises(LabelError, match="is damaged"):
        store.join([piece])

    assert leftovers(tmp_path) == [store.folder.name]


def test_a_full_disk_keeps_the_finished_pieces_and_the_previous_labels(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [160_000] * 50)

    for spec in SPECS:
        write_labels(tmp_path, "train", spec, [make_units(manifest, 0)[SPECS.index(spec)]] * 50, manifest, {})

    store = LabelPieces(tmp_path, manifest, SPECS, PROVENANCE)

    pieces = [range(0, 25), range(25, 50)]

    store.write(pieces[0], [make_units(manifest, i) for i in pieces[0]])

    before = files(tmp_path)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    try:
        limited(10_000)

        with pytest.raises(StorageError, match="cannot be written"):
            store.write(pieces[1], [make_units(manifest, i) for i in pieces[1]])

        limited(soft)

        assert files(tmp_path) == before

        store.write(pieces[1], [make_units(manifest, i) for i in pieces[1]])

        before = files(tmp_path)

        limited(30_000)

        with pytest.raises(StorageError, match="cannot be written"):
            store.join(pieces)
    finally:
        limited(soft)

    assert files(tmp_path) == before

    assert store.join(pieces) and leftovers(tmp_path) == []


@pytest.fixture(autouse=True)
def no_files_left_open() -> Iterator[None]:
    yield

    with suppress(FileNotFoundError):
        assert not [t for p in Path("/proc/self/fd").iterdir() if (t := os.readlink(p)).endswith(".lock")]
