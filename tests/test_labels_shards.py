"""Labelling in pieces: killed, sharded over ranks and over array jobs, the labels are those of one unbroken run."""

from __future__ import annotations

import os
import random
import resource
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from builders import Run, command_server, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin.data import label_pieces
from hubert_plugin.data.label_convert import (
    convert_labels,
    list_label_sets,
    read_kaldi_labels,
    write_kaldi_labels,
)
from hubert_plugin.data.label_pieces import MIN_PIECE_SECONDS, NUM_PIECES, LabelPieces, cut_pieces
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.manifest import Manifest, read_manifest, write_manifest
from hubert_plugin.data.shards import shard_range
from hubert_plugin.data.utterance_ids import read_utterance_ids, write_utterance_ids
from hubert_plugin.errors import LabelError, StorageError
from hubert_plugin.frames import num_labels
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import KMeansUnitModel

SPECS = (LabelSetSpec("a", 7, 50), LabelSetSpec("b", 40_000, 50))

PROVENANCE = {"unit_model_fingerprint": "abc", "features": {"kind": "tests"}}


def make_manifest(folder: Path, sizes: Sequence[int]) -> Manifest:
    return Manifest(folder / "train.tsv", "train", folder, [f"{i}.wav" for i in range(len(sizes))], np.array(sizes))


def make_units(manifest: Manifest, idx: int) -> list[np.ndarray]:
    rng = np.random.default_rng(idx)

    return [rng.integers(s.size, size=num_labels(int(manifest.sizes[idx]), 50)).astype(np.int32) for s in SPECS]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.suffix in (".tmp", ".lock") or p.name.endswith(".pieces")]


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


# ---- kaldi's vectors of integers, and conversions ----


def test_labels_go_through_all_forms_unchanged(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, [16_000, 8_000, 32_123, 400])

    spec = SPECS[0]

    units = [make_units(manifest, i)[0] for i in range(4)]

    write_labels(tmp_path / "km", "train", spec, units, manifest, PROVENANCE)

    convert_labels(tmp_path / "km", tmp_path / "binary", "a", manifest, form="binary")
    convert_labels(tmp_path / "binary", tmp_path / "again", "a", manifest, form="km")

    assert files(tmp_path / "again") == files(tmp_path / "km")

    # In place: the form changes, and only one stays.
    convert_labels(tmp_path / "again", tmp_path / "again", "a", manifest, form="binary")

    assert (tmp_path / "again/train.a.safetensors").read_bytes() == (
        tmp_path / "binary/train.a.safetensors"
    ).read_bytes()
    assert not (tmp_path / "again/train.a").exists()

    ids = [f"utt-{i}" for i in range(4)]

    write_utterance_ids(manifest.path, ids)

    scp = write_kaldi_labels(open_labels(tmp_path / "binary", "train", "a", manifest), manifest, tmp_path / "ark")

    assert scp.read_text().split()[0] == "utt-0"

    for table in (scp, scp.with_suffix(".ark")):
        labels = read_kaldi_labels(table, "a", manifest, size=7)

        assert labels.spec == spec and [labels[i].tolist() for i in range(4)] == [u.tolist() for u in units]

    assert convert_labels(scp, tmp_path / "back", "a", manifest, form="km", size=7) == spec

    import kaldiio

    commands = tmp_path / "commands.scp"

    for idx, key in enumerate(read_utterance_ids(manifest)):
        kaldiio.save_ark(str(tmp_path / f"{idx}.ark"), {key: labels[idx]})

        with commands.open("a") as fp:
            fp.write(f"{key} tail -c +{len(key) + 2} {tmp_path}/{idx}.ark |\n")

    with pytest.raises(LabelError, match="set `allow_pipes: true`"):
        convert_labels(commands, tmp_path / "piped", "a", manifest, form="km", size=7)

    assert convert_labels(commands, tmp_path / "piped", "a", manifest, form="km", size=7, allow_pipes=True) == spec

    assert (tmp_path / "piped/train.a").read_bytes() == (tmp_path / "back/train.a").read_bytes()
    assert (tmp_path / "back/train.a").read_bytes() == (tmp_path / "km/train.a").read_bytes()


