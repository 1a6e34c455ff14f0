"""MFCC, assignment and labels against what fairseq's simple_kmeans scripts produced (golden ``fairseq/kmeans``)."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hubert_plugin.audio import AudioPolicy, read_waveform
from hubert_plugin.data.labels import open_labels, write_labels
from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import UnitModelError
from hubert_plugin.frames import num_labels
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.hubert_layer import HubertLayerConfig, HubertLayerSource
from hubert_plugin.units.label import label_manifest
from hubert_plugin.units.mfcc import MfccConfig, MfccSource, mfcc
from hubert_plugin.units.model import KMeansUnitModel, load_units
from hubert_plugin.units.stream import AudioFeatureStream

GOLDEN = Path(__file__).parent / "data" / "kmeans"

LENS = [12_800, 20_800]


def read_km(name: str) -> list[list[int]]:
    lines = (GOLDEN / f"lab_{name}" / "train_0_1.km").read_text().splitlines()

    return [[int(u) for u in line.split()] for line in lines]


def split_features(name: str) -> list[np.ndarray]:
    features = np.load(GOLDEN / name / "train_0_1.npy")
    lengths = [int(n) for n in (GOLDEN / name / "train_0_1.len").read_text().split()]

    return np.split(features, np.cumsum(lengths)[:-1])


def waveforms() -> list[np.ndarray]:
    return [read_waveform(GOLDEN / "wav", f"utt{i}.wav", AudioPolicy(), expected_samples=n) for i, n in enumerate(LENS)]


def test_mfcc_equals_fairseqs() -> None:
    for features, expected in zip(MfccSource().extract(waveforms()), split_features("mfcc"), strict=True):
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, expected, atol=2e-4, rtol=0)


def test_mfcc_at_50_hz_is_every_second_frame() -> None:
    full, half = MfccSource().extract(waveforms()), MfccSource(MfccConfig(rate=50)).extract(waveforms())

    for f, h, n in zip(full, half, LENS, strict=True):
        np.testing.assert_array_equal(h, f[::2])

        assert len(h) == num_labels(n, 50)


@pytest.mark.parametrize("num_samples", [0, 1, 399, 400, 401, 559, 560, 720, 1_000])
def test_mfcc_of_very_short_clips_and_silence_is_finite_and_of_the_right_length(num_samples: int) -> None:
    rng = np.random.default_rng(0)

    for scale in (0.0, 1e-9, 0.1):
        features = mfcc((scale * rng.standard_normal(num_samples)).astype(np.float32))

        assert features.shape == (num_labels(num_samples, 100), 39)
        assert np.isfinite(features).all()


def test_silence_has_the_mel_floor_of_the_unscaled_waveform() -> None:
    """A waveform times 32768 would lie above the floor: the scale must stay [-1, 1] (FACTS, T26)."""
    import torch
    import torchaudio.compliance.kaldi as kaldi

    wave = (1e-7 * np.random.default_rng(0).standard_normal(8_000)).astype(np.float32)

    expected = kaldi.mfcc(torch.from_numpy(wave)[None], sample_frequency=16_000, use_energy=False)

    np.testing.assert_allclose(mfcc(wave)[:, :13], expected.numpy(), atol=2e-4)


@pytest.mark.parametrize("name, dim", [("mfcc", 39), ("hubert", 32)])
def test_joblib_models_give_fairseqs_labels(name: str, dim: int) -> None:
    model = load_units(GOLDEN / f"km_{name}.joblib", trust_pickle=True)

    assert isinstance(model, KMeansUnitModel)
    assert model.dim == dim
    assert model.label_sets[0].rate == (100 if name == "mfcc" else 50)

    np.testing.assert_array_equal(model.centroids[0], np.load(GOLDEN / "expected.npz")[f"{name}.cluster_centers"])

    assert [model.assign(f)[0].tolist() for f in split_features(name)] == read_km(name)


def test_joblib_models_take_the_rate_of_the_features_in_use() -> None:
    """The file does not say it; 39 features are taken for MFCC at 100 Hz, others for 50 Hz."""
    for name, guess in (("mfcc", 100), ("hubert", 50)):
        path = GOLDEN / f"km_{name}.joblib"

        assert load_units(path, trust_pickle=True).label_sets[0].rate == guess

        for rate in (50, 100):
            assert load_units(path, trust_pickle=True, rate=rate).label_sets[0].rate == rate


def test_joblib_is_refused_without_trust() -> None:
    with pytest.raises(UnitModelError, match=r"pickle.*can run code.*trust_pickle"):
        load_units(GOLDEN / "km_mfcc.joblib")


def test_audio_to_label_store_reproduces_fairseqs_km_file(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "wav", tmp_path / "wav")
    shutil.copy(GOLDEN / "train.tsv", tmp_path / "train.tsv")

    manifest = read_manifest(tmp_path, "train")

    model = load_units(GOLDEN / "km_mfcc.joblib", trust_pickle=True)

    label_manifest(AudioFeatureStream(manifest, MfccSource()), model, tmp_path / "labels")

    assert (tmp_path / "labels/train.km").read_bytes() == (GOLDEN / "lab_mfcc/train_0_1.km").read_bytes()
    assert (tmp_path / "labels/dict.km.txt").read_text() == "".join(f"{u} 1\n" for u in range(10))

    labels = open_labels(tmp_path / "labels", "train", "km", manifest, unit_model_fingerprint=model.fingerprint)

    assert labels.spec == LabelSetSpec("km", 10, 100)
    assert [labels[i].tolist() for i in range(2)] == read_km("mfcc")


def test_fairseqs_files_are_read_and_their_rate_is_inferred(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "train.tsv", tmp_path / "train.tsv")

    manifest = read_manifest(tmp_path, "train", check_files=False)

    for name, size, rate in (("mfcc", 10, 100), ("hubert", 8, 50)):
        shutil.copy(GOLDEN / f"lab_{name}/train_0_1.km", tmp_path / f"train.{name}")

        (tmp_path / f"dict.{name}.txt").write_text("".join(f"{u} 1\n" for u in range(size)))

        labels = open_labels(tmp_path, "train", name, manifest)

        assert labels.spec == LabelSetSpec(name, size, rate) and labels.provenance is None
        assert [labels[i].tolist() for i in range(2)] == read_km(name)

    write_labels(tmp_path / "out", "train", LabelSetSpec("mfcc", 10, 100), map(np.array, read_km("mfcc")), manifest, {})

    assert (tmp_path / "out/train.mfcc").read_bytes() == (tmp_path / "train.mfcc").read_bytes()


def test_audio_to_layer_units_reproduces_fairseqs_labels_whole_and_chunk_by_chunk() -> None:
    """``dump_hubert_feature.py`` on layer 2, with ``max_chunk`` 1600000 and 9000, then ``dump_km_label.py``."""
    model = load_units(GOLDEN / "km_hubert.joblib", trust_pickle=True)

    source = HubertLayerSource(
        HubertLayerConfig(model=str(GOLDEN.parent / "fairseq/tiny_post.pt"), layer=2, device="cpu")
    )

    whole = source.extract(waveforms())

    for features, expected in zip(whole, split_features("hubert"), strict=True):
        np.testing.assert_allclose(features, expected, atol=2e-5, rtol=0)

    assert [model.assign(f)[0].tolist() for f in whole] == read_km("hubert")

    for waveform, expected in zip(waveforms(), split_features("hubert_chunked"), strict=True):
        # Chunks know nothing of each other, and a frame is lost at each border (FACTS, T25): ours are never cut so.
        chunks = source.extract([waveform[i : i + 9_000] for i in range(0, len(waveform), 9_000)])

        np.testing.assert_allclose(np.concatenate(chunks), expected, atol=2e-5, rtol=0)

        np.testing.assert_array_equal(model.assign(np.concatenate(chunks))[0], model.assign(expected)[0])
