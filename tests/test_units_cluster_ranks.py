"""``cluster`` over two ranks (gloo, CPU), its presets, and scikit-learn files written on request."""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import numpy as np
import pytest
from builders import make_corpus
from processes import Run, command_server, start_ranks, wait_until

from hubert_plugin.units.model import HierarchyUnitModel, ProductUnitModel, load_units


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("ranks"), num_train=14, num_valid=1, label_sets={})


def cluster(out: Path, *overrides: str, world_size: int = 1) -> list[Run]:
    args = ["recipe", "hubert", "cluster", str(out), "--no-rich", "--config", *overrides]

    return [command_server().start(*args)] if world_size == 1 else start_ranks(args, world_size)


def finish(runs: list[Run], code: int = 0) -> None:
    wait_until(lambda: all(r.poll() is not None for r in runs), run=runs[0])

    assert [r.poll() for r in runs] == [code] * len(runs), "\n".join(r.raw[-3000:] for r in runs)


@pytest.mark.parametrize("algorithm", ["lloyd", "mini_batch"])
def test_two_ranks_fit_the_units_that_one_rank_fits(algorithm: str, corpus: Path, tmp_path: Path) -> None:
    kmeans = f"{{backend: torch, num_clusters: 20, n_init: 3, algorithm: {algorithm}, batch_size: 500, device: cpu}}"

    overrides = [f"manifest_dir={corpus}", f"units.config={kmeans}", "num_workers=1"]

    runs = [cluster(tmp_path / "one", *overrides), cluster(tmp_path / "two", *overrides, world_size=2)]

    for r in runs:
        finish(r)

    one, two = (load_units(tmp_path / name / "units.safetensors") for name in ("one", "two"))

    # Not one bit differs: sums over clusters are exact, in whatever order ranks and threads make them.
    assert one.fingerprint == two.fingerprint

    reports = [json.loads((tmp_path / name / "units.json").read_text()) for name in ("one", "two")]

    assert reports[0]["report"]["cluster_sizes"] == reports[1]["report"]["cluster_sizes"]
    assert reports[0]["report"]["num_utterances"] == reports[1]["report"]["num_utterances"] == 14
    assert reports[0]["report"]["inertia_per_frame"] == pytest.approx(reports[1]["report"]["inertia_per_frame"])


def test_whole_corpora_are_shared_by_ranks_and_an_unusable_file_ends_them_all(corpus: Path, tmp_path: Path) -> None:
    """Two ranks with scikit-learn: one works. With a damaged file: both end with a sentence, none waits for ever."""
    settings = "{backend: sklearn, num_clusters: 5, n_init: 1}"

    overrides = [f"manifest_dir={corpus}", f"units.config={settings}", "num_workers=1"]

    finish(cluster(tmp_path / "two", *overrides, world_size=2))

    assert load_units(tmp_path / "two/units.safetensors").label_sets[0].size == 5

    broken = make_corpus(tmp_path / "broken", num_train=6, num_valid=1, label_sets={})

    next((broken / "wav").rglob("train03.wav")).write_bytes(b"RIFF")

    runs = cluster(tmp_path / "bad", f"manifest_dir={broken}", "units.config={backend: torch, num_clusters: 5}",
                   world_size=2)  # fmt: skip

    finish(runs, code=2)

    # What rank 1 says may be in its log only.
    logs = [p.read_text() for p in (tmp_path / "bad/logs").glob("rank_*.log")]

    said = " ".join(" ".join([*(r.raw for r in runs), *logs]).split())

    assert "train03.wav" in said and "Another process of this job failed" in said

    assert not (tmp_path / "bad/units.safetensors").exists()


def test_presets_of_the_product_quantizer_and_the_hierarchy(corpus: Path, tmp_path: Path) -> None:
    def run(name: str, preset: str, *overrides: str) -> Run:
        return command_server().start(
            "recipe", "hubert", "cluster", str(tmp_path / name), "--no-rich", "--preset", preset,
            "--config", f"manifest_dir={corpus}", "num_workers=1", *overrides,
        )  # fmt: skip

    runs = [
        run("product", "mfcc_product", "units.config.num_clusters=7", "units.config.n_init=2", "export_joblib=true"),
        run("ensemble", "mfcc_ensemble", "units.config.num_clusters=[4, 9]", "units.config.n_init=2"),
        run("hierarchy", "layer6_hierarchy", "features.name=mfcc", "units.config.n_init=2"),
    ]

    for r in runs[:2]:
        finish([r])

    product = load_units(tmp_path / "product/units.safetensors")

    assert isinstance(product, ProductUnitModel) and product.dim == 117
    assert [(s.name, s.size, s.rate) for s in product.label_sets] == [
        ("pq_static", 7, 100),
        ("pq_delta", 7, 100),
        ("pq_delta2", 7, 100),
    ]

    for name, centroids in zip(("static", "delta", "delta2"), product.centroids, strict=True):
        estimator = joblib.load(tmp_path / f"product/pq_{name}.joblib")

        np.testing.assert_array_equal(estimator.cluster_centers_, centroids)

    ensemble = load_units(tmp_path / "ensemble/units.safetensors")

    assert [s.name for s in ensemble.label_sets] == ["km4", "km9"]

    report = json.loads((tmp_path / "ensemble/units.json").read_text())

    assert [r["label_set"] for r in report["reports"]] == ["km4", "km9"]

    finish([runs[2]])

    hierarchy = load_units(tmp_path / "hierarchy/units.safetensors")

    assert isinstance(hierarchy, HierarchyUnitModel)
    assert [s.size for s in hierarchy.label_sets] == [1000, 500, 250, 125, 50, 25]
