"""Labels made on the way, the feature streams under them, and the recipes `cluster` and `label`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_corpus import ensure, make_corpus, stamps
from processes import command_server, wait_until

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.labels import open_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import AudioError, UnitModelError
from hubert_plugin.registry import FeatureSource, LabelSetSpec
from hubert_plugin.units import prepare
from hubert_plugin.units.hubert_layer import HubertLayerConfig, HubertLayerSource
from hubert_plugin.units.label import label_manifest
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stream import AudioFeatureStream


def test_labels_are_made_once_and_reused(tmp_path: Path) -> None:
    make_corpus(tmp_path)

    assert ensure(tmp_path) == LabelSetSpec("km", 5, 100)

    model = load_units(tmp_path / "labels/units.safetensors")

    for split in ("train", "valid"):
        manifest = read_manifest(tmp_path, split)

        labels = open_labels(tmp_path / "labels", split, "km", manifest, unit_model_fingerprint=model.fingerprint)

        for i, (_, features) in enumerate(AudioFeatureStream(manifest, MfccSource(), num_workers=1).read()):
            np.testing.assert_array_equal(labels[i], model.assign(features)[0])

    before = stamps(tmp_path)

    ensure(tmp_path)

    assert stamps(tmp_path) == before


def test_what_no_longer_fits_is_made_again_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_corpus(tmp_path)

    ensure(tmp_path)

    def changed(**kwargs: object) -> set[str]:
        before = stamps(tmp_path)

        caplog.clear()

        ensure(tmp_path, **kwargs)

        return {name for name, stamp in stamps(tmp_path).items() if before.get(name) != stamp}

    with caplog.at_level("INFO"):
        (tmp_path / "labels/valid.km").unlink()
        assert changed() == {"valid.km", "valid.km.json", "dict.km.txt"}
        assert "there are no labels yet" in caplog.text

        (tmp_path / "labels/train.km").write_text("0\n")
        assert changed() == {"train.km", "train.km.json", "dict.km.txt"}
        assert "not the labels that" in caplog.text

        everything = {
            "units.safetensors",
            "dict.km.txt",
            *(f"{s}.km{e}" for s in ("train", "valid") for e in ("", ".json")),
        }

        assert changed(seed=1) == everything
        assert "its seed was 0, but is 1 now" in caplog.text

        assert changed(seed=1, num_clusters=6) == everything
        assert changed(seed=1, num_clusters=6, feature_source=MfccSource(MfccConfig(rate=50))) == everything
        assert "its features was" in caplog.text

        (tmp_path / "labels/units.safetensors").write_bytes(b"cut")
        assert changed(seed=1, num_clusters=6) == everything

        lines = (tmp_path / "train.tsv").read_text().splitlines()
        (tmp_path / "train.tsv").write_text("\n".join(lines[:-1]) + "\n")
        assert changed(seed=1, num_clusters=6) == everything
        assert "its data was" in caplog.text


def test_one_unit_model_labels_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_corpus(tmp_path)

    fitted = []

    fit = prepare.KMeansFitter.fit

    def spy(self, stream, **kwargs):  # type: ignore[no-untyped-def]
        fitted.append(stream.manifest.split)

        return fit(self, stream, **kwargs)

    monkeypatch.setattr(prepare.KMeansFitter, "fit", spy)

    ensure(tmp_path)

    assert fitted == ["train"]

    records = [json.loads((tmp_path / f"labels/{s}.km.json").read_text()) for s in ("train", "valid")]

    assert records[0]["unit_model_fingerprint"] == records[1]["unit_model_fingerprint"]


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    make_corpus(tmp_path)

    for n in (1, 3):
        ensure(tmp_path, label_dir=tmp_path / f"labels{n}", num_workers=n)

    for path in (tmp_path / "labels1").iterdir():
        assert path.read_bytes() == (tmp_path / "labels3" / path.name).read_bytes(), path.name


def test_broken_audio_is_named_and_previous_labels_stay(tmp_path: Path) -> None:
    make_corpus(tmp_path)

    ensure(tmp_path)

    before = stamps(tmp_path)

    (tmp_path / "wav/train5.wav").write_bytes(b"RIFF")

    model = load_units(tmp_path / "labels/units.safetensors")

    with pytest.raises(AudioError, match=r"train5\.wav"):
        label_manifest(AudioFeatureStream(read_manifest(tmp_path, "train"), MfccSource()), model, tmp_path / "labels")

    assert stamps(tmp_path) == before


def test_a_kill_leaves_nothing_behind_that_the_next_run_does_not_use_or_remove(tmp_path: Path) -> None:
    make_corpus(tmp_path, 60, 3)

    code = f"""
from pathlib import Path
from hubert_plugin.data import label_pieces
from hubert_plugin.units.mfcc import MfccSource
from hubert_plugin.units.prepare import ensure_labels

label_pieces.MIN_PIECE_SECONDS = 1  # a corpus of seconds, in many pieces

folder = Path({str(tmp_path)!r})

ensure_labels(folder, ["train", "valid"], label_dir=folder / "killed", name="km", feature_source=MfccSource(),
              num_clusters=5, num_workers=1)
