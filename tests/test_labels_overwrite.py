"""Labels of another making are not lost without a word; those of the same making may be made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_corpus import make_corpus
from processes import command_server
from tiny_labels import PROVENANCE, SPECS, files, make_manifest, make_units

from hubert_plugin.data.label_convert import conversion_problems, convert_labels
from hubert_plugin.data.label_pieces import LabelPieces
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import KMeansUnitModel


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")

    make_corpus(folder, num_train=3, num_valid=2)

    source = MfccSource(MfccConfig(rate=100))

    for k in (5, 8):
        centroids = np.random.default_rng(k).standard_normal((k, source.dim)).astype(np.float32)

        KMeansUnitModel({LabelSetSpec("km", k, 100): centroids}, {}).save(folder / f"k{k}.safetensors")

    return folder


def label(corpus: Path, out: Path, *options: str, expected: int = 0) -> str:
    args = ["recipe", "hubert", "label", str(out), "--no-rich", "--config", f"manifest_dir={corpus}", "num_workers=1"]

    run = command_server().run(*args, *options)

    assert run.poll() == expected, run.raw

    return run.text


def labels_in(folder: Path) -> dict[str, bytes]:
    return {n: b for n, b in files(folder).items() if n.startswith(("train.", "valid.", "dict."))}


def test_labels_of_another_unit_model_or_manifest_are_replaced_on_request_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"

    old, new = f"unit_model={corpus}/k5.safetensors", f"unit_model={corpus}/k8.safetensors"

    label(corpus, out, old)

    before = labels_in(out)

    message = label(corpus, out, new, expected=2)

    assert f"'{out}' already holds labels of another making, which would be lost" in message
    assert "Choose another output folder, or set `overwrite=true`" in message

    for split in ("train", "valid"):
        assert f"{split}.km: they were made by another unit model: fingerprint" in message

    assert labels_in(out) == before and not list(out.glob("*.pieces"))

    # Another manifest of the same name.
    write_manifest(tmp_path / "other/train.tsv", corpus / "wav", [("train0.wav", 4_000)])

    assert "train.km: they were made for another manifest" in label(tmp_path / "other", out, old, expected=2)
    assert labels_in(out) == before

    label(corpus, out, new, "overwrite=true")

    assert open_labels(out, "train", "km", read_manifest(corpus, "train")).spec.size == 8

    # The other form takes the place of labels of the same making, and is refused in the place of others.
    label(corpus, out, new, "format=binary")

    assert not (out / "train.km").exists()
    assert "train.km.safetensors: they were made by another unit model" in label(corpus, out, old, expected=2)


def test_kaldi_vectors_of_replaced_labels_go_with_them(corpus: Path, tmp_path: Path) -> None:
    old, new = f"unit_model={corpus}/k5.safetensors", f"unit_model={corpus}/k8.safetensors"

    label(corpus, tmp_path, old, "kaldi_ark=true")
    label(corpus, tmp_path, old)

    assert sorted(p.name for p in tmp_path.glob("*.km.scp")) == ["train.km.scp", "valid.km.scp"]

    label(corpus, tmp_path, new, "overwrite=true")

    assert not [*tmp_path.glob("*.scp"), *tmp_path.glob("*.ark")]


def test_shards_are_not_for_labels_that_exist(corpus: Path, tmp_path: Path) -> None:
    message = label(corpus, tmp_path, "labels_from=labels", "num_shards=4", "shard=2", expected=2)

    assert "`num_shards` and `shard` belong to `unit_model`" in message


def test_own_labels_without_a_record_are_not_touched(corpus: Path, tmp_path: Path) -> None:
    own = {"train.km": b"1 2 3\n", "dict.km.txt": b"1 1\n2 1\n3 1\n"}

    for name, content in own.items():
        (tmp_path / name).write_bytes(content)

    model = f"unit_model={corpus}/k5.safetensors"

    message = label(corpus, tmp_path, model, expected=2)

    assert "train.km: there is no record 'train.km.json' of what made them" in message
    assert labels_in(tmp_path) == own

    label(corpus, tmp_path, model, "overwrite=true")

    assert open_labels(tmp_path, "train", "km", read_manifest(corpus, "train")).spec.size == 5


def test_what_a_killed_run_left_or_is_damaged_is_made_again(corpus: Path, tmp_path: Path) -> None:
    model = f"unit_model={corpus}/k5.safetensors"

    label(corpus, tmp_path, model)

    whole = labels_in(tmp_path)

    (tmp_path / "train.km").write_bytes(whole["train.km"][:-5])
    (tmp_path / "dict.km.txt").unlink()

    label(corpus, tmp_path, model)

    assert labels_in(tmp_path) == whole


@pytest.mark.parametrize("form", ["km", "binary"])
def test_labels_of_other_features_are_told_from_those_of_the_same(tmp_path: Path, form: str) -> None:
    manifest = make_manifest(tmp_path, [16_000, 8_000])

    def store(**more: object) -> LabelPieces:
        return LabelPieces(tmp_path, manifest, SPECS, {**PROVENANCE, **more}, form=form)  # type: ignore[arg-type]

    pieces = [range(0, 1), range(1, 2)]

    assert store().replacing_problems(pieces) == []

    for piece in pieces:
        store().write(piece, [make_units(manifest, i) for i in piece])

    assert store().join(pieces) and store().replacing_problems(pieces) == []

    others = store(features={"kind": "others"}).replacing_problems(pieces)

    assert len(others) == len(SPECS) and all("made with other features" in p and "others" in p for p in others)

    data = {"manifest_fingerprint": "0", "files": "1"}

    (tmp_path / "files").mkdir()

    def of_files(**changes: str) -> LabelPieces:
        more = {"data": {**data, **changes}}

        return LabelPieces(tmp_path / "files", manifest, SPECS, {**PROVENANCE, **more}, form=form)  # type: ignore[arg-type]

    for piece in pieces:
        of_files().write(piece, [make_units(manifest, i) for i in piece])

    assert of_files().join(pieces) and of_files().replacing_problems(pieces) == []

    assert all("files that were written anew" in p for p in of_files(files="2").replacing_problems(pieces))
    assert all("with other data" in p for p in of_files(files="2", manifest_fingerprint="3").replacing_problems(pieces))

    if form == "binary":
        path = tmp_path / "train.a.safetensors"

        path.write_bytes(path.read_bytes()[:-1])

        assert not store().is_joined() and store().replacing_problems(pieces) == []

        path.write_bytes(b"no labels")

        assert "train.a.safetensors: The labels" in store().replacing_problems(pieces)[0]


def test_labels_that_were_joined_without_their_record_are_joined_again(tmp_path: Path) -> None:
    """A kill between two renames: the pieces are still there."""
    manifest = make_manifest(tmp_path, [16_000, 8_000])

    store = LabelPieces(tmp_path, manifest, SPECS, PROVENANCE)

    pieces = [range(0, 2)]

    (tmp_path / "train.a").write_text("half\n")

    assert ["train.a: there is no record" in p for p in store.replacing_problems(pieces)] == [True]

    store.write(pieces[0], [make_units(manifest, i) for i in pieces[0]])

    assert store.replacing_problems(pieces) == [] and store.join(pieces)


def test_converted_labels_replace_their_like_alone(corpus: Path, tmp_path: Path) -> None:
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"

    label(corpus, a, f"unit_model={corpus}/k5.safetensors")
    label(corpus, b, f"unit_model={corpus}/k8.safetensors")

    for _ in range(2):
        label(corpus, out, f"labels_from={a}")

    before = labels_in(out)

    assert before == labels_in(a)

    message = label(corpus, out, f"labels_from={b}", expected=2)

    assert "train.km: they were made by another unit model" in message and "`overwrite=true`" in message
    assert labels_in(out) == before

    label(corpus, out, f"labels_from={a}", "format=binary")
    label(corpus, out, f"labels_from={out}")  # in its own place

    assert labels_in(out) == before

    label(corpus, out, f"labels_from={b}", "overwrite=true")

    assert labels_in(out) == labels_in(b)


def test_labels_without_records_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [16_000, 8_000])

    out = tmp_path / "out"

    units = [[make_units(manifest, i)[0] for i in seeds] for seeds in ((0, 1), (0, 1))]

    units[1] = [(u + 1) % 7 for u in units[1]]

    for name, labels in zip(("mine", "yours"), units, strict=True):
        write_labels(tmp_path / name, "train", SPECS[0], labels, manifest, {})

        (tmp_path / name / "train.a.json").unlink()

    convert_labels(tmp_path / "mine", out, "a", manifest, form="km")

    def problems(source: str) -> list[str]:
        return conversion_problems(tmp_path / source, out, "a", manifest)

    assert problems("mine") == []
    assert "train.a: they are other labels than those in" in problems("yours")[0]

    # A run was killed after its labels, and before their record.
    (out / "train.a.json").unlink()

    assert problems("mine") == []
    assert "train.a: there is no record" in problems("yours")[0]

    (out / "train.a.json").write_text(json.dumps({"format": "another"}))

    assert "must be a record of labels" in problems("mine")[0]
