"""A refinement does what is missing or changed, says why, and nothing else. Verbs are stood in for (fake_verbs.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from refinement import STEPS, Refinement, line_of, two_rounds, write_manifests


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Refinement:
    folder = tmp_path_factory.mktemp("original")

    refinement = Refinement(folder, two_rounds(write_manifests(folder / "data")))

    refinement.run()

    assert refinement.done() == STEPS

    return refinement


@pytest.fixture
def made(original: Refinement, tmp_path: Path) -> Refinement:
    """One that has ended: a copy, in a folder of its own."""
    shutil.copytree(original.folder, tmp_path, dirs_exist_ok=True)

    return Refinement(tmp_path, two_rounds(tmp_path / "data"))


def set_clusters(refinement: Refinement, idx: int, count: int) -> None:
    refinement.config["rounds"][idx]["units"]["config"]["num_clusters"] = count


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


def layer_of(refinement: Refinement) -> int:
    return int(json.loads((refinement.out / "round2/choice.json").read_text())["layer"])


def test_the_layer_with_the_highest_pnmi_at_the_next_rounds_size_is_chosen_and_said(made: Refinement) -> None:
    spaces = json.loads((made.out / "round1/analyze/analysis.json").read_text())["spaces"]

    best = best_layer(spaces)

    choice = json.loads((made.out / "round2/choice.json").read_text())

    assert f"L{choice['layer']}" == best
    assert choice["measure"] == "pnmi"
    assert choice["num_clusters"] == 50
    assert choice["values"][best] == spaces[best]["units"]["50"]["pnmi"]
    text = made.run()

    assert f"Layer {best[1]} has the highest PNMI at K = 50" in text

    # And at the end, what came out of it all.
    last = json.loads((made.out / "round2/analyze/analysis.json").read_text())["spaces"]

    values = [s[b]["units"]["50"]["pnmi"] for s, b in ((spaces, "mfcc"), (spaces, best), (last, best_layer(last)))]

    assert (
        f"PNMI of the best layers at K = 50, on the validation split: MFCC {values[0]:.3f}, "
        f"round1 {values[1]:.3f} ({best}), round2 {values[2]:.3f} ({best_layer(last)})."
    ) in text


def best_layer(spaces: dict[str, Any]) -> str:
    return max(("L1", "L2", "L3", "L4"), key=lambda s: spaces[s]["units"]["50"]["pnmi"])


def test_a_changed_option_redoes_its_step_and_what_reads_another_result(made: Refinement) -> None:
    set_clusters(made, 1, 60)

    text = made.run()

    # Round 1 measures its layers at the size of round 2, too.
    assert made.done() == ["round1/analyze", *STEPS[4:]]

    assert line_of(text, "round2/cluster").startswith("round2 / cluster: again, because ")
    assert "units.config.num_clusters changed from 50 to 60" in line_of(text, "round2/cluster")
    assert "num_clusters changed from [50, 100] to [60, 100]" in line_of(text, "round1/analyze")
    assert "the unit model changed" in line_of(text, "round2/label")
    assert "the labels changed" in line_of(text, "round2/pretrain")
    assert line_of(text, "round1/pretrain") == "round1 / pretrain: done"


def test_the_second_round_of_runs_with_another_configuration_equals_one_made_at_once(
    made: Refinement, tmp_path: Path
) -> None:
    set_clusters(made, 0, 30)
    made.run()

    (tmp_path / "fresh").mkdir()

    fresh = Refinement(tmp_path / "fresh", made.config)
    fresh.run()

    assert fresh.numbers() == made.numbers()


def test_steps_that_depend_on_an_equal_result_stay(made: Refinement) -> None:
    made.config["rounds"][0]["cluster"] = {"export_joblib": True}

    text = made.run()

    assert made.done() == ["round1/cluster", "report"]
    assert "export_joblib is true now, and was not given" in line_of(text, "round1/cluster")


def test_options_that_only_say_how_are_no_reason(made: Refinement) -> None:
    made.config["options"] |= {
        "pretrain": {
            **made.config["options"]["pretrain"],
            "common": {"seed": 2},
            "task": {"config": {"num_workers": 4, "batching": {"batch_seconds": 20}}},
            "regime": {"num_steps": 4, "keep_last_n_checkpoints": 3},
        },
        "analyze": {"plots": False},
        "label": {"num_workers": 3},
    }

    made.run()

    assert made.done() == []


@pytest.mark.parametrize(
    ("step", "name", "again"),
    [
        ("round1/cluster", "units.safetensors", ["round1/cluster", "report"]),
        ("round1/label", "valid.km", ["round1/label", "report"]),
        ("round1/analyze", "analysis.json", ["round1/analyze", "report"]),
        ("report", "index.html", ["report"]),
    ],
)
@pytest.mark.parametrize("how", ["missing", "altered"])
def test_a_deleted_or_altered_result_is_made_again(
    made: Refinement, step: str, name: str, again: list[str], how: str
) -> None:
    path = made.out / step / name

    before, numbers = path.read_text(), made.numbers()

    if how == "missing":
        path.unlink()
    else:
        path.write_text(before[:-2] + "x\n")  # as long as before

    text = made.run()

    verb = "is missing" if how == "missing" else "was altered"

    assert line_of(text, step) == f"{step.replace('/', ' / ')}: again, because {step}/{name} {verb}"
    assert path.read_text() == before
    assert made.numbers() == numbers

    # The report tells times, and those of what was done again are others.
    assert made.done() == again


def test_a_deleted_folder_is_made_again(made: Refinement) -> None:
    shutil.rmtree(made.out / "round1/label")

    made.run()

    assert made.done() == ["round1/label", "report"]


def test_a_damaged_checkpoint_is_removed_and_the_training_goes_on_from_the_one_before(made: Refinement) -> None:
    folder = made.out / "round1/pretrain/checkpoints"

    weights = folder / "step_4/model/pp_00/weights.pt"

    before = weights.read_text()

    weights.write_text("damaged")

    mark = folder / "step_3/mark"
    mark.touch()

    text = made.run()

    assert "step_4/model/pp_00/weights.pt was altered" in line_of(text, "round1/pretrain")
    assert weights.read_text() == before
    assert mark.exists()  # nobody began anew
    assert made.done() == ["round1/pretrain", "report"]


def test_a_training_that_is_replaced_is_kept_beside_unless_it_is_not_wanted(made: Refinement) -> None:
    weights = (made.out / "round2/pretrain/checkpoints/step_4/model/pp_00/weights.pt").read_text()

    made.config["options"]["pretrain"]["optimizer"] = {"config": {"lr": 0.1}}

    text = made.run()

    assert "optimizer.config.lr is 0.1 now, and was not given" in text

    kept = made.out / "replaced/round2-pretrain-1"

    assert (kept / "checkpoints/step_4/model/pp_00/weights.pt").read_text() == weights
    assert "what was there is in replaced/round2-pretrain-1" in text

    made.config["options"]["pretrain"]["optimizer"] = {"config": {"lr": 0.2}}
    made.config["keep_replaced"] = False

    made.run()

    assert sorted(p.name for p in (made.out / "replaced").iterdir()) == ["round1-pretrain-1", "round2-pretrain-1"]


def test_only_the_last_model_of_a_round_stays_if_that_is_asked_for(made: Refinement) -> None:
    made.config["rounds"][0]["keep"] = "model"

    made.run()

    assert made.done() == []

    checkpoints = made.out / "round1/pretrain/checkpoints"

    assert sorted(str(p.relative_to(checkpoints)) for p in checkpoints.rglob("*") if p.is_file()) == [
        "model.yaml",
        "step_4/model/pp_00/weights.pt",
    ]
    assert (made.out / "round2/pretrain/checkpoints/step_4/trainer").is_dir()

    made.run()

    assert made.done() == []


def test_other_audio_redoes_what_reads_it(made: Refinement) -> None:
    write_manifests(made.folder / "data", names=["a.wav", "c.wav"])

    text = made.run()

    assert made.done() == STEPS
    assert "the training manifest changed" in line_of(text, "round1/cluster")


def test_moved_audio_and_manifests_are_no_reason(made: Refinement) -> None:
    write_manifests(made.folder / "elsewhere", root="/mnt/audio")

    made.config["dataset"]["manifest_dir"] = str(made.folder / "elsewhere")

    made.run()

    assert made.done() == []


def test_a_moved_folder_goes_on_where_it_was(made: Refinement) -> None:
    shutil.rmtree(made.out / "round2/analyze")

    made.out.rename(made.folder / "moved")

    made.out_name = "moved"

    made.run()

    entries = made.asked()

    assert [place for place, _, _ in entries] == ["round2/analyze", "."]
    assert not any(str(made.folder / "out") in option for _, options, _ in entries for option in options)


def test_a_copied_folder_is_done_too(made: Refinement) -> None:
    shutil.copytree(made.out, made.folder / "copy")
    shutil.rmtree(made.out)

    made.out_name = "copy"

    made.run()

    assert made.done() == []


def test_times_of_files_and_a_clock_that_goes_back_decide_nothing(made: Refinement) -> None:
    for idx, path in enumerate(sorted(made.out.rglob("*"))):
        if path.is_file():
            os.utime(path, (1_000_000 + 1000 * (idx % 7), 4_000_000_000 - 1000 * idx))

    made.run()

    assert made.done() == []

    # A result that was altered, and whose times say that it is older than everything.
    path = made.out / "round1/cluster/units.safetensors"
    path.write_text("x" * len(path.read_text()))
    os.utime(path, (1, 1))

    made.run()

    assert made.done() == ["round1/cluster", "report"]


def test_a_file_that_was_written_without_a_change_of_its_times_is_noticed(made: Refinement) -> None:
    path = made.out / "round1/label/train.km"

    stat, text = path.stat(), path.read_text()

    with path.open("r+") as fp:
        fp.write("x" * (len(text) - 1))

    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    made.run()

    assert made.done() == ["round1/label", "report"]


def test_records_that_cannot_be_read_are_made_anew(made: Refinement) -> None:
    (made.out / "state/round1-label.json").write_text("{")
    (made.out / "state/digests.json").write_text("[]")

    numbers = made.numbers()

    made.run()

    assert made.done() == ["round1/label", "report"]
    assert made.numbers() == numbers


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


def test_other_code_is_said_and_no_reason_unless_it_is_asked_for(
    made: Refinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hubert_plugin

    monkeypatch.setattr(hubert_plugin, "__version__", "99.0")

    text = made.run()

    assert made.done() == []
    assert line_of(text, "round1/cluster").startswith("round1 / cluster: done (made with fairseq2-hubert ")
    assert "`on_code_change=redo` makes it again" in text

    made.config["on_code_change"] = "redo"

    text = made.run()

    assert made.done() == STEPS
    assert "again, because the code changed: fairseq2-hubert was" in line_of(text, "round1/pretrain")


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


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    (refinement.out / "checkpoints").mkdir(parents=True)

    assert "holds a run of another recipe" in refinement.run(code=2)

    refinement.out_name = "file"
    refinement.out.touch()

    assert "is a file" in refinement.run(code=2)
