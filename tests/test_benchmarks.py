"""The benchmarks run, and what they compare computes the same. Times are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Each starts an interpreter and imports the peers.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run_quick(name: str, folder: Path, *options: str) -> dict[str, Any]:
    file = folder / "result.json"

    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", str(file), *options]

    # One thread: the sizes are tiny, and threads that wait for each other on busy cores take the longest.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)

    assert process.returncode == 0, process.stdout + process.stderr

    return json.loads(file.read_text())  # type: ignore[no-any-return]


def test_loss_head_equals_the_materialised_form(tmp_path: Path) -> None:
    result = run_quick("loss_head", tmp_path)

    assert set(result["equality"]) == {"loss", "grad_frames", "grad_codewords"}

    assert max(result["equality"].values()) < 1e-5, result["equality"]

    assert set(result["times"]) == {"ours", "materialised"}


def test_training_step_has_the_loss_and_the_gradients_of_the_peers(tmp_path: Path) -> None:
    result = run_quick("train_step", tmp_path, "--dtype", "both")

    peers = [name for name in ("torchaudio", "transformers") if find_spec(name)]

    assert "torchaudio" in peers

    for peer in peers:
        equality = result["equality"][f"{peer} fp32"]

        assert equality["loss"] < 1e-5, equality

        # Of all parameters together, of a convolution behind the gradient scaling, and of a query projection.
        assert max(equality.values()) < 1e-4, equality

        assert result["equality"][f"{peer} bf16"]["loss"] < 1e-2

    assert result["equality"]["ours bf16"]["loss"] < 1e-2

    assert {f"{name} {dtype}" for name in ("ours", *peers) for dtype in ("fp32", "bf16")} == set(result["times"])


def test_extraction_gives_the_features_of_the_peers(tmp_path: Path) -> None:
    result = run_quick("extraction", tmp_path, "--dtype", "fp32")

    assert result["equality"]

    assert all(error < 1e-4 for name, error in result["equality"].items() if "fp32" in name), result["equality"]


def test_data_pipeline_delivers_what_the_files_hold(tmp_path: Path) -> None:
    result = run_quick("data_pipeline", tmp_path)

    assert set(result["results"]) == {"pipeline", "decoding alone"}

    assert all(rate > 0 for rates in result["results"].values() for pair in rates for rate in pair)


def test_packing_gives_what_a_padded_batch_gives(tmp_path: Path) -> None:
    result = run_quick("packing", tmp_path, "--dtype", "fp32")

    assert all(cell["difference"] < 1e-5 for cell in result["cells"])

    assert [cell["training"] for cell in result["cells"]] == [False, True]
