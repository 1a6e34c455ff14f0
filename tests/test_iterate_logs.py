"""What of the output of steps is kept and shown: all but the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from refinement import Refinement, two_rounds, write_manifests

from hubert_plugin.refinement.execute import Signals, run_child, tail
from hubert_plugin.refinement.logs import without_environment

PLAIN = (
    b"2026-11-21 17:35:04 INFO: fairseq2 - Software - Python: 3.11\n",
    b"2026-11-21 17:35:04 INFO: fairseq2 - Environment Variables - HOME=/, API_TOKEN=secret\n",
    b"2026-11-21 17:35:04 INFO: fairseq2 - Creating the root gang.\n",
)

OF_SEVERAL_LINES = (
    PLAIN[0],
    b"2026-11-21 17:35:04 INFO: fairseq2 - Environment Variables - KEY=first line\nAPI_TOKEN=secret\n\nlast, A=B\n",
    b"Traceback (most recent call last):\n",
)

WRAPPED = (
    b"[11/21/26 17:35:04] INFO     fairseq2 - Software - Python: 3.11\n",
    b"                    INFO     fairseq2 - Environment Variables - HOME=/,\n             API_TOKEN=secret, A=B\n",
    b"                    INFO     fairseq2 - Creating the root gang.\n",
)


@pytest.mark.parametrize("parts", [PLAIN, OF_SEVERAL_LINES, WRAPPED])
def test_the_environment_is_left_out_and_all_else_stays(parts: tuple[bytes, ...]) -> None:
    assert without_environment(b"".join(parts)) == parts[0] + parts[2]

    # Where nothing follows.
    assert without_environment(b"".join(parts[:2])) == parts[0]

    assert without_environment(parts[0] + parts[2]) == parts[0] + parts[2]


@pytest.mark.parametrize("on_terminal", [False, True])
def test_logs_of_steps_do_not_hold_the_environment(tmp_path: Path, on_terminal: bool) -> None:
    output, log = tmp_path / "output", tmp_path / "logs/step.log"

    output.write_bytes(b"".join(PLAIN))

    log.parent.mkdir()
    log.write_bytes(b"$ killed before\n" + b"".join(PLAIN[:2]))

    with Signals() as signals:
        code = run_child(["cat", str(output)], cwd=tmp_path, env={}, log=log, signals=signals, on_terminal=on_terminal)

    assert code == 0
    assert log.read_bytes() == b"$ killed before\n" + PLAIN[0] + f"\n$ cat {output}\n".encode() + PLAIN[0] + PLAIN[2]
    assert [line.encode() + b"\n" for line in tail(log)] == [PLAIN[0], PLAIN[2]]


def test_what_is_shown_of_a_failing_step_does_not_hold_the_environment(tmp_path: Path) -> None:
    refinement = Refinement(tmp_path, two_rounds(write_manifests(tmp_path / "data")))

    text = refinement.run(code=2, env={"FAKE_FAIL": "round1/label:2", "FAKE_PRINT": PLAIN[1].decode()})

    assert "  | fairseq2: error: 'a.wav' is not as it should be." in text
    assert "secret" not in text
    assert "secret" not in (refinement.out / "logs/round1-label.log").read_text()
