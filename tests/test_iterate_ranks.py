"""A refinement of several processes. Verbs are stood in for."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest
from processes import free_port, recipe_env
from refinement import STEPS, Refinement, reference, two_rounds, write_manifests

from hubert_plugin.refinement.ranks import Ranks, World


@pytest.fixture
def refinement(tmp_path: Path) -> Refinement:
    return Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))


def ranks_env(rank: int, port: int, size: int = 2) -> dict[str, str]:
    """What torchrun gives to a process."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def test_ranks_run_the_same_steps_and_meet_at_a_point_of_their_own(refinement: Refinement, tmp_path: Path) -> None:
    port = free_port()

    # Of a run that was killed.
    leftovers = refinement.out / "state/ranks"
    leftovers.mkdir(parents=True)
    (leftovers / "hello.1.json").write_text(json.dumps({"number": "old"}))
    (leftovers / "decision.json").write_text(json.dumps({"nr": 7, "members": {"1": "old"}, "action": "end", "code": 3}))

    processes = [refinement.start(env=ranks_env(rank, port)) for rank in (1, 0)]

    texts = [p.communicate(timeout=120)[0] for p in processes]

    assert [p.returncode for p in processes] == [0, 0], texts
    assert texts[0] == ""  # rank 1 says nothing

    entries = refinement.asked()

    for step in STEPS:
        env = {e["RANK"]: e for place, _, e in entries if place == ("." if step == "report" else step)}

        assert set(env) == {"0", "1"}, step
        assert env["0"]["MASTER_PORT"] == env["1"]["MASTER_PORT"] != str(port)
        assert env["0"]["MASTER_ADDR"] == "127.0.0.1"

    ports = [e["MASTER_PORT"] for place, _, e in entries if e["RANK"] == "0"]

    assert len(set(ports)) > len(ports) // 2  # a new one each time; chance may repeat one

    assert refinement.record("round1/label")["num_ranks"] == 2

    assert refinement.numbers() == reference(refinement, tmp_path / "reference")


def test_ranks_find_each_other_in_any_order_and_in_spite_of_what_was_left(tmp_path: Path) -> None:
    rng = random.Random(1)

    for trial in range(10):
        folder = tmp_path / str(trial)
        folder.mkdir()

        (folder / "hello.1.json").write_text('{"number": "old"}')
        (folder / "done.1.2.json").write_text('{"code": 1, "number": "old"}')
        (folder / "decision.json").write_text('{"nr": 3, "members": {"1": "old"}, "step": "old"}')

        heard: dict[int, list[str]] = {1: [], 2: [], 3: []}

        def follow(rank: int, delay: float, folder: Path = folder, heard: dict[int, list[str]] = heard) -> None:
            time.sleep(delay)

            ranks = Ranks(folder, World(rank, 4, {}))

            while not heard[rank] or heard[rank][-1] != "end":
                heard[rank].append(ranks.listen()["step"])

                ranks.finish(0)

        threads = [threading.Thread(target=follow, args=(rank, rng.uniform(0, 0.01))) for rank in heard]

        for thread in threads:
            thread.start()

        time.sleep(rng.uniform(0, 0.01))

        leader = Ranks(folder, World(0, 4, {}))

        leader.gather()

        for step in ("a", "b", "end"):
            leader.publish({"step": step})

            assert leader.wait() == 0

        for thread in threads:
            thread.join(30)

        assert heard == {rank: ["a", "b", "end"] for rank in heard}


def test_all_ranks_end_when_a_step_fails(refinement: Refinement) -> None:
    port = free_port()

    env = {"FAKE_FAIL": "round1/label:2"}

    processes = [refinement.start(env={**ranks_env(rank, port), **env}) for rank in (0, 1)]

    texts = [p.communicate(timeout=120)[0] for p in processes]

    assert [p.returncode for p in processes] == [2, 2]
    assert "round1 / label failed with exit code 2" in texts[0]


def test_ranks_under_slurm_are_known_by_its_variables(refinement: Refinement) -> None:
    processes = [
        refinement.start(
            "--until",
            "round1/cluster",
            env={"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2"},
        )
        for rank in (0, 1)
    ]

    texts = [p.communicate(timeout=120)[0] for p in processes]

    assert [p.returncode for p in processes] == [0, 0], texts

    envs = [e for place, _, e in refinement.asked() if place == "round1/cluster"]

    # The rest is known to fairseq2 by SLURM's variables.
    assert len(envs) == 2
    assert envs[0] == envs[1]
    assert set(envs[0]) == {"MASTER_ADDR", "MASTER_PORT"}


def test_a_batch_script_outside_of_srun_is_one_process(refinement: Refinement) -> None:
    refinement.run("--until", "round1/cluster", env={"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})

    assert refinement.asked()[0][2] == {"RANK": "0", "WORLD_SIZE": "1"}


def test_ranks_that_make_no_sense_are_refused(refinement: Refinement) -> None:
    assert "RANK must be a number below WORLD_SIZE" in refinement.run(code=2, env={"RANK": "2", "WORLD_SIZE": "2"})
    assert "both, or neither" in refinement.run(code=2, env={"RANK": "2"})


def test_a_training_that_others_began_is_not_taken_up_in_silence(refinement: Refinement) -> None:
    refinement.run("--until", "round1/pretrain")

    record = refinement.record("round1/pretrain")

    (refinement.out / "state/round1-pretrain.json").write_text(
        json.dumps({**record, "status": "running", "num_ranks": 32})
    )

    text = refinement.run("--until", "round1/pretrain")

    assert "round1 / pretrain: of 32 processes before, and of 1 now" in text


@pytest.mark.slow
def test_torchrun_starts_two_ranks(refinement: Refinement) -> None:
    command = ["torchrun", "--nproc-per-node", "2", "--no-python", *refinement.args()]

    ended = subprocess.run(
        command, env=recipe_env(FAKE_LOG=str(refinement.log)), capture_output=True, text=True, timeout=300
    )

    assert ended.returncode == 0, ended.stderr

    entries = refinement.asked()

    assert {e["RANK"] for place, _, e in entries if place == "round2/pretrain"} == {"0", "1"}
    assert refinement.record("report")["status"] == "done"
