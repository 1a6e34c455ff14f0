"""A refinement with the real verbs, on a corpus of a minute."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import TINY_MODEL
from processes import recipe_env
from refinement import STEPS, Refinement, line_of, write_manifests
from verb_bridge import VerbBridge

from hubert_plugin import load_hubert, load_units
from hubert_plugin.analysis.page.data import PageData

DEMO = {"train_minutes": 0.4, "valid_minutes": 0.5, "num_speakers": 4, "num_jobs": 1, "num_valid_speakers": 2}

CONFIG: dict[str, Any] = {
    "title": "A small refinement",
    "dataset": {"demo": DEMO},
    "rounds": [
        {"units": {"name": "kmeans_ensemble", "config": {"num_clusters": [12, 6]}}},
        {"units": {"name": "kmeans", "config": {"num_clusters": 12}}, "keep": "model"},
    ],
    "options": {
        "cluster": {"num_workers": 1},
        "analyze": {"plots": False, "n_init": 1, "fit_minutes": 0.2, "cca": {"enabled": False}},
        "pretrain": {
            "model": {"config_overrides": TINY_MODEL},
            "task": {"config": {"batching": {"batch_seconds": 6.0, "max_seconds": 2.5}, "valid_batch_seconds": 12.0}},
            "trainer": {"mixed_precision": {"mode": "off"}},
            "lr_scheduler": {"config": {"num_warmup_steps": 2}},
            "regime": {
                **{"num_steps": 6, "validate_every_n_steps": 3, "checkpoint_every_n_steps": 3},
                "publish_metrics_every_n_steps": 1,
            },
        },
    },
    "num_examples": 2,
}


@pytest.fixture(scope="module")
def bridge() -> Iterator[VerbBridge]:
    bridge = VerbBridge()

    yield bridge

    bridge.close()


@pytest.fixture(scope="module")
def made(bridge: VerbBridge, tmp_path_factory: pytest.TempPathFactory) -> Refinement:
    refinement = Refinement(tmp_path_factory.mktemp("real"), {**CONFIG, "command": bridge.command})

    refinement.run()

    assert [p.replace(".", "report") for p in bridge.places] == STEPS

    return refinement


def page(refinement: Refinement) -> PageData:
    return PageData.from_json((refinement.out / "report/report.json").read_text())


def test_models_units_and_labels_of_all_rounds_are_there(made: Refinement) -> None:
    first, second = (load_hubert(str(made.out / f"round{nr}/pretrain")) for nr in (1, 2))

    assert [h.label_set for h in first.config.heads] == ["km12", "km6"]
    assert [h.size for h in second.config.heads] == [12]

    units = load_units(made.out / "round2/cluster/units.safetensors")

    choice = json.loads((made.out / "round2/choice.json").read_text())

    features: Any = units.provenance["features"]

    assert features["layer"] == choice["layer"] in (1, 2)

    analysis = json.loads((made.out / "round1/analyze/analysis.json").read_text())

    values = {s: v["units"]["12"]["pnmi"] for s, v in analysis["spaces"].items() if s != "mfcc"}

    assert choice["values"] == values
    assert values[f"L{choice['layer']}"] == max(values.values())

    # The model alone was kept of the second round.
    assert [p.name for p in (made.out / "round2/pretrain/checkpoints/step_6").iterdir()] == ["model"]


def test_the_report_holds_the_numbers_of_the_steps(made: Refinement) -> None:
    data = page(made)

    assert data.title == "A small refinement"
    assert [r.name for r in data.rounds] == ["Round 1", "Round 2"]
    assert [s.name for s in data.steps] == [s.replace("/", " / ") for s in STEPS[:-1]]
    assert {s.state for s in data.steps} == {"done"}

    choice = json.loads((made.out / "round2/choice.json").read_text())

    assert data.rounds[0].choice is not None
    assert data.rounds[0].choice.space == f"L{choice['layer']}"
    assert data.rounds[0].choice.reason == choice["reason"]
    assert data.rounds[1].features == f"layer {choice['layer']} of round 1"

    for nr, round_ in enumerate(data.rounds, start=1):
        analysis = json.loads((made.out / f"round{nr}/analyze/analysis.json").read_text())

        assert {(q.space, q.pnmi) for q in round_.quality if q.num_clusters == 12} == {
            (s, v["units"]["12"]["pnmi"]) for s, v in analysis["spaces"].items() if s != "mfcc"
        }

        assert {c.metric for c in round_.curves} >= {"masked_accuracy", "masked_loss_bits"}

        report = json.loads((made.out / f"round{nr}/pretrain/report.json").read_text())

        assert {r.name: r.value for r in round_.results}["Masked accuracy"] == report["masked_accuracy"]

        (labels, *_) = round_.unit_summaries

        lines = (made.out / f"round{nr}/label/valid.{labels.name}").read_text().split()

        assert labels.counts == [lines.count(str(u)) for u in range(12)]

    assert len(data.examples) == 2

    for example in data.examples:
        assert [t.name for t in example.tracks] == ["Round 1", "Round 2"]
        assert example.phones

    assert [q.space for q in data.baseline.quality] == ["mfcc"]
    assert "cluster" in "".join(s.command for s in data.steps)

    html = (made.out / "report/index.html").read_text()

    # A run speaks of nine.
    assert "8 of 8 steps were timed: " in html
    assert "The last step, this report, is not among them." in html
    assert "Objective (α-weighted, with penalty), valid" in html


def test_a_second_run_does_nothing_and_a_deleted_result_is_the_same_again(made: Refinement, bridge: VerbBridge) -> None:
    bridge.places.clear()

    made.run()

    assert bridge.places == []

    before = (made.out / "round1/label/train.km12").read_text()

    (made.out / "round1/label/train.km12").unlink()

    text = made.run()

    assert line_of(text, "round1/label").endswith("round1/label/train.km12 is missing")
    assert (made.out / "round1/label/train.km12").read_text() == before
    assert bridge.places == ["round1/label", "."]


def test_options_that_no_verb_knows_are_named_before_anything_is_run(made: Refinement, bridge: VerbBridge) -> None:
    bridge.places.clear()

    config = json.loads(json.dumps(made.config))

    config["rounds"][1]["pretrain"] = {"config": {"regime": {"num_stepz": 5}}}
    config["rounds"][1]["units"]["config"]["num_cluster"] = 3

    text = Refinement(made.folder, config, out_name="other").run(code=2)

    assert "round2 / pretrain: " in text
    assert "'regime.num_stepz' is not a known configuration key. Did you mean 'regime.num_steps'" in text
    assert "round2 / cluster: " in text
    assert "'num_cluster'" in text
    assert "round1 /" not in text
    assert bridge.places == []
    assert not (made.folder / "other/round1").exists()


def test_a_plan_names_what_would_be_refused_before_the_first_step(
    made: Refinement, bridge: VerbBridge, tmp_path: Path
) -> None:
    """Layers and transcripts that are not there are found without the verbs, which open models and corpora later."""
    assert "The options of all 9 steps can be used. Nothing was run.\n" in (made.out / "logs/check.log").read_text()

    for name in ("train/a.wav", "train/b.wav", "valid/a.wav", "valid/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    config = json.loads(json.dumps(made.config))

    config["dataset"] = {"manifest_dir": str(write_manifests(tmp_path / "data", root=str(tmp_path)))}
    config["rounds"][0]["units"] = {"name": "hierarchy", "config": {"num_clusters": [8, 16]}}
    config["rounds"][0]["finetune"] = config["rounds"][1]["finetune"] = {"preset": "probe"}
    config["rounds"][1]["features"] = {"name": "hubert_layer", "layer": 99}

    bridge.places.clear()

    text = Refinement(tmp_path, config).run("--plan", code=2)

    assert "round1 / cluster: " in text
    assert "round2 / cluster: `rounds[1].features.layer` is 99, but the model of round1 has 2 layers" in text
    assert text.count("round1 / finetune: There are no transcripts of the split 'train' in ") == 1
    assert "The steps, in order:" not in text
    assert bridge.places == []
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_part_says_what_is_missing(made: Refinement, tmp_path: Path) -> None:
    shutil.copytree(made.out, tmp_path / "out")

    for step in ("analyze", "pretrain"):
        shutil.rmtree(tmp_path / "out/round2" / step)
        (tmp_path / f"out/state/round2-{step}.json").unlink()

    part = Refinement(tmp_path, made.config)

    part.run("--report")

    data = page(part)

    assert [(s.name, s.state) for s in data.steps[-2:]] == [
        ("round2 / pretrain", "missing"),
        ("round2 / analyze", "missing"),
    ]
    assert data.rounds[1].quality == data.rounds[1].curves == data.rounds[1].results == []
    assert "Its layers are not measured yet." in data.rounds[1].notes
    assert data.rounds[1].unit_summaries  # the labels are there
    assert data.rounds[0] == page(made).rounds[0]

    (tmp_path / "empty").mkdir()

    part.out_name = "empty"

    assert "holds no refinement" in part.run("--report", code=2)


def test_phone_times_and_items_that_do_not_fit_are_named_before_anything_is_run(
    made: Refinement, bridge: VerbBridge, tmp_path: Path
) -> None:
    corpus = Path(read_config(made)["dataset"]["manifest_dir"])

    times = (corpus / "valid.align.tsv").read_text().splitlines(keepends=True)

    (tmp_path / "times.tsv").write_text("".join(times[: len(times) // 2]))

    items = (corpus / "valid.triphone.item").read_text().splitlines(keepends=True)

    (tmp_path / "other.item").write_text(items[0] + "nobody 0.1 0.2 AA B C s1\n")

    dataset = {
        "manifest_dir": str(corpus),
        "alignment": {"path": str(tmp_path / "times.tsv")},
        "items": [str(tmp_path / "other.item")],
    }

    bridge.places.clear()

    text = Refinement(tmp_path, {**made.config, "dataset": dataset}).run(code=2)

    assert str(tmp_path / "times.tsv") in text
    assert "other.item" in text
    assert "nobody" in text
    assert bridge.places == []

    # What they say is looked at again when it changes.
    (tmp_path / "times.tsv").write_text("".join(times))
    (tmp_path / "other.item").write_text("".join(items))

    Refinement(tmp_path, {**made.config, "dataset": dataset}).run("--until", "round1/cluster")

    assert bridge.places == ["round1/cluster"]


def read_config(refinement: Refinement) -> dict[str, Any]:
    """The configuration of the corpus that training was told of."""
    from hubert_plugin.config_check import read_config_file

    return dict(read_config_file(refinement.out / "round1/pretrain/config.yaml").values)


@pytest.mark.slow
def test_torchrun_runs_real_steps_on_two_ranks(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, {k: v for k, v in CONFIG.items() if k != "command"})

    command = ["torchrun", "--nproc-per-node", "2", "--no-python", *refinement.args("--until", "round1/pretrain")]

    ended = subprocess.run(command, env=recipe_env(), capture_output=True, text=True, timeout=900)

    assert ended.returncode == 0, ended.stdout + ended.stderr

    # Both took part in the training: fairseq2 keeps a log of each rank.
    for rank in (0, 1):
        assert "Task finished" in (refinement.out / f"round1/pretrain/logs/rank_{rank}.log").read_text()

    assert refinement.record("round1/pretrain")["num_ranks"] == 2
    assert load_hubert(str(refinement.out / "round1/pretrain")).config.heads[0].size == 12


@pytest.mark.soak
def test_kills_of_real_steps_change_no_number(made: Refinement, tmp_path: Path) -> None:
    """Real processes, killed where training, labelling and clustering are under way."""
    import random
    import time

    rng = random.Random(3)

    refinement = Refinement(tmp_path, {k: v for k, v in CONFIG.items() if k != "command"})

    for _ in range(20):
        process = refinement.start()

        deadline = time.monotonic() + rng.uniform(5.0, 40.0)

        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)

        if process.poll() is not None:
            process.communicate()

            shutil.rmtree(refinement.out / rng.choice(STEPS[:-1]))

            continue

        process.kill()
        process.communicate()

    process = refinement.start()

    text, _ = process.communicate(timeout=1800)

    assert process.returncode == 0, text

    ours, theirs = page(refinement), page(made)

    for a, b in zip(ours.rounds, theirs.rounds, strict=True):
        assert a.quality == b.quality
        assert a.unit_summaries == b.unit_summaries
        assert a.results == b.results

    assert ours.baseline == theirs.baseline
    assert ours.examples == theirs.examples


def test_the_module_answers_for_itself() -> None:
    """Help needs neither torch nor a configuration."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hubert_plugin.recipes.hubert.iterate", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert ended.returncode == 0
    assert "--emit-slurm DIR" in ended.stdout
    assert "base_960h" in ended.stdout
    assert "| torch\n" not in ended.stderr