def test_kaldi_labels_that_do_not_fit_are_named_all_at_once(tmp_path: Path) -> None:
    import kaldiio

    sizes = [16_000] * 30

    manifest = make_manifest(tmp_path, sizes)

    def fail(vectors: dict[str, list[int]], **kwargs: int) -> str:
        kaldiio.save_ark(str(tmp_path / "ali.ark"), {k: np.array(v, np.int32) for k, v in vectors.items()})

        with pytest.raises(LabelError) as info:
            read_kaldi_labels(tmp_path / "ali.ark", "a", manifest, **kwargs)

        return str(info.value)

    good = {i: [1] * 49 for i in manifest.ids}

    message = fail({k: v for k, v in good.items() if k != "7.wav"} | {"other": [1]})

    assert "1 of 30 utterances are missing, 1 others are there" in message and "'7.wav' is missing" in message

    message = fail({})
    assert "is empty" in message

    message = fail({**good, "3.wav": [1] * 40, "4.wav": [], "5.wav": [1] * 51})
    assert "'3.wav': too short: 40 labels, but '3.wav' (16000 samples, train.tsv:5) has 49 frames" in message
    assert "'4.wav': the line is empty" in message and "'5.wav': too long: 51" in message

    message = fail({**good, "3.wav": [9] * 49, "4.wav": [-1] * 49}, size=5)
    assert "'3.wav' has the labels 9 … 9, but units are 0 … 4" in message and "'4.wav' has the labels -1" in message

    assert "20.0 labels per second" in fail({i: [1] * 20 for i in manifest.ids})

    message = fail({i: [9] * 49 for i in manifest.ids}, size=5)
    assert message.count("has the labels") == 20 and "and 10 more" in message


# ---- the verb ----


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")

    rng = np.random.default_rng(0)

    (folder / "wav").mkdir()

    rows = []

    for i in range(48):
        n = int(rng.integers(8 * 16_000, 12 * 16_000))

        sf.write(folder / f"wav/{i:02}.wav", 0.1 * rng.standard_normal(n), 16_000)

        rows.append((f"{i:02}.wav", n))

    write_manifest(folder / "train.tsv", "wav", rows)
    write_manifest(folder / "valid.tsv", "wav", rows[:3])

    source = MfccSource(MfccConfig(rate=100))

    codebooks = {
        LabelSetSpec(f"km{k}", k, 100): rng.standard_normal((k, source.dim)).astype(np.float32) * 10 for k in (5, 20)
    }

    KMeansUnitModel(codebooks, {}).save(folder / "units.safetensors")

    return folder


@pytest.fixture(scope="module")
def unbroken(corpus: Path) -> dict[str, bytes]:
    run = command_server().run(*label_args(corpus, corpus / "unbroken"))

    assert run.poll() == 0, run.raw

    return labels_in(corpus / "unbroken")


