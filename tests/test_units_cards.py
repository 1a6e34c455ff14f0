"""Unit models by the name of an asset card."""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import numpy as np
from processes import command_server
from sklearn.cluster import MiniBatchKMeans

USE_CARDS = """
import json, sys
from fairseq2 import init_fairseq2
from hubert_plugin import load_units
from hubert_plugin.errors import UnitModelError

init_fairseq2()

def load(name, **kwargs):
    try:
        model = load_units(name, **kwargs)
        (spec,) = model.label_sets
        return [spec.name, spec.size, spec.rate, model.centroids[0].tolist()]
    except UnitModelError as ex:
        return str(ex)

results = {
    "untrusted": load("pickled"),
    "trusted": load("pickled", trust_pickle=True),
    "released": load("hubert_base_ls960_l9_km500"),
    "released_trusted": load("hubert_base_ls960_l9_km500", trust_pickle=True),
    "model": load("hubert_base_ls960"),
    "nowhere": load("nowhere"),
}

open(RESULTS, "w").write(json.dumps(results))
"""


def test_cards_of_unit_models(tmp_path: Path) -> None:
    """Trust comes before fetching; a machine without a connection is told which file to put where."""
    cards, results = tmp_path / "cards", tmp_path / "results.json"

    cards.mkdir()

    x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)

    estimator = MiniBatchKMeans(5, n_init=1, random_state=0).fit(x)

    joblib.dump(estimator, tmp_path / "km.bin")

    (cards / "units.yaml").write_text(
        f"name: pickled\nunits: {{kind: kmeans, trust_pickle_required: true, label_set: mfcc}}\nunit_rate: 100\n"
        f"checkpoint: {tmp_path / 'km.bin'}\n"
    )

    run = command_server().run(
        code=f"RESULTS = {str(results)!r}\n{USE_CARDS}",
        env={
            "FAIRSEQ2_USER_ASSET_DIR": str(cards),
            "FAIRSEQ2_CACHE_DIR": str(tmp_path / "cache"),
            "https_proxy": "http://127.0.0.1:9",
        },
    )

    assert run.poll() == 0, run.raw

    loaded = json.loads(results.read_text())

    assert "trust_pickle" in loaded["untrusted"]

    name, size, rate, centroids = loaded["trusted"]

    assert (name, size, rate) == ("mfcc", 5, 100)
    np.testing.assert_array_equal(np.float32(centroids), np.float32(estimator.cluster_centers_))

    assert "is a pickle" in loaded["released"] and "trust_pickle=True" in loaded["released"]
    assert "hubert_base_ls960_L9_km500.bin" in loaded["released_trusted"]
    assert str(tmp_path / "cache") in loaded["released_trusted"]
    assert "not one of a unit model" in loaded["model"]
    assert "There is no unit model at 'nowhere'" in loaded["nowhere"]
