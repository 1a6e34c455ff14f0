"""The benchmark of recognition runs, and says what the commands say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="the demo corpus needs its synthesiser")
def test_recognition_is_measured_from_labels_to_error_rates(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")

    command = [sys.executable, "-m", "benchmarks.recognition", "--quick", "--out", str(tmp_path / "runs")]

    command += ["--json", str(tmp_path / "result.json")]

    process = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )

    assert process.returncode == 0, process.stdout + process.stderr

    rows = json.loads((tmp_path / "result.json").read_text())["rows"]

    assert [(r["minutes"], r["start"], r["decoder"]) for r in rows] == [
        (0.2, "random", "greedy"),
        (0.2, "random", "3-gram"),
    ]

    for row in rows:
        folder = tmp_path / "runs" / f"random_0.2min_{row['decoder']}" / "evaluation"

        assert row["wer"] == json.loads((folder / "evaluation.json").read_text())["wer"]

    assert "| 0.2 min | random | greedy |" in process.stdout
