"""Features in files are a feature source like any other: the same units, and what does not fit is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile as sf
from processes import command_server

from hubert_plugin.data.feature_files import FeatureFormat, open_feature_writer
from hubert_plugin.data.label_convert import convert_labels
from hubert_plugin.data.labels import open_labels
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import ConfigError, UnitModelError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.label import LabelJob, check_features, label_manifest
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import KMeansUnitModel, load_units
from hubert_plugin.units.stored import StoredFeatureConfig, StoredFeatureSource, open_feature_stream
from hubert_plugin.units.stream import AudioFeatureStream

KINDS: tuple[FeatureFormat, ...] = ("kaldi", "fairseq")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")

    rng = np.random.default_rng(0)

    (folder / "wav").mkdir()

    rows = []

    for i in range(30):
        n = int(rng.integers(4_000, 12_000))

        sf.write(folder / f"wav/{i:02}.wav", 0.1 * rng.standard_normal(n), 16_000)

        rows.append((f"{i:02}.wav", n))

    write_manifest(folder / "train.tsv", "wav", rows)

    return folder


@pytest.fixture(scope="module")
def mfcc(corpus: Path) -> list[np.ndarray]:
    return [f.copy() for _, f in AudioFeatureStream(read_manifest(corpus, "train"), MfccSource(), num_workers=1).read()]


def unit_model(**provenance: object) -> KMeansUnitModel:
    rng = np.random.default_rng(1)

    return KMeansUnitModel(
        {LabelSetSpec("km", 8, 100): rng.standard_normal((8, 39)).astype(np.float32) * 20}, provenance
    )


def dump(folder: Path, matrices: list[np.ndarray], corpus: Path, kind: FeatureFormat, **provenance: object) -> None:
    ids = read_manifest(corpus, "train").ids

    with open_feature_writer(kind, folder, "train", dim=39, rate=100, provenance=provenance) as writer:
        for i, f in zip(ids, matrices, strict=True):
            writer.write(i, f)


def stored(kind: FeatureFormat, path: Path, **kwargs: object) -> StoredFeatureSource:
    return StoredFeatureSource(kind, StoredFeatureConfig(path=path, **kwargs))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_units_of_stored_features_are_those_of_audio(
    corpus: Path, mfcc: list[np.ndarray], tmp_path: Path, kind: FeatureFormat
) -> None:
    manifest = read_manifest(corpus, "train")

    audio = open_feature_stream(manifest, MfccSource())

    # What was dumped by us says what it is, so a unit model fitted on one is a unit model for the other.
    dump(tmp_path, mfcc, corpus, kind, features=audio.describe())

    model = unit_model(features=audio.describe())

    files = open_feature_stream(manifest, stored(kind, tmp_path))

    assert (files.dim, files.rate, files.describe()) == (39, 100, audio.describe())
    assert files.num_frames().tolist() == audio.num_frames().tolist()

    label_manifest(audio, model, tmp_path / "a")
    label_manifest(files, model, tmp_path / "b")

    for name in ("train.km", "train.km.json", "dict.km.txt"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    # A model is known by its fingerprint, whatever it is called; without one by its name.
    layer = {**audio.describe(), "model": "runs/a", "model_fingerprint": "1234"}

    dump(tmp_path / "layer", mfcc, corpus, kind, features=layer)

    files = open_feature_stream(manifest, stored(kind, tmp_path / "layer"))

    check_features(unit_model(features={**layer, "model": "runs/b"}), files)

    for change in ({"model_fingerprint": "5678"}, {"model_fingerprint": None}, {"layer": 6}):
        with pytest.raises(UnitModelError, match="was fitted on the features"):
            check_features(unit_model(features={**layer, **change}), files)

    other = unit_model(features={**audio.describe(), "kind": "other"})

    with pytest.raises(UnitModelError, match="was fitted on the features"):
        label_manifest(files, other, tmp_path / "c")


@pytest.mark.parametrize("name, binary", [("mfcc", False), ("hubert", True)])
def test_fairseqs_dump_and_model_give_fairseqs_labels(name: str, binary: bool, tmp_path: Path) -> None:
    golden = Path(__file__).parent / "data" / "kmeans"

    shutil.copy(golden / "train.tsv", tmp_path / "train.tsv")

    manifest = read_manifest(tmp_path, "train", check_files=False)

    stream = open_feature_stream(manifest, stored("fairseq", golden / name))

    model = load_units(golden / f"km_{name}.joblib", trust_pickle=True)

    label_manifest(stream, model, tmp_path, form="binary" if binary else "km")

    if binary:
        convert_labels(tmp_path, tmp_path, "km", manifest, form="km")

    assert (tmp_path / "train.km").read_bytes() == (golden / f"lab_{name}/train_0_1.km").read_bytes()


def test_features_of_other_tools_may_lack_a_frame(corpus: Path, mfcc: list[np.ndarray], tmp_path: Path) -> None:
    manifest = read_manifest(corpus, "train")

    odd = [f[: len(f) - i % 3] if i % 2 else np.concatenate([f, f[-1:]]) for i, f in enumerate(mfcc)]

    (tmp_path / "train").mkdir()

    kaldiio.save_ark(
        str(tmp_path / "f.ark"), dict(zip(manifest.ids, odd, strict=True)), str(tmp_path / "train/feats.scp")
    )

    model = unit_model()

    stream = open_feature_stream(manifest, stored("kaldi", tmp_path / "train/feats.scp"))

    assert stream.rate == 100 and stream.describe() == {"kind": "kaldi", "dim": 39, "rate": 100}

    label_manifest(stream, model, tmp_path / "labels")

    labels = open_labels(tmp_path / "labels", "train", "km", manifest)

    for i, f in enumerate(odd):
        np.testing.assert_array_equal(labels[i], model.assign(f)[0][: len(mfcc[i])])


@pytest.mark.parametrize("form", ["km", "binary"])
def test_labels_of_audio_of_one_frame_that_other_tools_gave_none_are_read(tmp_path: Path, form: str) -> None:
    write_manifest(tmp_path / "train.tsv", "wav", [("a.wav", 16_000), ("b.wav", 400), ("c.wav", 16_000)])

    manifest = read_manifest(tmp_path, "train", check_files=False)

    np.save(tmp_path / "train_0_1.npy", np.random.default_rng(0).standard_normal((196, 39)).astype(np.float32))

    (tmp_path / "train_0_1.len").write_text("98\n0\n98\n")

    label_manifest(open_feature_stream(manifest, stored("fairseq", tmp_path)), unit_model(), tmp_path, form=form)  # type: ignore[arg-type]

    labels = open_labels(tmp_path, "train", "km", manifest)

    assert [len(labels[i]) for i in range(3)] == [98, 0, 98]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_other_tools_that_were_replaced_are_labelled_anew(
    corpus: Path, mfcc: list[np.ndarray], tmp_path: Path, kind: FeatureFormat
) -> None:
    manifest = read_manifest(corpus, "train")

    def write(matrices: list[np.ndarray], seconds: int) -> None:
        if kind == "kaldi":
            kaldiio.save_ark(
                str(tmp_path / "feats.ark"), dict(zip(manifest.ids, matrices, strict=True)), str(tmp_path / "feats.scp")
            )
        else:
            np.save(tmp_path / "train_0_1.npy", np.concatenate(matrices))

            (tmp_path / "train_0_1.len").write_text("".join(f"{len(m)}\n" for m in matrices))

        for path in tmp_path.glob("*_0_1.*" if kind == "fairseq" else "feats.*"):
            os.utime(path, (seconds, seconds))

    def job() -> LabelJob:
        return LabelJob(open_feature_stream(manifest, stored(kind, tmp_path)), unit_model(), tmp_path / "labels")

    def label() -> list[np.ndarray]:
        job().run()

        assert job().join() and job().store.is_joined()

        labels = open_labels(tmp_path / "labels", "train", "km", manifest)

        return [np.array(labels[i]) for i in range(len(manifest))]

    write(mfcc, 1_000)

    first = label()

    # The files are of one size to the byte.
    write([-m for m in mfcc], 2_000)

    assert not job().store.is_joined()

    second = label()

    for a, b, m in zip(first, second, mfcc, strict=True):
        np.testing.assert_array_equal(a, unit_model().assign(m)[0])
        np.testing.assert_array_equal(b, unit_model().assign(-m)[0])

    # What is known by its record stays what it is, wherever it was copied to.
    dump(tmp_path / "ours", mfcc, corpus, kind, features={"kind": "tests"})

    stream = open_feature_stream(manifest, stored(kind, tmp_path / "ours"))

    assert "files" not in stream.describe_data()


def test_a_source_of_files_says_what_it_cannot_do() -> None:
    source = stored("kaldi", Path("x"))

    for act in (lambda: source.dim, lambda: source.rate, lambda: source.extract([])):
        with pytest.raises(UnitModelError, match="reads features from files and computes none from audio"):
            act()

    with pytest.raises(ConfigError, match=r"`features\.config\.path` must say where"):
        StoredFeatureSource("kaldi", StoredFeatureConfig())


def test_all_features_that_cannot_be_read_are_named(corpus: Path, mfcc: list[np.ndarray], tmp_path: Path) -> None:
    manifest = read_manifest(corpus, "train")

    bad = [f.copy() for f in mfcc]

    bad[3][5, 7] = np.nan
    bad[11][0, 0] = np.inf
    bad[12] = bad[12][:, :38]

    kaldiio.save_ark(str(tmp_path / "f.ark"), dict(zip(manifest.ids, bad, strict=True)), str(tmp_path / "feats.scp"))

    data = (tmp_path / "f.ark").read_bytes()

    (tmp_path / "utt2num_frames").write_text("".join(f"{i} {len(f)}\n" for i, f in zip(manifest.ids, bad, strict=True)))

    (tmp_path / "f.ark").write_bytes(data[:-3_000])

    stream = open_feature_stream(manifest, stored("kaldi", tmp_path))

    with pytest.raises(UnitModelError) as info:
        label_manifest(stream, unit_model(), tmp_path / "labels")

    message = str(info.value)

    assert "'03.wav'" in message and "first in frame 5" in message and "'11.wav'" in message
    assert "'12.wav'" in message and "must have 39 numbers a frame as the others have, but have 38" in message
    assert "'29.wav'" in message and "cut off" in message

    # All of the archive's second half is missing: the first 20 of its utterances.
    (tmp_path / "f.ark").write_bytes(data[: len(data) // 5])

    with pytest.raises(UnitModelError) as info:
        list(open_feature_stream(manifest, stored("kaldi", tmp_path)).read())

    assert str(info.value).count("\n  - ") == 20


def test_cluster_and_label_take_a_kaldi_folder_from_the_command_line(tmp_path: Path, mfcc: list[np.ndarray]) -> None:
    """manifest of a kaldi data folder → cluster on its feats.scp → label: nothing of it needs our own files."""
    data = tmp_path / "data"

    data.mkdir()

    rng = np.random.default_rng(3)

    waves = {f"s{i % 3}-utt{i}": (16_000, (rng.standard_normal(9_000 + i) * 2000).astype(np.int16)) for i in range(12)}

    kaldiio.save_ark(str(tmp_path / "wav.ark"), waves, str(data / "wav.scp"))

    (data / "utt2spk").write_text("".join(f"{k} {k[:2]}\n" for k in waves))
    (data / "text").write_text("".join(f"{k} WORD {k}\n" for k in waves))

    out = tmp_path / "manifest"

    run = command_server().run(
        *("recipe", "hubert", "manifest", out, "--no-rich", "--config", f"source={data}", "valid_fraction=0.34")
    )

    assert run.poll() == 0, run.raw
    assert "3 speakers on separate sides" in run.text

    manifests = {split: read_manifest(out, split) for split in ("train", "valid")}

    ids = {split: read_utterance_ids(m) for split, m in manifests.items()}

    assert sorted(ids["train"] + ids["valid"]) == sorted(waves)
    assert not {i[:2] for i in ids["train"]} & {i[:2] for i in ids["valid"]}
    assert (out / "train.wrd").read_text().splitlines() == [f"WORD {i}" for i in ids["train"]]

    features = {
        key: MfccSource(MfccConfig()).extract([samples.astype(np.float32) / 32768])[0]
        for key, (_, samples) in waves.items()
    }

    kaldiio.save_ark(str(tmp_path / "feats.ark"), features, str(data / "feats.scp"), compression_method=3)

    options = ("features.name=kaldi", f"features.config={{path: {data}}}", f"manifest_dir={out}")

    run = command_server().run(
        *("recipe", "hubert", "cluster", tmp_path / "units", "--no-rich", "--config", *options),
        *("units.config.num_clusters=5",),
    )

    assert run.poll() == 0, run.raw

    assert json.loads((tmp_path / "units/units.json").read_text())["provenance"]["features"] == {
        "kind": "kaldi",
        "dim": 39,
        "rate": 100,
    }

    # Where the features are may stand in a dataset card instead.
    (tmp_path / "cards").mkdir()

    (tmp_path / "cards/mine.yaml").write_text(
        f"name: mine\ndataset_family: hubert\ndataset_config:\n  manifest_dir: {out}\n  feature_files: {data}\n"
    )

    run = command_server().run(
        *("recipe", "hubert", "label", tmp_path / "labels", "--no-rich", "--config", f"manifest_dir={out}"),
        *("features.name=kaldi", "features.config={dataset: mine}", f"common.assets.extra_paths=[{tmp_path}/cards]"),
        *(f"unit_model={tmp_path}/units/units.safetensors", "format=binary"),
    )

    assert run.poll() == 0, run.raw

    for split, manifest in manifests.items():
        labels = open_labels(tmp_path / "labels", split, "km", manifest)

        assert [labels.num_labels(i) for i in range(len(manifest))] == [len(features[i]) for i in ids[split]]

    (data / "feats.scp").write_text("\n".join((data / "feats.scp").read_text().splitlines()[:-2]) + "\n")

    run = command_server().run(
        *("recipe", "hubert", "label", tmp_path / "labels2", "--no-rich", "--config", *options),
        *(f"unit_model={tmp_path}/units/units.safetensors",),
    )

    wrong = (
        ("{dataset: nobody}", "There is no dataset card 'nobody'"),
        ("{dataset: hubert_demo}", "must say `feature_files`"),
        (f"{{dataset: mine, path: {data}}}", "must not both be given"),
        ("{}", "`features.config.path` must say where"),
        (f"{{path: {data}, rate: 75}}", "`rate` must be 50 or 100 frames per second, but is 75"),
    )

    for config, message in wrong:
        other = command_server().run(
            *("recipe", "hubert", "label", tmp_path / "labels2", "--no-rich", "--config", f"manifest_dir={out}"),
            *("features.name=kaldi", f"features.config={config}", f"common.assets.extra_paths=[{tmp_path}/cards]"),
            f"unit_model={tmp_path}/units/units.safetensors",
        )

        assert other.poll() == 2 and message in other.text, other.raw

    assert run.poll() == 2 and "1 of 8 are missing" in run.text and "'s1-utt10' is missing" in run.text
