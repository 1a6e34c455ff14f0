"""Which steps a refinement has, in which order they are done, and what failing ones leave. Verbs are stood in for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from refined import layer_of, made_refinement, original_refinement  # noqa: F401 - fixtures
from refinement import STEPS, Refinement, line_of, two_rounds, write_manifests


def test_all_steps_are_done_in_order_and_a_second_run_does_none_of_them(made: Refinement) -> None:
    before = made.numbers()

    text = made.run()

    assert made.done() == []
    assert made.numbers() == before

    for step in STEPS:
        assert line_of(text, step).endswith(": done")


def test_steps_are_verbs_that_can_be_run_by_hand_in_the_folder(made: Refinement) -> None:
    record = made.record("round2/cluster")

    assert record["command"][-5:] == [
        "split=train",
        "features.name=hubert_layer",
        f"features.config={{model: round1/pretrain, layer: {layer_of(made)}}}",
        "units.name=kmeans",
        "units.config={num_clusters: 50}",
    ]

    before = (made.out / "round2/cluster/units.safetensors").read_text()

    shutil.rmtree(made.out / "round2/cluster")

    subprocess.run(record["command"], cwd=made.out, check=True)

    assert (made.out / "round2/cluster/units.safetensors").read_text() == before


def test_a_failing_step_shows_the_end_of_its_log_and_its_command_and_what_was_done_stays(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    text = refinement.run(code=2, env={"FAKE_FAIL": "round1/label:2"})

    assert "round1 / label failed with exit code 2" in text
    assert "  | fairseq2: error: 'a.wav' is not as it should be." in text
    assert f"cd {refinement.out} && " in text
    assert "recipe hubert label round1/label --config" in text
    assert "Traceback" not in text

    assert refinement.record("round1/label")["status"] == "failed"

    text = refinement.run(code=1, env={"FAKE_FAIL": "round1/label:7"})

    assert line_of(text, "round1/cluster") == "round1 / cluster: done"
    assert line_of(text, "round1/label") == "round1 / label: goes on, since it had failed"

    assert refinement.done() == ["round1/cluster", "round1/label", "round1/label"]

    refinement.run()

    assert refinement.done() == STEPS[1:]
    assert refinement.record("round1/label")["attempts"] == 3


def test_a_step_that_leaves_nothing_has_failed(tmp_path: Path) -> None:
    config = two_rounds(write_manifests(tmp_path / "data"), command=["true"])

    refinement = Refinement(tmp_path, config)

    text = refinement.run(code=1)

    assert "round1 / cluster ended well, but did not leave what it should" in text


def test_a_part_of_the_steps_can_be_asked_for(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    text = refinement.run("--until", "round1/label")

    assert refinement.done() == STEPS[:2]
    assert "All steps up to round1/label are done." in text

    # That was how much of it, not what it is.
    refinement.run()

    assert refinement.done() == STEPS[2:]

    text = refinement.run("--until", "round1/lable", code=2)

    assert "There is no step 'round1/lable'. Did you mean 'round1/label'" in text


def test_without_a_configuration_a_folder_goes_on_as_it_was(
    made: Refinement, capfd: pytest.CaptureFixture[str]
) -> None:
    from hubert_plugin.cli import main

    (made.out / "round1/analyze/analysis.json").unlink()

    with pytest.raises(SystemExit) as ended:
        main(["recipe", "hubert", "iterate", str(made.out)])

    text = capfd.readouterr().out

    assert ended.value.code == 0
    assert line_of(text, "round1/pretrain") == "round1 / pretrain: done"
    assert "round1/analyze/analysis.json is missing" in text


def test_units_and_layers_of_a_model_that_is_there(tmp_path: Path) -> None:
    model = tmp_path / "published/checkpoints/step_7/model/pp_00/weights.pt"
    model.parent.mkdir(parents=True)
    model.write_text("a model\n")

    config = two_rounds(write_manifests(tmp_path / "data"))

    config["model"] = str(tmp_path / "published")
    config["rounds"] = [
        {
            "features": {"name": "hubert_layer", "model": "published", "layer": "auto"},
            "units": {"config": {"num_clusters": 20}},
            "pretrain": {"preset": "continue", "config": {"init": {"source": "published"}}},
        }
    ]

    refinement = Refinement(tmp_path, config)

    refinement.run()

    entries = {place: options for place, options, _ in refinement.asked()}

    assert list(entries) == [
        *("round1/layers", "round1/cluster", "round1/label", "round1/pretrain", "round1/analyze", "."),
    ]
    assert f"model={tmp_path / 'published'}" in entries["round1/layers"]
    assert f"init.source={tmp_path / 'published'}" in entries["round1/pretrain"]
    assert entries["round1/pretrain"][:2] == ["--preset", "continue"]

    # Another model of the same name.
    model.write_text("another model\n")

    text = refinement.run()

    assert f"the model {tmp_path / 'published'} changed" in line_of(text, "round1/layers")
    assert refinement.done()[:2] == ["round1/layers", "round1/cluster"]


def test_fine_tuning_is_a_step_where_it_is_asked_for(tmp_path: Path) -> None:
    from hubert_plugin.refinement.presets import verb_presets

    config = two_rounds(write_manifests(tmp_path / "data"))

    config["rounds"][1]["finetune"] = {"config": {"regime": {"num_steps": 2}}}

    refinement = Refinement(tmp_path, config)

    if verb_presets("finetune") is None:
        assert "no verb `finetune`" in refinement.run(code=2)

        return

    refinement.run()

    entries = {place: options for place, options, _ in refinement.asked()}

    assert "pretrained=round2/pretrain" in entries["round2/finetune"]


def test_manifests_are_made_from_a_folder_of_audio(tmp_path: Path) -> None:
    config = two_rounds(tmp_path)

    config["dataset"] = {"source": str(tmp_path / "audio"), "manifest": {"valid_fraction": 0.1}}

    refinement = Refinement(tmp_path, config)

    refinement.run()

    entries = refinement.asked()

    assert entries[0][:2] == (
        "manifest",
        ["--no-rich", "--config", f"source={tmp_path / 'audio'}", "valid_fraction=0.1"],
    )
    assert "manifest_dir=manifest" in entries[1][1]

    refinement.run()

    assert refinement.done() == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    (refinement.out / "checkpoints").mkdir(parents=True)

    assert "holds a run of another recipe" in refinement.run(code=2)

    refinement.out_name = "file"
    refinement.out.touch()

    assert "is a file" in refinement.run(code=2)
