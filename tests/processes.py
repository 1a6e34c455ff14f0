"""Processes under test: ``fairseq2`` commands, alone and as ranks, quickly started, killed, and waited for."""

from __future__ import annotations

import atexit
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any


def recipe_env(**extra: str) -> dict[str, str]:
    """The environment of a command under test: one thread, so that sums have one order and cores are left to others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FAIRSEQ2_EXTENSION_TRACE": "1", **extra}


def run_command(*args: str, timeout: float = 300.0, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``fairseq2 ARGS`` in a new interpreter, as a user does (seconds of imports), and return what it answered."""
    kwargs.setdefault("env", recipe_env())

    return subprocess.run(
        [sys.executable, "-m", "hubert_plugin", *args], capture_output=True, text=True, timeout=timeout, **kwargs
    )


_SERVER = """
import json, os, resource, signal, sys
from importlib import import_module

from hubert_plugin.cli import main
from hubert_plugin.deferred import import_fairseq2
import_fairseq2()
import hubert_plugin.extension
import s3fs  # fairseq2 imports it when a command starts, for 0.7 s

for verb in ("pretrain", "cluster", "label"):
    import_module(f"hubert_plugin.recipes.hubert.{verb}.recipe")

def serve(request):
    fd = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for target in (1, 2):
        os.dup2(fd, target)
    os.environ.update(request["env"])
    sys.path[:0] = request["path"]
    if request["max_file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["max_file_bytes"],) * 2)
    if request["code"] is not None:
        exec(request["code"], {"__name__": "__code__"})
        return 0
    return main(request["args"])

print(json.dumps("ready"), flush=True)

for line in sys.stdin:
    request = json.loads(line)
    if "poll" in request:
        pid, status = os.waitpid(request["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        try:
            code = serve(request)
        except SystemExit as ex:
            code = ex.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    print(json.dumps(pid), flush=True)
"""


class Run:
    """A command that was started; what it writes goes to ``log``."""

    def __init__(self, server: CommandServer, pid: int, log: Path) -> None:
        self._server, self.pid, self.log = server, pid, log
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal), ``None`` while it runs."""
        if self._code is None:
            self._code = self._server.ask({"poll": self.pid})

        return self._code

    def wait(self, timeout: float = 120.0) -> int:
        """Return the exit code; a command that does not end is killed, and fails the test."""
        wait_until(lambda: self.poll() is not None, timeout, self)

        assert self._code is not None

        return self._code

    def kill(self) -> None:
        """Kill it as nothing can be caught: no clean-up, no goodbye."""
        os.kill(self.pid, signal.SIGKILL)

        self.wait()

    @property
    def raw(self) -> str:
        return self.log.read_text()

    @property
    def text(self) -> str:
        """What it wrote, with all white space made single spaces: long lines are wrapped."""
        return " ".join(self.raw.split())


class CommandServer:
    """Runs many ``fairseq2`` commands for the price of one start.

    Importing fairseq2 takes 12 s. One interpreter does it, and forks for every command, which then goes through the
    whole command line in a process of its own, with its own output, limits and environment.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=recipe_env(),
        )

        self._runs: list[Run] = []

        self._folder = tempfile.TemporaryDirectory(prefix="hubert-commands-")

        assert self._receive() == "ready"

        atexit.register(self.close)

    def ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None

        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

        return self._receive()

    def _receive(self) -> Any:
        assert self._process.stdout is not None

        line = self._process.stdout.readline()

        assert line, "the server of commands has ended"

        return json.loads(line)

    def start(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        path: Sequence[Path] = (),
        max_file_bytes: int | None = None,
        code: str | None = None,
    ) -> Run:
        """Start ``fairseq2 ARGS``.

        :param path: Folders that are put before ``sys.path``.
        :param max_file_bytes: No file can grow beyond this: what a full disk does, for one process.
        :param code: Python to run in place of a command.
        """
        log = Path(self._folder.name) / f"{len(self._runs)}.log"

        pid = self.ask(
            {
                "args": [str(a) for a in args],
                "env": dict(env or {}),
                "path": [str(p) for p in path],
                "log": str(log),
                "max_file_bytes": max_file_bytes,
                "code": code,
            }
        )

        run = Run(self, pid, log)

        self._runs.append(run)

        return run

    def run(self, *args: str | Path, timeout: float = 120.0, **kwargs: Any) -> Run:
        """Run ``fairseq2 ARGS`` to its end."""
        run = self.start(*args, **kwargs)

        run.wait(timeout)

        return run

    def pretrain(self, output_dir: Path, config: Path, *overrides: str, **kwargs: Any) -> Run:
        """Run ``fairseq2 recipe hubert pretrain`` to its end."""
        return self.run(*pretrain_args(output_dir, config, *overrides), **kwargs)

    def close(self) -> None:
        """End all that was started."""
        for run in self._runs:
            with suppress(ProcessLookupError, AssertionError, OSError):
                if run.poll() is None:
                    os.kill(run.pid, signal.SIGKILL)

        self._process.kill()
        self._process.wait()

        self._folder.cleanup()


