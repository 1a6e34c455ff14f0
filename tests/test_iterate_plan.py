"""The plan and the commands of a refinement, which are shown, while nothing is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from refined import layer_of, made_refinement, original_refinement, set_clusters  # noqa: F401 - fixtures
from refinement import FAKE_VERBS, STEPS, Refinement, two_rounds, write_manifests

from hubert_plugin.cli import main


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
    assert "~ 31.4 TFLOP, 31 s" in text
    assert "the layer is chosen when it is measured" in text
    assert "To do: 9 of 9 steps" in text


def test_the_plan_of_what_is_done_says_so_and_no_more(made: Refinement) -> None:
    text = made.run("--plan")

    assert text.endswith(
        "Audio: 0.01 h to train, 0.01 h to validate.\nNothing is to do: all 9 steps are done.\n",
    )
    assert "The commands:" not in text
    assert "TFLOP/s" not in text


def states(refinement: Refinement) -> dict[str, str]:
    """What the plan says of each step, behind its size and cost."""
    lines = [re.split(r"  +", line.strip()) for line in refinement.run("--plan").splitlines()]

    return {parts[0].replace(" / ", "/"): parts[-1] for parts in lines if parts[0].replace(" / ", "/") in STEPS}


def test_what_reads_units_of_another_kind_is_done_again_for_sure(made: Refinement) -> None:
    made.config["rounds"][0]["units"] = {"name": "product", "config": {"num_clusters": 100}}

    found = states(made)

    assert found["round1/cluster"].startswith("again, because units.name changed")
    assert found["round1/label"] == "again, because round1 / cluster will give another result"
    assert found["round1/pretrain"].startswith("again, because dataset.labels changed")
    assert found["round2/cluster"] == "again, because round1 / analyze will give another result"
    assert found["report"] == "again, because round2 / analyze will give another result"

    made.run()

    assert made.done() == STEPS


def test_the_nearest_changed_input_is_named(made: Refinement) -> None:
    set_clusters(made, 1, 20)

    found = states(made)

    # The first round measures at the second's K, too, and the choice may become another. But these are nearer:
    assert found["round2/label"] == "again, because round2 / cluster will give another result"
    assert found["round2/pretrain"] == "again, because round2 / label will give another result"
    assert found["round1/pretrain"] == "done"

    set_clusters(made, 1, 50)

    made.config["rounds"][1]["cluster"] = {"seed": 7}

    found = states(made)

    assert found["round2/label"] == "done; again if round2 / cluster gives another result"
    assert found["round2/pretrain"] == "done; again if round2 / label gives another result"
    assert found["round1/analyze"] == "done"


@pytest.mark.parametrize("flag", ["--plan", "--dump-config"])
def test_a_folder_without_a_refinement_is_said_to_become_the_demo(
    tmp_path: Path, flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # Speech and verbs are not needed to say so.
    args = ["recipe", "hubert", "iterate", str(tmp_path / "nope"), flag, "--config", f"command={FAKE_VERBS}"]

    with pytest.raises(SystemExit) as ended:
        main(args)

    said = capfd.readouterr()

    assert ended.value.code == 0
    assert said.err == (
        f"'{tmp_path / 'nope'}' holds no refinement yet, and neither --preset nor --config-file is given, so the "
        "preset `demo` is taken. To go on with an earlier refinement, name its folder.\n"
    )
    assert "holds no refinement" not in said.out
    assert not (tmp_path / "nope").exists()


def test_presets_and_folders_that_are_named_rightly_are_not_remarked_upon(
    made: Refinement, capfd: pytest.CaptureFixture[str]
) -> None:
    for args in ([str(made.out)], [str(made.folder / "new"), "--preset", "demo", "--config", f"command={FAKE_VERBS}"]):
        with pytest.raises(SystemExit) as ended:
            main(["recipe", "hubert", "iterate", *args, "--plan"])

        assert ended.value.code == 0

    assert "holds no refinement" not in capfd.readouterr().err


def test_the_command_of_a_step_can_be_had_once_it_is_known(made: Refinement, tmp_path: Path) -> None:
    text = made.run("--print-command", "round2/label")

    assert text.startswith(f"cd {made.out} && ")
    assert f"layer: {layer_of(made)}}}" in text

    fresh = Refinement(tmp_path, made.config, out_name="fresh")

    assert "The command of 'round2/label' is not known yet" in fresh.run("--print-command", "round2/label", code=2)
    assert not fresh.out.exists()