def label_args(corpus: Path, out: Path, *more: str, splits: str = "[train, valid]") -> list[str]:
    return [
        *("recipe", "hubert", "label", str(out), "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"unit_model={corpus}/units.safetensors", f"splits={splits}", "num_workers=1", *more),
    ]


def labels_in(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith(("train.", "valid.", "dict."))}


def test_a_killed_run_goes_on_with_what_is_finished(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"

    pieces_made: dict[str, int] = {}

    for _ in range(3):
        run = command_server().start(*label_args(corpus, out))

        num_before = len(pieces_made)

        # Killed at a moment that is not chosen: some time after another piece was finished.
        wait_until(lambda: len(list(out.glob("train.*.pieces/*.safetensors"))) > num_before, run=run)  # noqa: B023

        time.sleep(random.Random(num_before).uniform(0.0, 0.02))

        run.kill()

        now = {p.name: p.stat().st_mtime_ns for p in out.glob("train.*.pieces/*.safetensors")}

        # What was finished before was not made again.
        assert {k: now[k] for k in pieces_made} == pieces_made and len(now) > num_before

        pieces_made = now

    assert not (out / "train.km5").exists()

    (folder,) = out.glob("train.*.pieces")

    (folder / ".00000000-00000006.safetensors.abcd1234.tmp").touch()  # in case that no kill met a write
    (out / ".train.km5.abcd1234.tmp").touch()

    run = command_server().run(*label_args(corpus, out))

    assert run.poll() == 0, run.raw
    assert "pieces were finished before" in run.text

    assert labels_in(out) == unbroken and leftovers(out) == []

    # The same command once more has nothing to do, and does nothing.
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("*.km*")}

    (out / "labels.lock").touch()  # killed at the very last moment

    run = command_server().run(*label_args(corpus, out))

    assert run.poll() == 0 and "are there already, and fit" in run.text
    assert leftovers(out) == []
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.km*")} == stamps


def test_jobs_of_an_array_leave_the_labels_of_one_run(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    runs = [
        command_server().start(*label_args(corpus, tmp_path, "num_shards=3", f"shard={i}", splits="[train, valid]"))
        for i in (2, 0)
    ]

    for run in runs:
        assert run.wait() == 0, run.raw
        assert "whoever finishes the last one joins them" in run.text

    assert not (tmp_path / "train.km5").exists()

    run = command_server().run(*label_args(corpus, tmp_path, "num_shards=3", "shard=1"))

    assert run.poll() == 0, run.raw

    assert labels_in(tmp_path) == unbroken and leftovers(tmp_path) == []


def start_ranks(args: list[str], world_size: int) -> list[Run]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

        port = sock.getsockname()[1]

    return [
        command_server().start(
            *args,
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            },
        )
        for rank in range(world_size)
    ]


def test_two_ranks_leave_the_labels_of_one(corpus: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    for run in start_ranks(label_args(corpus, tmp_path), 2):
        assert run.wait() == 0, run.raw

    assert labels_in(tmp_path) == unbroken and leftovers(tmp_path) == []


def test_a_rank_that_fails_ends_the_others_and_keeps_what_is_finished(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    broken = tmp_path / "corpus"

    shutil.copytree(corpus, broken, ignore=shutil.ignore_patterns("unbroken"))

    victim = broken / "wav/40.wav"

    data = victim.read_bytes()

    victim.write_bytes(data[:1000])

    out = tmp_path / "out"

    args = label_args(broken, out, splits="[train]")

    runs = start_ranks(args, 2)

    assert [run.wait() for run in runs] == [2, 2], [run.raw for run in runs]

    # Ranks beyond the first tell their story to a file only.
    texts = [" ".join(p.read_text().split()) for p in (out / "logs").glob("rank_*.log")]

    assert sum("40.wav' is truncated" in t for t in texts) == 1
    assert sum("Another process of this job failed" in t for t in texts) == 1

    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("train.*.pieces/*.safetensors")}

    assert kept and not (out / "train.km5").exists()

    victim.write_bytes(data)

    run = command_server().start(*args)

    assert run.wait() == 0, run.raw
    assert f"{len(kept)} of" in run.text and leftovers(out) == []

    assert labels_in(out) == {k: v for k, v in unbroken.items() if not k.startswith("valid.")}


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_space(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, splits="[train]"), max_file_bytes=60_000)

    assert run.poll() == 2 and "cannot be written" in run.text, run.raw
    assert not (tmp_path / "train.km5").exists() and list(tmp_path.glob("train.*.pieces/*.safetensors"))

    run = command_server().run(*label_args(corpus, tmp_path, splits="[train]"))

    assert run.poll() == 0 and leftovers(tmp_path) == [], run.raw
    assert labels_in(tmp_path) == {k: v for k, v in unbroken.items() if not k.startswith("valid.")}


def test_the_binary_form_and_kaldi_vectors_come_from_the_same_verb(
    corpus: Path, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, "format=binary", "kaldi_ark=true", splits="[valid]"))

    assert run.poll() == 0, run.raw

    manifest = read_manifest(corpus, "valid")

    for name in ("km5", "km20"):
        binary = open_labels(tmp_path, "valid", name, manifest)
        text = open_labels(corpus / "unbroken", "valid", name, manifest)
        kaldi = read_kaldi_labels(tmp_path / f"valid.{name}.scp", name, manifest)

        for i in range(3):
            assert binary[i].tolist() == text[i].tolist() == kaldi[i].tolist()

    # Back to text, by the verb: the very files of the run that wrote text.
    back = tmp_path / "back"

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"labels_from={tmp_path}", "splits=[valid]"),
    )

    assert run.poll() == 0, run.raw

    assert labels_in(back) == {k: v for k, v in unbroken.items() if not k.startswith("train.")}

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}", "splits=[valid]"),
        *(f"labels_from={tmp_path}/valid.km5.scp", "label_sets=[pdf]", "label_size=5"),
    )

    assert run.poll() == 0 and (back / "valid.pdf").read_bytes() == unbroken["valid.km5"], run.raw

    run = command_server().run(
        *("recipe", "hubert", "label", back, "--no-rich", "--config", f"manifest_dir={corpus}"),
        *(f"labels_from={tmp_path}/valid.km5.scp", "splits=[train]"),
    )

    assert run.poll() == 2 and "45 of 48 utterances are missing" in run.text


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["num_shards=3", "shard=3"], "`shard` must be at least 0 and below `num_shards` (3), but is 3"),
        (["format=text"], "`format` must be km or binary, but is 'text'"),
        (["labels_from=/x"], "must not both be given"),
        (["label_rate=50"], "belong to `labels_from`"),
        (["allow_pipes=true"], "`allow_pipes` belongs to `labels_from`"),
    ],
)
def test_settings_that_cannot_be_are_refused(corpus: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    run = command_server().run(*label_args(corpus, tmp_path, *overrides))

    assert run.poll() == 2 and message in run.text, run.raw


@pytest.fixture(autouse=True)
def no_files_left_open() -> Iterator[None]:
    yield

    with suppress(FileNotFoundError):
        assert not [t for p in Path("/proc/self/fd").iterdir() if (t := os.readlink(p)).endswith(".lock")]
