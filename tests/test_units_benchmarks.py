"""The benchmarks of features and k-means run, and what they compare agrees. Times are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_benchmarks import run_quick

# Each starts an interpreter and imports the peers.
pytestmark = pytest.mark.slow


def test_mfcc_equals_torchaudios(tmp_path: Path) -> None:
    result = run_quick("mfcc", tmp_path)

    assert result["equality"] < 2e-4

    assert set(result["times"]) == {"ours", "torchaudio"}


def test_kmeans_has_the_inertia_and_the_labels_of_scikit_learn(tmp_path: Path) -> None:
    result = run_quick("kmeans", tmp_path)

    assert set(result["fit"]) == {"D=6 K=10", "D=130 K=10"}

    for fit in result["fit"].values():
        assert fit["inertia_ratio"] < 1.1  # two thousand frames, two initialisations: chance shows

    for assignment in result["assign"].values():
        assert min(assignment["same_labels"].values()) > 0.995
