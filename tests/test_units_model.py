"""Unit models in memory and on disk."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import MiniBatchKMeans

from hubert_plugin.errors import ConfigError, StorageError, UnitModelError
from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.model import FORMAT, KMeansUnitModel, load_units

SPEC = LabelSetSpec("km", 4, 100)


def make_model(dim: int = 3, seed: int = 0) -> KMeansUnitModel:
    centroids = np.random.default_rng(seed).standard_normal((4, dim)).astype(np.float32)

    return KMeansUnitModel({SPEC: centroids}, {"features": {"name": "mfcc", "dim": dim}, "seed": seed})


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 200), st.integers(0, 10_000))
def test_assign_equals_scikit_learn_and_brute_force(k: int, dim: int, num_frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    centroids = (3.0 * rng.standard_normal((k, dim))).astype(np.float32)
    x = (3.0 * rng.standard_normal((num_frames, dim))).astype(np.float32)

    units = KMeansUnitModel({LabelSetSpec("km", k): centroids}).assign(x)[0]

    estimator = MiniBatchKMeans(k, init=centroids, n_init=1).partial_fit(centroids)
    estimator.cluster_centers_ = centroids

    distances = np.square(x[:, None].astype(np.float64) - centroids[None]).sum(axis=2)

    # Where two centroids are equally near up to float32 rounding, either is right.
    nearest = np.sort(distances, axis=1)
    clear = np.ones(num_frames, bool) if k == 1 else nearest[:, 1] - nearest[:, 0] > 1e-4

    assert units.dtype == np.int32
    np.testing.assert_array_equal(units[clear], estimator.predict(x)[clear])
    np.testing.assert_array_equal(units[clear], distances.argmin(axis=1)[clear])


def test_assign_of_no_frames_is_empty() -> None:
    assert make_model().assign(np.empty((0, 3), np.float32))[0].shape == (0,)


def test_assign_names_both_dimensions() -> None:
    with pytest.raises(UnitModelError, match=r"\(frames, 3\) from .*mfcc.*\(5, 768\)"):
        make_model().assign(np.zeros((5, 768), np.float32))


def test_assign_takes_tensors_as_models_give_them() -> None:
    model = make_model()

    x = torch.from_numpy(np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32))

    for tensor in (x, x.clone().requires_grad_(), x.bfloat16(), x.double()):
        expected = model.assign(tensor.detach().float().numpy())[0]

        assert model.assign(tensor)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("features", [None, [[0.0, 0.0, 0.0]], [np.zeros((5, 3), np.float32)]])
def test_assign_refuses_what_is_no_array(features: Any) -> None:
    message = rf"features of shape \(frames, 3\) as one array or tensor, but was given {type(features).__name__}\."

    with pytest.raises(UnitModelError, match=message):
        make_model().assign(features)


@pytest.mark.parametrize("features", [np.zeros(3, np.float32), torch.zeros(()), torch.zeros(1, 5, 3)])
def test_assign_refuses_what_has_no_two_axes(features: Any) -> None:
    with pytest.raises(UnitModelError, match=r"\(frames, 3\) from .* given the shape \("):
        make_model().assign(features)


def test_saved_models_come_back_equal(tmp_path: Path) -> None:
    model = make_model()

    model.save(tmp_path / "new" / "units.safetensors")

    loaded = load_units(tmp_path / "new" / "units.safetensors")

    assert isinstance(loaded, KMeansUnitModel)
    assert loaded.fingerprint == model.fingerprint
    assert list(loaded.label_sets) == [SPEC]
    assert dict(loaded.provenance) == dict(model.provenance)
    np.testing.assert_array_equal(loaded.centroids[0], model.centroids[0])

    assert make_model(seed=1).fingerprint != model.fingerprint


def test_several_codebooks_give_several_label_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    codebooks = {LabelSetSpec(f"k{k}", k): rng.standard_normal((k, 3)).astype(np.float32) for k in (2, 5)}

    KMeansUnitModel(codebooks).save(tmp_path / "u")

    x = rng.standard_normal((10, 3)).astype(np.float32)

    for units, codebook in zip(load_units(tmp_path / "u").assign(x), codebooks.values(), strict=True):
        np.testing.assert_array_equal(units, np.square(x[:, None] - codebook).sum(axis=2).argmin(axis=1))


def test_exported_joblib_predicts_the_same_units(tmp_path: Path) -> None:
    import joblib

    model = make_model()

    model.export_joblib(tmp_path / "km.bin")

    x = np.random.default_rng(1).standard_normal((100, 3)).astype(np.float32)

    estimator = joblib.load(tmp_path / "km.bin")

    np.testing.assert_array_equal(estimator.cluster_centers_, model.centroids[0])
    np.testing.assert_array_equal(estimator.predict(x), model.assign(x)[0])

    loaded = load_units(tmp_path / "km.bin", trust_pickle=True, spec=SPEC)

    assert loaded.fingerprint == model.fingerprint

    with pytest.raises(UnitModelError, match=r"no label set 'x'; it has km"):
        model.export_joblib(tmp_path / "y", "x")


@pytest.mark.parametrize("module", [b"sklearn.cluster._kmeans", b"sklearn.cluster.k_means_"])
def test_the_form_of_fairseqs_released_file_is_read(module: bytes, tmp_path: Path) -> None:
    """``hubert_base_ls960_L9_km500.bin``: 500 centroids of 768 features, pickled by a scikit-learn long gone.

    The attributes are those of that release (0.24), and the even older module is tried, too.
    """
    import pickle

    import joblib

    rng = np.random.default_rng(0)

    centroids = rng.standard_normal((500, 768)).astype(np.float32)

    estimator = MiniBatchKMeans.__new__(MiniBatchKMeans)

    estimator.__dict__.update(
        n_clusters=500,
        init="k-means++",
        max_iter=100,
        tol=0.0,
        n_init=20,
        verbose=1,
        random_state=None,
        max_no_improvement=100,
        batch_size=10_000,
        compute_labels=False,
        init_size=None,
        reassignment_ratio=0.0,
        n_features_in_=768,
        random_state_=np.random.RandomState(0),
        counts_=np.ones(500, np.float32),
        cluster_centers_=centroids,
        init_size_=30_000,
        n_iter_=2_000,
        _sklearn_version="0.24.1",
    )

    joblib.dump(estimator, tmp_path / "plain.bin")

    if module == b"sklearn.cluster.k_means_":
        data = pickle.dumps(_Parts(centroids), protocol=2).replace(
            b"ctest_units_model\n_Parts\n", b"c" + module + b"\nMiniBatchKMeans\n"
        )

        assert module in data
    else:
        data = (tmp_path / "plain.bin").read_bytes()

    (tmp_path / "km500.bin").write_bytes(data)

    with pytest.raises(UnitModelError, match="trust_pickle"):
        load_units(tmp_path / "km500.bin")

    model = load_units(tmp_path / "km500.bin", trust_pickle=True)

    assert isinstance(model, KMeansUnitModel)
    assert model.label_sets[0] == LabelSetSpec("km", 500, 50)
    np.testing.assert_array_equal(model.centroids[0], centroids)

    x = rng.standard_normal((200, 768)).astype(np.float32)

    np.testing.assert_array_equal(
        model.assign(x)[0], np.square(x[:, None].astype(np.float64) - centroids).sum(axis=2).argmin(axis=1)
    )

    model.export_joblib(tmp_path / "again.bin")

    np.testing.assert_array_equal(joblib.load(tmp_path / "again.bin").predict(x), model.assign(x)[0])


class _Parts:
    """Pickles as an object of whatever class its name is replaced by."""

    def __init__(self, centroids: np.ndarray) -> None:
        self.cluster_centers_ = centroids
        self._sklearn_version = "0.19.1"


def test_files_of_the_first_release_still_load(tmp_path: Path) -> None:
    """Kind ``kmeans`` with several codebooks, as that release wrote ensembles; their fingerprint is unchanged."""
    import json

    from safetensors.numpy import save_file

    centroids = {"centroids.a": np.eye(3, dtype=np.float32), "centroids.b": np.ones((2, 3), np.float32)}

    record = {
        "format_version": 1,
        "kind": "kmeans",
        "label_sets": [{"name": "a", "size": 3, "rate": 100}, {"name": "b", "size": 2, "rate": 100}],
        "provenance": {"seed": 5},
    }

    save_file(centroids, tmp_path / "u", {FORMAT: json.dumps(record)})

    model = load_units(tmp_path / "u")

    assert isinstance(model, KMeansUnitModel)
    assert model.provenance["seed"] == 5

    digest = hashlib.sha256()

    for name, shape in (("centroids.a", "(3, 3)"), ("centroids.b", "(2, 3)")):
        digest.update(f"{name} {shape} float32\n".encode() + centroids[name].tobytes())

    assert model.fingerprint == digest.hexdigest()[:16]
    assert [u.tolist() for u in model.assign(np.array([[0, 1, 0]], np.float32))] == [[1], [0]]


def test_what_is_computed_in_fewer_bits_is_assigned_alike() -> None:
    rng = np.random.default_rng(0)

    centroids = rng.standard_normal((40, 150)).astype(np.float32)

    x = (centroids[rng.integers(40, size=900)] + rng.standard_normal((900, 150))).astype(np.float32)

    model = KMeansUnitModel({LabelSetSpec("km", 40): centroids})

    expected = model.compute_on(precision="fp32").assign(x)[0]

    for precision in ("auto", "bf16", "int8", "fast"):
        np.testing.assert_array_equal(model.compute_on(precision=precision).assign(x)[0], expected)  # type: ignore[arg-type]


def test_devices_and_precisions_that_there_are_not_are_answered_at_once() -> None:
    model = make_model()

    with pytest.raises(ConfigError, match=r"one of auto, fp32, bf16, int8, fast, but is 'fp8' instead"):
        model.compute_on("cpu", "fp8")  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"`device` must be a device of this machine, .* but is 'gpu'"):
        model.compute_on("gpu")


def test_assign_names_values_that_are_not_finite() -> None:
    bad = np.zeros((5, 3), np.float32)

    bad[3, 1] = np.nan

    with pytest.raises(UnitModelError, match=r"NaN or infinite values \(first in frame 3 of 5\)"):
        make_model().assign(bad)


def test_reading_a_joblib_file_without_trust_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil()))

    with pytest.raises(UnitModelError, match="pickle"):
        load_units(tmp_path / "evil.bin")

    assert not (tmp_path / "ran").exists()


def test_a_joblib_file_of_something_else_is_named(tmp_path: Path) -> None:
    import joblib

    joblib.dump({"a": 1}, tmp_path / "x.bin")

    with pytest.raises(UnitModelError, match=r"must hold a fitted scikit-learn k-means, but holds a dict"):
        load_units(tmp_path / "x.bin", trust_pickle=True)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnitModelError, match=r"no unit model at .*nothing"):
        load_units(tmp_path / "nothing")


def test_the_output_folder_of_cluster_names_its_model(tmp_path: Path) -> None:
    with pytest.raises(UnitModelError, match=r"is a folder without 'units.safetensors', which .* cluster` writes"):
        load_units(tmp_path)

    model = make_model()

    model.save(tmp_path / "units.safetensors")

    assert load_units(tmp_path).fingerprint == model.fingerprint


def test_a_model_cut_off_anywhere_is_named(tmp_path: Path) -> None:
    make_model().save(tmp_path / "u")

    data = (tmp_path / "u").read_bytes()

    for length in (0, 4, 8, 20, len(data) // 2, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:length])

        with pytest.raises(UnitModelError, match="cut off"):
            load_units(tmp_path / "cut")


def test_files_that_are_no_unit_models_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "text").write_text("hello, I am not a unit model")

    with pytest.raises(UnitModelError, match="not a unit model"):
        load_units(tmp_path / "text")

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "other")

    with pytest.raises(UnitModelError, match=r"safetensors file, but not a unit model.*'weight'"):
        load_units(tmp_path / "other")


def test_a_model_with_wrong_tensors_is_named(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    make_model().save(tmp_path / "u")

    with safe_open(tmp_path / "u", "numpy") as fp:
        metadata = fp.metadata()

    save_file({"centroids.other": np.zeros((4, 3), np.float32)}, tmp_path / "v", metadata)

    with pytest.raises(UnitModelError, match=r"must hold the tensors 'centroids.km', but holds 'centroids.other'"):
        load_units(tmp_path / "v")

    save_file({"centroids.km": np.full((4, 3), np.nan, np.float32)}, tmp_path / "w", metadata)

    with pytest.raises(UnitModelError, match="NaN"):
        load_units(tmp_path / "w")

    newer = {FORMAT: metadata[FORMAT].replace('"format_version": 1', '"format_version": 9')}

    save_file({"centroids.km": np.zeros((4, 3), np.float32)}, tmp_path / "x", newer)

    with pytest.raises(UnitModelError, match="format version 9"):
        load_units(tmp_path / "x")


def test_a_full_disk_leaves_the_previous_model(tmp_path: Path) -> None:
    make_model().save(tmp_path / "u")

    before = (tmp_path / "u").read_bytes()

    large = KMeansUnitModel({LabelSetSpec("km", 1000): np.ones((1000, 39), np.float32)})

    # Python ignores SIGXFSZ, so that a file beyond the limit fails with an `OSError`, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot be written: .*untouched"):
            large.save(tmp_path / "u")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (tmp_path / "u").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["u"]
