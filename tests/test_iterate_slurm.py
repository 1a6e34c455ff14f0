"""Batch scripts for SLURM: they parse, and run the refinement where `sbatch` and `srun` are stood in for."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import recipe_env
from refinement import Refinement, two_rounds, write_manifests

STEPS = [*(f"round1/{name}" for name in ("layers", "cluster", "label", "pretrain", "analyze")), "report"]

# Runs a script at once, for each task of an array, and prints a job's number.
SBATCH = """#!/bin/bash
set -e
ARRAY=0-0
for ARG in "$@"; do
    case $ARG in --array=*) ARRAY=${ARG#--array=};; esac
done
SCRIPT=${@: -1}
echo "$*" >> "$SLURM_STUB_LOG"
for TASK in $(seq ${ARRAY%-*} ${ARRAY#*-}); do
    SLURM_ARRAY_TASK_ID=$TASK bash "$SCRIPT" >> "$SLURM_STUB_LOG.out" 2>&1
done
echo "$(wc -l < "$SLURM_STUB_LOG");cluster"
"""

# Runs its command once: what follows its options.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def refinement(tmp_path: Path) -> Refinement:
    """One round on the best layer of a model that is there."""
    model = tmp_path / "published/checkpoints/step_7/model/pp_00/weights.pt"
    model.parent.mkdir(parents=True)
    model.write_text("a model\n")

    config = two_rounds(write_manifests(tmp_path / "data"), model=str(tmp_path / "published"))

    features = {"name": "hubert_layer", "model": "published", "layer": "auto"}

    config["rounds"] = [{"features": features, "units": {"config": {"num_clusters": 20}}}]

    return Refinement(tmp_path / "with a space", config)


@pytest.fixture
def scripts(refinement: Refinement) -> Path:
    refinement.folder.mkdir()

    text = refinement.run("--emit-slurm", str(refinement.folder / "jobs"))

    folder = refinement.folder / "jobs"

    assert sorted(text.splitlines()) == sorted(map(str, folder.iterdir()))

    return folder


def test_scripts_are_sound_and_nothing_was_run(refinement: Refinement, scripts: Path) -> None:
    assert not refinement.out.exists()

    names = [p.name for p in scripts.iterdir() if p.suffix in (".sh", ".sbatch")]

    assert set(names) == {
        "settings.sh",
        "submit.sh",
        *(f"{s.replace('/', '-')}.sbatch" for s in STEPS),
        "round1-pretrain-torchrun.sbatch",
    }

    for name in names:
        checked = subprocess.run(["bash", "-n", str(scripts / name)], capture_output=True, text=True)

        assert checked.returncode == 0, checked.stderr
        assert not checked.stderr

        if name != "settings.sh":
            assert os.access(scripts / name, os.X_OK)

    submit = (scripts / "submit.sh").read_text()

    assert '--array="0-$((NUM_SHARDS - 1))" "$FOLDER/round1-label.sbatch"' in submit
    assert 'submit "${MANY[@]}" "$FOLDER/round1-pretrain.sbatch"' in submit
    assert 'submit "${ONE[@]}" "$FOLDER/round1-cluster.sbatch"' in submit

    assert "srun --kill-on-bad-exit=1" in (scripts / "round1-pretrain.sbatch").read_text()
    assert "torchrun --nnodes" in (scripts / "round1-pretrain-torchrun.sbatch").read_text()
    assert "--signal=USR1@300" in submit


def test_submitted_jobs_do_the_whole_refinement_one_after_another(
    refinement: Refinement, scripts: Path, tmp_path: Path
) -> None:
    stubs = tmp_path / "bin"
    stubs.mkdir()

    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)

    settings = scripts / "settings.sh"
    settings.write_text(
        settings.read_text()
        .replace("NUM_SHARDS=16", "NUM_SHARDS=2")
        .replace("SBATCH_OPTIONS=()", "SBATCH_OPTIONS=(--account=me)")
        # The command of the refinement itself; that of its steps is in the configuration.
        .replace("FAIRSEQ2=(", "FAIRSEQ2=(python -m hubert_plugin)\nUNUSED=(")
    )

    # What a user filled in stays.
    refinement.run("--emit-slurm", str(scripts))

    assert "NUM_SHARDS=2" in settings.read_text()

    log = tmp_path / "jobs.log"

    env = recipe_env(FAKE_LOG=str(refinement.log), SLURM_STUB_LOG=str(log), PATH=f"{stubs}:{os.environ['PATH']}")

    ended = subprocess.run([scripts / "submit.sh"], env=env, capture_output=True, text=True, timeout=300)

    out = Path(f"{log}.out").read_text() if Path(f"{log}.out").exists() else ""

    assert ended.returncode == 0, ended.stderr + out

    jobs = log.read_text().splitlines()

    assert len(jobs) == len(STEPS)
    assert all("--account=me" in job for job in jobs)
    assert "--dependency" not in jobs[0]
    assert [f"--dependency=afterok:{nr}" in job for nr, job in enumerate(jobs)][1:] == [True] * (len(jobs) - 1)

    entries = refinement.asked()

    labelling = [options for place, options, _ in entries if place == "round1/label"]

    # Two shards, and the refinement itself, which finds the labels there.
    assert [o[-2:] for o in labelling[:2]] == [["num_shards=2", "shard=0"], ["num_shards=2", "shard=1"]]
    assert len(labelling) == 3

    # The layer was chosen by the job before.
    layer = json.loads((refinement.out / "round1/choice.json").read_text())["layer"]

    assert f"features.config={{model: {tmp_path}/published, layer: {layer}}}" in labelling[0]
    assert labelling[0][-2 - len(labelling[2][1:]) : -2] == labelling[2][1:]

    assert [p for p, _, _ in entries if p.endswith("pretrain")] == ["round1/pretrain"]
    assert refinement.record("report")["status"] == "done"


# Sends SIGUSR1 when a training has its first checkpoint.
STOPPING_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" &
until [[ -d $CHECKPOINTS/step_1 ]]; do sleep 0.05; done
kill -USR1 $!
wait $!
"""

# As torchrun is: SIGUSR1 ends it, and what it has started goes on.
TORCHRUN = """#!/usr/bin/env python
import subprocess, sys

command = sys.argv[sys.argv.index("--no-python") + 1 :]
sys.exit(subprocess.Popen(command, start_new_session=True).wait())
"""

SCONTROL = """#!/bin/bash
echo "$*" >> "$SCONTROL_LOG"
echo localhost
"""


@dataclass
class Cluster:
    """What stands in for SLURM, and runs a script as a job."""

    folder: Path

    refinement: Refinement

    scripts: Path

    def stub(self, name: str, text: str) -> None:
        self.folder.mkdir(exist_ok=True)

        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def run(self, step: str, code: int = 0, **env: str) -> str:
        env = {
            "FAKE_LOG": str(self.refinement.log),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "CHECKPOINTS": str(self.refinement.out / "round1/pretrain/checkpoints"),
            "SCONTROL_LOG": str(self.folder / "scontrol.log"),
            "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "1",
            "SLURM_JOB_NODELIST": "localhost",
            **env,
        }

        script = self.scripts / f"{step.replace('/', '-')}.sbatch"

        ended = subprocess.run(["bash", script], env=recipe_env(**env), capture_output=True, text=True, timeout=120)

        assert ended.returncode == code, ended.stdout + ended.stderr

        return ended.stdout + ended.stderr

    def requeued(self) -> list[str]:
        log = self.folder / "scontrol.log"

        return [line for line in log.read_text().splitlines() if "requeue" in line] if log.exists() else []


@pytest.fixture
def cluster(refinement: Refinement, scripts: Path, tmp_path: Path) -> Cluster:
    settings = scripts / "settings.sh"
    settings.write_text(settings.read_text().replace("FAIRSEQ2=(", "FAIRSEQ2=(python -m hubert_plugin)\nUNUSED=("))

    made = Cluster(tmp_path / "bin", refinement, scripts)

    made.stub("srun", SRUN)
    made.stub("scontrol", SCONTROL)

    return made


def test_a_training_that_is_stopped_goes_on_in_its_own_job(cluster: Cluster) -> None:
    cluster.refinement.run("--until", "round1/label")

    cluster.stub("srun", STOPPING_SRUN)

    out = cluster.run("round1/pretrain", 75, FAKE_DELAY="0.3")

    assert "round1 / pretrain: stopped as asked" in out
    assert "round1 / pretrain is not done yet" in out
    assert cluster.requeued() == ["requeue 7"]

    # The next step's job does not take it up, and what waits for that does not begin.
    cluster.refinement.asked()

    assert "round1 / pretrain is not done yet" in cluster.run("round1/analyze", 75)
    assert cluster.refinement.asked() == []

    cluster.stub("srun", SRUN)

    cluster.run("round1/pretrain", SLURM_RESTART_COUNT="1")

    assert cluster.requeued() == ["requeue 7"]

    cluster.run("round1/analyze")

    assert cluster.refinement.record("round1/analyze")["status"] == "done"


def test_processes_of_torchrun_are_told_to_stop(cluster: Cluster) -> None:
    cluster.refinement.run("--until", "round1/label")

    cluster.stub("srun", STOPPING_SRUN)
    cluster.stub("torchrun", TORCHRUN)

    text = cluster.run("round1/pretrain-torchrun", 75, FAKE_DELAY="0.3")

    assert "round1 / pretrain: stopped as asked" in text
    assert cluster.requeued() == ["requeue 7"]

    cluster.stub("srun", SRUN)

    cluster.run("round1/pretrain-torchrun")

    assert cluster.refinement.record("round1/pretrain")["status"] == "done"


def test_a_training_is_not_put_back_without_end(cluster: Cluster) -> None:
    cluster.refinement.run("--until", "round1/label")

    cluster.stub("srun", STOPPING_SRUN)

    cluster.run("round1/pretrain", 75, FAKE_DELAY="0.3", SLURM_RESTART_COUNT="50")

    assert cluster.requeued() == []


def test_labels_of_another_making_are_cleared_before_the_array_begins(cluster: Cluster) -> None:
    refinement = cluster.refinement

    refinement.run("--until", "round1/pretrain")

    labels = refinement.out / "round1/label/train.km"

    before = labels.read_text()

    refinement.config["rounds"][0]["units"]["config"]["num_clusters"] = 30
    refinement.run("--emit-slurm", str(cluster.scripts))

    text = cluster.run("round1/cluster")

    assert "; the unit model changed\nround1 / label: is ready for its command\n" in text
    assert text.splitlines()[-1] == "All steps before round1/label are done."
    assert not labels.exists()

    for shard in "01":
        cluster.run("round1/label", SLURM_ARRAY_TASK_ID=shard)

    made = labels.stat().st_mtime_ns

    assert labels.read_text() != before

    # What the array made stays, whoever asks for it next.
    assert "round1 / label: goes on" in cluster.run("round1/cluster")
    assert labels.stat().st_mtime_ns == made

    cluster.run("round1/pretrain")

    assert refinement.record("round1/label")["status"] == "done"
    assert "round1 / label: done" in cluster.run("round1/cluster")
