"""Unit models of another making are not lost without a word; those of the same making may be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_corpus import make_corpus
from processes import command_server

from hubert_plugin.registry import LabelSetSpec
from hubert_plugin.units.model import KMeansUnitModel, load_units


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")

    make_corpus(folder, num_train=3, num_valid=2)

    return folder


def cluster(corpus: Path, out: Path, *options: str, expected: int = 0) -> str:
    args = ["recipe", "hubert", "cluster", str(out), "--no-rich", "--config", f"manifest_dir={corpus}", "num_workers=1"]

    run = command_server().run(*args, "units.config.num_clusters=4", "units.config.n_init=1", *options)

    assert run.poll() == expected, run.raw

    return run.text


def test_a_unit_model_of_another_making_is_replaced_on_request_alone(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "units"

    cluster(corpus, out)

    file = out / "units.safetensors"

    before = {f: f.read_bytes() for f in (file, out / "units.json")}

    for option, key in [
        ("seed=1", "seed"),
        ("units.config.num_clusters=5", "kmeans"),
        ("units.name=kmeans_ensemble", "kmeans_ensemble"),
        ("features.config.rate=50", "features"),
        ("split=valid", "data"),
    ]:
        options = [option]

        if key == "kmeans_ensemble":
            options += ["units.config={num_clusters: [3, 4], n_init: 1}"]

        message = cluster(corpus, out, *options, expected=2)

        assert f"'{file}' is of another making, and would be lost. Choose another output folder" in message
        assert f"it was made with other `{key}`:" in message
        assert {f: f.read_bytes() for f in before} == before

    # The same again, and another on request.
    cluster(corpus, out)

    assert {f: f.read_bytes() for f in before} == before

    cluster(corpus, out, "seed=1", "overwrite=true")

    assert load_units(file).provenance["seed"] == 1


def test_a_file_that_does_not_say_what_made_it_is_kept(corpus: Path, tmp_path: Path) -> None:
    file = tmp_path / "units.safetensors"

    centroids = np.zeros((4, 39), np.float32)

    KMeansUnitModel({LabelSetSpec("km", 4, 100): centroids}, {}).save(file)

    assert "it was made with other `features`: none are recorded" in cluster(corpus, tmp_path, expected=2)

    file.write_bytes(b"somebody's")

    assert "is not a unit model" in cluster(corpus, tmp_path, expected=2)
    assert file.read_bytes() == b"somebody's"