"""

    pieces = tmp_path / "killed"

    run = command_server().start(code=code)

    wait_until(lambda: len(list(pieces.glob("train.*.pieces/*.safetensors"))) > 2, run=run)

    run.kill()

    made = {p.name: p.stat().st_mtime_ns for p in pieces.glob("train.*.pieces/*.safetensors")}

    assert made and not (pieces / "train.km").exists()

    for name in ("units.safetensors", "train.km", "train.km.json", "dict.km.txt", "valid.km"):
        (pieces / f".{name}.abcd1234.tmp").touch()  # wherever a kill may meet a write

    (pieces / "labels.lock").touch()

    run = command_server().run(code=code)

    assert run.poll() == 0, run.raw

    unbroken = command_server().run(code=code.replace("killed", "unbroken"))

    assert unbroken.poll() == 0, unbroken.raw

    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("killed", "unbroken"))

    assert ours == theirs and len(ours) == 6  # no hidden file, no folder of pieces


def test_too_many_clusters_for_the_corpus_is_a_sentence(tmp_path: Path) -> None:
    make_corpus(tmp_path, 1, 1)

    with pytest.raises(UnitModelError, match="5000 clusters needs at least as many frames"):
        ensure(tmp_path, num_clusters=5_000)


class FakeModel:
    """Answers like a HuBERT with two layers of constant outputs."""

    def eval(self) -> FakeModel:
        return self

    def extract_features(self, waveforms, layer, **options):  # type: ignore[no-untyped-def]
        import torch

        return [torch.full(((len(w) - 400) // 320 + 1, 6), float(layer)) for w in waveforms]


def test_a_layer_of_a_model_is_a_feature_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import hubert_plugin

    monkeypatch.setattr(hubert_plugin, "load_hubert", lambda name, **kwargs: FakeModel(), raising=False)

    source = HubertLayerSource(HubertLayerConfig(model="hubert_base", layer=3))

    features = source.extract([np.zeros(n, np.float32) for n in (399, 16_000, 400)])

    assert [f.shape for f in features] == [(0, 6), (49, 6), (1, 6)]
    assert (features[1] == 3.0).all()
    assert (source.dim, source.rate) == (6, 50)
    assert source.describe()["layer"] == 3

    assert HubertLayerConfig().validate().errors


def test_a_unit_model_for_other_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hubert_plugin

    monkeypatch.setattr(hubert_plugin, "load_hubert", lambda name, **kwargs: FakeModel(), raising=False)

    make_corpus(tmp_path, 3, 1)

    model = ensure(tmp_path)

    unit_model = load_units(tmp_path / "labels/units.safetensors")

    manifest = read_manifest(tmp_path, "valid")

    layer = HubertLayerSource(HubertLayerConfig(model="m", layer=1))

    # Not the rates, which differ as well: they do not say what to do.
    with pytest.raises(UnitModelError, match=r"fitted on the .*\"mfcc\".* on .*\"hubert_layer\".* \(`features`\)"):
        label_manifest(AudioFeatureStream(manifest, layer), unit_model, tmp_path / "out")

    unit_model._provenance = {}

    with pytest.raises(UnitModelError, match=r"labels at 100 Hz, but the features have 50 frames .* \(`features`\)"):
        label_manifest(AudioFeatureStream(manifest, layer), unit_model, tmp_path / "out")

    unit_model = load_units(tmp_path / "labels/units.safetensors")

    with pytest.raises(UnitModelError, match=r"fitted on the features .*\"normalize\": false.*\"normalize\": true"):
        stream = AudioFeatureStream(manifest, MfccSource(), AudioPolicy(normalize=True))

        label_manifest(stream, unit_model, tmp_path / "out")

    assert model.rate == 100


class BadSource(FeatureSource):
    dim, rate = 3, 50

    def __init__(self, features: np.ndarray) -> None:
        self._features = features

    def extract(self, waveforms):  # type: ignore[no-untyped-def]
        return [self._features for _ in waveforms]

    def describe(self) -> dict[str, object]:
        return {"name": "bad"}


@pytest.mark.parametrize(
    "features, message",
    [(np.full((4, 3), np.nan), "train0.wav' hold NaN"), (np.ones((4, 2)), r"train0.wav' must have .*3\)")],
)
def test_features_that_cannot_be_clustered_are_named(tmp_path: Path, features: np.ndarray, message: str) -> None:
    make_corpus(tmp_path, 1, 1)

    with pytest.raises(UnitModelError, match=message):
        list(AudioFeatureStream(read_manifest(tmp_path, "train"), BadSource(features)).read())


def test_recipes_cluster_and_label(tmp_path: Path) -> None:
    from fairseq2.recipe.run import run

    from hubert_plugin.recipes.hubert.cluster.config import HubertClusterConfig
    from hubert_plugin.recipes.hubert.cluster.recipe import ClusterRecipe
    from hubert_plugin.recipes.hubert.label.config import HubertLabelConfig
    from hubert_plugin.recipes.hubert.label.recipe import LabelRecipe
    from hubert_plugin.units import KMeansConfig

    make_corpus(tmp_path)

    cluster_config = HubertClusterConfig(manifest_dir=tmp_path)
    cluster_config.features.config = MfccConfig()
    cluster_config.units.config = KMeansConfig(num_clusters=6)

    run(ClusterRecipe(), cluster_config, tmp_path / "units", no_rich=True)

    report = json.loads((tmp_path / "units/units.json").read_text())

    assert report["report"]["num_units"] == 6
    assert report["fingerprint"] == load_units(tmp_path / "units/units.safetensors").fingerprint

    label_config = HubertLabelConfig(manifest_dir=tmp_path, unit_model=tmp_path / "units/units.safetensors")
    label_config.features.config = MfccConfig()

    run(LabelRecipe(), label_config, tmp_path / "out", no_rich=True)

    for split in ("train", "valid"):
        assert open_labels(tmp_path / "out", split, "km", read_manifest(tmp_path, split)).spec.size == 6
