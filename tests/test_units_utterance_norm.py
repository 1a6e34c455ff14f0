"""Features with the mean and variance of their utterance taken out, against scikit-learn's scaler."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_corpus import ensure, make_corpus, stamps
from sklearn.preprocessing import StandardScaler

from hubert_plugin.data.manifest import read_manifest
from hubert_plugin.errors import ConfigError, UnitModelError
from hubert_plugin.units.hubert_layer import HubertLayerConfig, HubertLayerSource
from hubert_plugin.units.label import label_manifest
from hubert_plugin.units.mfcc import MfccConfig, MfccSource
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stream import AudioFeatureStream
from hubert_plugin.units.utterance_norm import UtteranceNorm, normalize_utterance

NORMALIZED = MfccConfig(utterance_norm="mean_variance")


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 40),
    st.floats(0.1, 1e3),
    st.floats(-1e3, 1e3),
    st.integers(0, 99),
)
def test_statistics_are_those_of_a_standard_scaler(
    num_frames: int, dim: int, scale: float, offset: float, seed: int
) -> None:
    features = (scale * np.random.default_rng(seed).standard_normal((num_frames, dim)) + offset).astype(np.float32)

    scaler = StandardScaler().fit(features.astype(np.float64))

    centred = features - scaler.mean_

    for kind, expected in (
        ("none", features),
        ("mean", centred),
        ("mean_variance", centred / (np.sqrt(scaler.var_) + 1e-3)),
    ):
        found = normalize_utterance(features, kind)  # type: ignore[arg-type]

        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * (abs(offset) + scale))


@pytest.mark.parametrize("kind", ["none", "mean", "mean_variance"])
def test_empty_constant_and_single_frames_stay_finite(kind: UtteranceNorm) -> None:
    assert normalize_utterance(np.empty((0, 3), np.float32), kind).shape == (0, 3)

    for num_frames in (1, 7):
        found = normalize_utterance(np.full((num_frames, 3), 5.0, np.float32), kind)

        np.testing.assert_array_equal(found, 5.0 if kind == "none" else 0.0)


@pytest.mark.parametrize("rate", [50, 100])
@pytest.mark.parametrize("splice", [1, 3])
def test_each_utterance_is_normalised_by_itself(rate: int, splice: int) -> None:
    waveforms = [noise(n, seed) for seed, n in enumerate((16_000, 399, 5_000, 400, 720))]

    plain = MfccSource(MfccConfig(splice=splice)).extract(waveforms)

    found = MfccSource(MfccConfig(splice=splice, rate=rate, utterance_norm="mean_variance")).extract(waveforms)

    for features, p in zip(found, plain, strict=True):
        centred = p - p.mean(axis=0, dtype=np.float64) if len(p) else p

        # Frames are left out after the statistics were taken.
        expected = (centred / (p.std(axis=0, dtype=np.float64) + 1e-3) if len(p) else p)[:: 100 // rate]

        assert features.shape == expected.shape
        np.testing.assert_allclose(features, expected, atol=1e-5)


def test_a_layer_is_normalised_over_the_utterance(data_dir: Path) -> None:
    model = str(data_dir / "fairseq" / "tiny_post.pt")

    waveforms = [noise(12_000), noise(300), noise(8_000, 1)]

    plain, centred, scaled = (
        HubertLayerSource(HubertLayerConfig(model=model, layer=2, utterance_norm=kind)).extract(waveforms)
        for kind in ("none", "mean", "mean_variance")
    )

    for p, c, s in zip(plain, centred, scaled, strict=True):
        assert p.shape == c.shape == s.shape

        if len(p):
            np.testing.assert_allclose(c, p - p.mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(s, (p - p.mean(axis=0)) / (p.std(axis=0) + 1e-3), atol=1e-4)


def test_records_tell_it_only_where_it_is_done() -> None:
    assert "utterance_norm" not in MfccSource().describe()
    assert MfccSource(NORMALIZED).describe()["utterance_norm"] == "mean_variance"


def test_units_are_fitted_again_for_other_norms_and_labels_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path)

    ensure(tmp_path)

    plain = stamps(tmp_path)

    ensure(tmp_path, feature_source=MfccSource(NORMALIZED))

    assert all(stamp != plain[name] for name, stamp in stamps(tmp_path).items() if name.startswith("units"))

    units = load_units(tmp_path / "labels/units.safetensors")

    manifest = read_manifest(tmp_path, "train")

    with pytest.raises(UnitModelError, match="utterance_norm"):
        label_manifest(AudioFeatureStream(manifest, MfccSource()), units, tmp_path / "other")


@pytest.mark.parametrize("config", [MfccConfig, HubertLayerConfig])
def test_another_norm_is_refused(config: type) -> None:
    errors = config(model="m", utterance_norm="cmvn") if config is HubertLayerConfig else config(utterance_norm="cmvn")

    (error,) = errors.validate().errors

    assert str(error) == "`utterance_norm` must be one of none, mean, mean_variance, but is 'cmvn' instead."


def test_another_norm_is_refused_in_python_too() -> None:
    with pytest.raises(ConfigError, match="`utterance_norm` must be one of none, mean, mean_variance, but is 'cmvn'"):
        HubertLayerSource(HubertLayerConfig(model="m", utterance_norm="cmvn"))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="'cmvn'"):
        normalize_utterance(np.zeros((2, 3), np.float32), "cmvn")  # type: ignore[arg-type]