@cache
def command_server() -> CommandServer:
    """The server of this test run, started when it is first needed."""
    return CommandServer()


def pretrain_args(output_dir: Path, config: Path, *overrides: str) -> list[str]:
    """The command line of a run of ``pretrain`` that logs plain lines."""
    args = ["recipe", "hubert", "pretrain", str(output_dir), "--config-file", str(config), "--no-rich"]

    return [*args, "--config", *overrides] if overrides else args


def wait_until(condition: Callable[[], bool], timeout: float = 120.0, run: Run | None = None) -> None:
    """Wait for ``condition``, polled every 10 ms; fails, with the log of ``run``, when ``timeout`` has passed."""
    deadline = time.monotonic() + timeout

    while not condition():
        if time.monotonic() > deadline:
            if run is not None:
                os.kill(run.pid, signal.SIGKILL)

            raise TimeoutError(f"waited {timeout} s in vain" + (f":\n{run.raw[-5000:]}" if run is not None else ""))

        time.sleep(0.01)


def free_port() -> int:
    """Return a port that is free, and not of those that the system hands to whoever connects to something."""
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))

            return port

    raise AssertionError("no port is free")


def start_ranks(
    args: Sequence[str | Path], world_size: int, *, ranks: Sequence[int] | None = None, port: int = 0
) -> list[Run]:
    """Start ``fairseq2 ARGS`` on ``world_size`` ranks (or only on ``ranks`` of them) as torchrun does: by environment
    variables."""
    port = port or free_port()

    return [
        command_server().start(
            *args,
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            },
        )
        for rank in (range(world_size) if ranks is None else ranks)
    ]


def start_pretrain_ranks(
    output_dir: Path, config: Path, world_size: int, *overrides: str, ranks: Sequence[int] | None = None, port: int = 0
) -> list[Run]:
    """Start ``fairseq2 recipe hubert pretrain`` on ranks (see :func:`start_ranks`)."""
    return start_ranks(pretrain_args(output_dir, config, *overrides), world_size, ranks=ranks, port=port)


def assert_answer(run: Run, phrases: Sequence[str]) -> None:
    """Check that a command was refused with all of ``phrases``, and without a stack trace."""
    for phrase in phrases:
        assert phrase in run.text, run.raw[-3000:]

    assert "Traceback" not in run.raw, run.raw[-3000:]
    assert run.poll() == 2, run.raw[-3000:]


def wait_for_all(runs: Sequence[Run]) -> None:
    """Wait until all have ended well; the first that has not fails the test with its log, as torchrun would."""
    waiting = list(runs)

    def has_ended() -> bool:
        for run in list(waiting):
            if (code := run.poll()) is not None:
                assert code == 0, f"exit code {code}:\n{run.raw[-5000:]}"

                waiting.remove(run)

        return not waiting

    wait_until(has_ended, run=runs[0])
