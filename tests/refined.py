"""A refinement that has ended, for tests that change something and run it again.

Import both fixtures: ``from refined import made_refinement, original_refinement``. Tests ask for ``made``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from refinement import STEPS, Refinement, two_rounds, write_manifests


@pytest.fixture(scope="module", name="original")
def original_refinement(tmp_path_factory: pytest.TempPathFactory) -> Refinement:
    """One that has ended."""
    folder = tmp_path_factory.mktemp("original")

    refinement = Refinement(folder, two_rounds(write_manifests(folder / "data")))

    refinement.run()

    assert refinement.done() == STEPS

    return refinement


@pytest.fixture(name="made")
def made_refinement(original: Refinement, tmp_path: Path) -> Refinement:
    """One that has ended: a copy, in a folder of its own."""
    shutil.copytree(original.folder, tmp_path, dirs_exist_ok=True)

    return Refinement(tmp_path, two_rounds(tmp_path / "data"))


def set_clusters(refinement: Refinement, idx: int, count: int) -> None:
    refinement.config["rounds"][idx]["units"]["config"]["num_clusters"] = count


def layer_of(refinement: Refinement) -> int:
    return int(json.loads((refinement.out / "round2/choice.json").read_text())["layer"])
