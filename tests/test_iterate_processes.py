"""A refinement that is killed, stopped or started twice. Verbs are stood in for."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from refinement import STEPS, Refinement, is_alive, kill, reference, two_rounds, wait_for, write_manifests

from hubert_plugin.errors import OutputDirError
from hubert_plugin.refinement import lock


@pytest.fixture
def refinement(tmp_path: Path) -> Refinement:
    return Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(refinement: Refinement, tmp_path: Path) -> None:
    process = refinement.start(env={"FAKE_DELAY": "0.1"})

    wait_for(lambda: (refinement.out / "round1/pretrain/checkpoints/step_2").exists())

    kill(process)

    assert refinement.record("round1/pretrain")["status"] == "running"

    mark = refinement.out / "round1/pretrain/checkpoints/step_2/mark"
    mark.touch()

    text = refinement.run()

    assert "round1 / cluster: done\n" in text
    assert "round1 / pretrain: goes on, since it was interrupted" in text
    assert mark.exists() or not mark.parent.exists()
    assert refinement.record("round1/pretrain")["attempts"] == 2
    assert refinement.numbers() == reference(refinement, tmp_path / "reference")


def test_what_runs_ends_with_the_run_that_started_it(refinement: Refinement) -> None:
    process = refinement.start(env={"FAKE_DELAY": "30"})

    def child() -> int | None:
        for line in subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.splitlines()[1:]:
            pid, parent = map(int, line.split())

            if parent == process.pid:
                return pid

        return None

    wait_for(lambda: (refinement.out / "logs/round1-cluster.log").exists() and child() is not None)

    pid = child()

    assert pid is not None

    kill(process)

    wait_for(lambda: not is_alive(pid))


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(refinement: Refinement, tmp_path: Path) -> None:
    rng = random.Random(7)

    kills = 0

    while kills < 20:
        process = refinement.start(env={"FAKE_DELAY": "0.05"})

        time.sleep(rng.uniform(0.3, 2.5))

        if process.poll() is not None:  # it ended: something is taken from it, so that there is more to kill
            process.communicate()

            shutil.rmtree(refinement.out / rng.choice(STEPS[:-1]))

            continue

        kill(process)

        kills += 1

    refinement.run()

    assert refinement.numbers() == reference(refinement, tmp_path / "reference")


def test_two_runs_in_one_folder_are_refused_and_a_killed_one_is_none(refinement: Refinement) -> None:
    process = refinement.start(env={"FAKE_DELAY": "30"})

    wait_for(lambda: (refinement.out / "logs/round1-cluster.log").exists())

    text = refinement.run(code=2)

    assert f"The folder '{refinement.out}' is being worked on by" in text
    assert f"process {process.pid} on host '{os.uname().nodename}'" in text
    assert "two runs cannot share a folder" in text

    # Looking is allowed.
    assert "to do" in refinement.run("--plan")

    kill(process)

    refinement.run()


def test_a_step_that_outlives_its_run_keeps_the_folder_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not end it with the run."""
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)

    code = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from hubert_plugin.refinement.lock import lock_folder\n"
        "with lock_folder(Path(sys.argv[1], 'lock'), Path(sys.argv[1])) as fd:\n"
        "    step = subprocess.Popen(['sleep', '60'], pass_fds=(fd,), stdout=subprocess.DEVNULL)\n"
        "    print(step.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )

    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    assert run.stdout is not None

    step = int(run.stdout.readline())

    kill(run)

    try:
        expected = pytest.raises(OutputDirError, match=f"process {run.pid} .* has ended, but a step that it started")

        with expected, lock.lock_folder(tmp_path / "lock", tmp_path):
            pass
    finally:
        os.kill(step, signal.SIGKILL)

    monkeypatch.undo()

    with lock.lock_folder(tmp_path / "lock", tmp_path) as fd:
        assert fd is not None


def test_a_request_to_stop_is_passed_on_and_the_run_goes_on_later(refinement: Refinement, tmp_path: Path) -> None:
    process = refinement.start(env={"FAKE_DELAY": "0.3"})

    wait_for(lambda: (refinement.out / "round1/pretrain/checkpoints/step_1").exists())

    process.send_signal(signal.SIGUSR1)

    text, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert "round1 / pretrain: stopped as asked" in text
    assert not (refinement.out / "round1/pretrain/checkpoints/step_4").exists()
    assert refinement.record("round1/pretrain")["status"] == "running"

    refinement.run()

    assert refinement.numbers() == reference(refinement, tmp_path / "reference")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_run_that_is_ended_ends_what_it_started(refinement: Refinement, number: int, code: int) -> None:
    process = refinement.start(env={"FAKE_DELAY": "30"})

    wait_for(lambda: (refinement.out / "logs/round1-cluster.log").exists())
    wait_for(lambda: "round1/cluster" in (refinement.log.read_text() if refinement.log.exists() else ""))

    process.send_signal(number)

    if number == signal.SIGINT:  # on a terminal, all processes get it
        for line in subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.splitlines()[1:]:
            pid, parent = map(int, line.split())

            if parent == process.pid:
                os.kill(pid, signal.SIGINT)

    text, _ = process.communicate(timeout=60)

    assert process.returncode == code, text
    assert "Traceback (most recent call last)" not in text


def test_progress_of_steps_is_shown_on_a_terminal_and_the_log_is_plain(refinement: Refinement) -> None:
    import pty

    script = refinement.folder / "verb.sh"

    script.write_text(
        "#!/bin/sh\nif [ -t 1 ]; then printf '\\033[1m10 %%\\033[0m\\r50 %%\\r100 %%\\n'; fi\n"
        f'exec {" ".join(refinement.config["command"])} "$@"\n'
    )
    script.chmod(0o755)

    refinement.config["command"] = [str(script)]

    master, slave = pty.openpty()

    process = refinement.start("--until", "round1/cluster", stdout=slave, stderr=slave)

    os.close(slave)

    shown = b""

    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            break

        if not data:
            break

        shown += data

    process.wait()
    os.close(master)

    assert b"\x1b[1m10 %" in shown
    assert b"round1 / cluster: done in" in shown

    log = (refinement.out / "logs/round1-cluster.log").read_text()

    assert "\x1b" not in log
    assert "\n100 %\n" in log
