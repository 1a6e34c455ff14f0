"""What is checked before the first step and before a plan, and what is not there to be checked yet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from refinement import Refinement, two_rounds, write_manifests

from hubert_plugin.recipes.hubert.iterate.config import HubertIterateConfig
from hubert_plugin.refinement.fit import head_problems, layer_problems, measure_problems, transcript_problems
from hubert_plugin.refinement.load import load_config
from hubert_plugin.refinement.settings import dump_yaml
from hubert_plugin.refinement.store import open_workshop
from hubert_plugin.refinement.workshop import Workshop


def workshop(folder: Path, config: dict[str, Any]) -> Workshop:
    """The steps of a configuration, as the check sees them."""
    (folder / "config.yaml").write_text(dump_yaml(config))

    return open_workshop(load_config(HubertIterateConfig, folder / "config.yaml", []), folder / "out", dry=True)


def layers(folder: Path, **changes: Any) -> list[str]:
    return layer_problems(workshop(folder, two_rounds(write_manifests(folder / "data"), **changes)), ())


def rounds(layer: int | str, **pretrain: Any) -> list[dict[str, Any]]:
    """Two rounds, of which the second takes this layer of the first."""
    return [
        {"units": {}, "pretrain": pretrain},
        {"units": {}, "features": {"name": "hubert_layer", "layer": layer}},
    ]


def test_a_layer_that_the_model_before_will_not_have_is_named(tmp_path: Path) -> None:
    (problem,) = layers(tmp_path, rounds=rounds(99))

    assert problem == (
        "round2 / cluster: `rounds[1].features.layer` is 99, but the model of round1 has 4 layers: name one from 1 to "
        "4, or `auto`."
    )

    assert layers(tmp_path, rounds=rounds(4)) == []
    assert layers(tmp_path, rounds=rounds("auto")) == []


@pytest.mark.parametrize(
    ("pretrain", "last"),
    [
        ({"preset": "base_it1"}, 12),
        ({"config": {"model": {"arch": "large"}}}, 24),
        ({"preset": "base_it1", "config": {"model": {"config_overrides": {"num_layers": 6}}}}, 6),
    ],
)
def test_the_number_of_layers_is_that_of_preset_architecture_and_overrides(
    tmp_path: Path, pretrain: dict[str, Any], last: int
) -> None:
    assert layers(tmp_path, rounds=rounds(last, **pretrain)) == []
    assert f"the model of round1 has {last} layers" in layers(tmp_path, rounds=rounds(last + 1, **pretrain))[0]


def test_layers_of_architectures_that_are_not_known_are_not_judged(tmp_path: Path) -> None:
    assert layers(tmp_path, rounds=rounds(99, config={"model": {"arch": "somebodys"}})) == []
    assert layers(tmp_path, rounds=[*rounds(3)[:1], {"units": {}, "features": {"name": "mfcc"}}]) == []


def test_a_choice_from_layers_that_will_not_be_measured_is_named(tmp_path: Path) -> None:
    (problem,) = layers(tmp_path, choice={"layers": [9]})

    assert "`choice.layers` allows 9, but the model of round1 has 4 layers, of which 1, 2, 3, 4 will be" in problem

    assert layers(tmp_path, choice={"layers": [3, 9]}) == []  # one is enough to go on
    assert layers(tmp_path, choice={"layers": [9]}, rounds=rounds(3)) == []  # nothing is chosen

    (problem,) = layers(tmp_path, choice={"layers": [4]}, options={"analyze": {"layers": [1, 2]}})

    assert "of which 1, 2 will be measured" in problem

    assert "`layers` holds 8, but the model of round1" in layers(tmp_path, options={"analyze": {"layers": [1, 8]}})[0]


def heads(folder: Path, sizes: list[int] | None = None, **model: Any) -> list[str]:
    """What is said of a second round with these overrides of its model, and label sets of these sizes."""
    config = two_rounds(write_manifests(folder / "data"))

    units = {"name": "hierarchy", "config": {"num_clusters": sizes or [32, 16, 8]}}

    config["rounds"][1] = {"units": units, "pretrain": {"config": {"model": model}}}

    return head_problems(workshop(folder, config), ())


def test_heads_that_read_layers_which_the_model_will_not_have_are_named(tmp_path: Path) -> None:
    def named(*layers: int | None) -> list[str]:
        described = [{"label_set": f"km{k}", "layer": n} for k, n in zip((32, 16, 8), layers, strict=True)]

        return heads(tmp_path, config_overrides={"num_layers": 3, "heads": described})

    (problem,) = named(3, 9, None)

    assert problem == (
        "round2 / pretrain: `model.config_overrides.heads[1].layer` is 9, but the model has 3 layers: name one from 1 "
        "to 3."
    )

    assert len(named(0, 1, 4)) == 2
    assert named(3, 2, None) == []


def test_more_dropped_heads_than_there_are_label_sets_are_named(tmp_path: Path) -> None:
    (problem,) = heads(tmp_path, config_overrides={"num_dropped_heads": 3})

    assert problem.startswith("round2 / pretrain: `num_dropped_heads` is 3, but must be at least 0 and below")
    assert "of the label sets, 3 (km32, km16, km8)" in problem

    assert heads(tmp_path, config_overrides={"num_dropped_heads": 2}) == []

    # The architecture's own.
    assert heads(tmp_path, arch="ms_hubert_base") == []
    assert "is 2, but" in heads(tmp_path, [32, 16], arch="ms_hubert_base")[0]
    assert heads(tmp_path, [32, 16], arch="ms_hubert_base", config_overrides={"num_dropped_heads": 1}) == []


def measures(folder: Path, measure: str, **changes: Any) -> list[str]:
    config = two_rounds(write_manifests(folder / "data"), **{"choice": {"measure": measure}, **changes})

    return measure_problems(workshop(folder, config), ())


@pytest.mark.parametrize(
    ("measure", "what", "option", "file"),
    [
        ("pnmi", "phone times", "dataset.alignment", "align.tsv"),
        ("abx", "item files", "dataset.items", "phoneme.item"),
    ],
)
def test_a_measure_without_what_it_needs_is_named(
    tmp_path: Path, measure: str, what: str, option: str, file: str
) -> None:
    (problem,) = measures(tmp_path, measure)

    assert problem.startswith(
        f"round2 / choice: `choice.measure` is {measure}, for which round1/analyze needs {what}, but there are none: "
        f"name them with `{option}`"
    )

    assert measures(tmp_path, measure, rounds=rounds(3)) == []  # nothing is chosen

    (tmp_path / "data" / f"valid.{file}").touch()  # as the demo corpus has it

    assert measures(tmp_path, measure) == []


def test_a_measure_has_what_it_needs_where_it_is_named(tmp_path: Path) -> None:
    times, items = tmp_path / "times.tsv", tmp_path / "x.item"

    times.touch()
    items.touch()

    for measure in ("auto", "unsupervised"):
        assert measures(tmp_path, measure) == []

    for measure in ("pnmi", "abx"):
        assert measures(tmp_path, measure, dataset={"items": [str(items)], "alignment": {"path": str(times)}}) == []
        assert measures(tmp_path, measure, dataset={"manifest_dir": None, "demo": {}}) == []

    for measure, options in (("pnmi", {"alignment": {"path": str(times)}}), ("abx", {"abx": {"items": [str(items)]}})):
        assert measures(tmp_path, measure, options={"analyze": options}) == []

    # Manifests of a folder of audio, once they are made, have no times beside them.
    (problem,) = measures(tmp_path, "abx", dataset={"manifest_dir": None, "source": str(tmp_path)})

    assert "item files" in problem


def test_view_consistency_that_is_switched_off_and_would_be_needed_is_named(tmp_path: Path) -> None:
    off = {"analyze": {"criterion": False}}

    (problem,) = measures(tmp_path, "unsupervised", options=off)

    assert problem == (
        "round2 / choice: `choice.measure` is unsupervised, for which round1/analyze must measure view consistency, "
        "but `criterion` of `analyze` is false: leave it out, or name the layer (`rounds[1].features.layer`)."
    )

    (problem,) = measures(tmp_path, "auto", options=off)

    assert "false and there are neither phone times nor item files: leave it out" in problem

    demo = {"manifest_dir": None, "demo": {}}

    assert len(measures(tmp_path, "unsupervised", options=off, dataset=demo)) == 1
    assert measures(tmp_path, "auto", options=off, dataset=demo) == []
    assert measures(tmp_path, "auto", options=off, rounds=rounds(3)) == []  # nothing is chosen

    (tmp_path / "data/valid.phoneme.item").touch()

    assert measures(tmp_path, "auto", options=off) == []


def finetune(folder: Path, **config: Any) -> dict[str, Any]:
    """Two rounds, of which the second has a probe."""
    made = two_rounds(write_manifests(folder / "data"))

    made["rounds"][1]["finetune"] = {"preset": "probe", "config": config}

    return made


def test_missing_transcripts_are_named(tmp_path: Path) -> None:
    problems = transcript_problems(workshop(tmp_path, finetune(tmp_path)), ())

    assert len(problems) == 2
    assert problems[0].startswith("round2 / finetune: There are no transcripts of the split 'train' in ")
    assert "'valid'" in problems[1]

    for split in ("train", "valid"):
        (tmp_path / f"data/{split}.wrd").write_text("a word\nanother\n")

    assert transcript_problems(workshop(tmp_path, finetune(tmp_path)), ()) == []

    (tmp_path / "data/valid.wrd").write_text("a word\n")

    (problem,) = transcript_problems(workshop(tmp_path, finetune(tmp_path)), ())

    assert "must have a line for each of the 2 utterances" in problem


def test_transcripts_are_looked_for_where_finetune_looks(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()

    for split in ("train", "valid"):
        (tmp_path / f"words/{split}.txt").write_text("a word\nanother\n")

    given = {"dataset": {"transcripts": {"dir": str(tmp_path / "words"), "name": "txt"}}}

    assert transcript_problems(workshop(tmp_path, finetune(tmp_path, **given)), ()) == []

    given["dataset"]["transcripts"]["name"] = "words"

    assert "valid.words" in transcript_problems(workshop(tmp_path, finetune(tmp_path, **given)), ())[1]


@pytest.mark.parametrize("origin", ["demo", "source"])
def test_transcripts_of_audio_without_manifests_are_not_judged(tmp_path: Path, origin: str) -> None:
    config = finetune(tmp_path)

    config["dataset"] = {"demo": {}} if origin == "demo" else {"source": str(tmp_path / "audio")}

    assert transcript_problems(workshop(tmp_path, config), ()) == []


def test_transcripts_are_checked_once_there_are_manifests(tmp_path: Path) -> None:
    config = finetune(tmp_path)

    config["dataset"] = {"source": str(tmp_path / "audio")}

    refinement = Refinement(tmp_path, config)

    text = refinement.run("--until", "round1/label")

    assert [line.partition(":")[0] for line in text.splitlines() if " checked in " in line or "is missing" in line] == [
        *("options of all steps", "manifest", "options of all steps", "round1 / cluster", "round1 / label"),
    ]

    # The second one holds.
    assert "checked in" not in refinement.run("--until", "round1/pretrain")


def test_there_is_neither_plan_nor_script_of_options_that_cannot_be_used(tmp_path: Path) -> None:
    said = "print('a warning', flush=True); sys.exit('fairseq2: error: The refinement cannot be run:\\n  - as it is')"

    command = [sys.executable, "-S", "-E", "-c", f"import sys; {said}"]

    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data"), command=command))

    for options in (["--plan"], ["--emit-slurm", str(tmp_path / "jobs")]):
        text = refinement.run(*options, code=2)

        assert "fairseq2: error: The refinement cannot be run:\n  - as it is" in text
        assert "The steps, in order:" not in text
        assert "a warning" not in text
        assert not refinement.out.exists()
        assert not (tmp_path / "jobs").exists()


def test_a_plan_asks_with_its_own_configuration_and_once_for_all_runs(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    refinement.run("--plan")

    place, options = refinement.checks()[0]

    assert place == str(refinement.out)
    assert options[:2] == ["--check", "--config-file"]

    refinement.run("--until", "round1/cluster")
    refinement.run("--plan")

    assert refinement.checks() == [(".", ["--check"])]


def test_a_plan_is_made_where_the_command_is_not_there(tmp_path: Path) -> None:
    config = two_rounds(write_manifests(tmp_path / "data"), command=[str(tmp_path / "gone")])

    text = Refinement(tmp_path, config).run("--plan")

    assert f"The options of the steps are not checked: '{tmp_path / 'gone'}' cannot be started here" in text
    assert "To do: 9 of 9 steps" in text


def test_a_command_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data"), command=["nope-cmd"]))

    text = refinement.run(code=2)

    assert "fairseq2: error: `command` cannot be started: it must begin with a program that is there" in text
    assert "but begins with 'nope-cmd' (No such file or directory)." in text
    assert "Traceback" not in text
