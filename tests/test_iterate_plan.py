"""The plan and the commands of a refinement, which are shown, while nothing is run."""

from __future__ import annotations

from pathlib import Path

from refined import layer_of, made_refinement, original_refinement, set_clusters  # noqa: F401 - fixtures
from refinement import Refinement, two_rounds, write_manifests


def test_the_plan_shows_steps_reasons_sizes_and_costs_and_runs_nothing(made: Refinement) -> None:
    set_clusters(made, 1, 60)
    (made.out / "round1/label/train.km").unlink()

    before = {p: p.stat().st_mtime_ns for p in made.out.rglob("*")}

    text = made.run("--plan")

    assert made.asked() == []
    assert {p: p.stat().st_mtime_ns for p in made.out.rglob("*")} == before

    assert "again, because round1/label/train.km is missing" in text
    assert "num_clusters changed from [50, 100] to [60, 100]" in text
    assert "Audio: 0.01 h to train, 0.01 h to validate." in text
    assert "TFLOP/s each" in text

    assert "recipe hubert cluster round2/cluster" in text


def test_the_plan_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    text = refinement.run("--plan", "--config", "cost.tflops=2.0", "options.pretrain.regime.num_steps=1000")

    assert not refinement.out.exists()

    # 1,000 updates of 15 s of the architecture tiny, at 2.096 GFLOP a second in training.
    assert "~ 31.4 TFLOP, 16 s" in text
    assert "the layer is chosen when it is measured" in text
    assert "To do: 9 of 9 steps" in text


def test_the_command_of_a_step_can_be_had_once_it_is_known(made: Refinement, tmp_path: Path) -> None:
    text = made.run("--print-command", "round2/label")

    assert text.startswith(f"cd {made.out} && ")
    assert f"layer: {layer_of(made)}}}" in text

    fresh = Refinement(tmp_path, made.config, out_name="fresh")

    assert "The command of 'round2/label' is not known yet" in fresh.run("--print-command", "round2/label", code=2)
    assert not fresh.out.exists()
