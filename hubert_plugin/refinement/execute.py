"""Runs a command in a process of its own: output to a log and, on a terminal, to the terminal, progress bars included.

A child does not outlive its parent: on Linux the system kills it (``PR_SET_PDEATHSIG``); elsewhere it keeps the
folder's lock until it ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final, final

from hubert_plugin.errors import ConfigError
from hubert_plugin.refinement.logs import clean_log, without_environment

_PR_SET_PDEATHSIG: Final = 1

_POLL: Final = 0.1

_GRACE: Final = 15.0
"""Seconds that a child has to end when it was asked to."""

_ANSI: Final = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>]")


class Terminated(BaseException):
    """SIGTERM came."""


@final
class Signals:
    """Signals that the run passes on to what it runs.

    SIGTERM ends both. SIGUSR1 is fairseq2's (and SLURM's) request to stop at the next good moment: a training writes a
    checkpoint first.
    """

    def __init__(self) -> None:
        self.stop_requested = False

        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number, handler in ((signal.SIGTERM, self._terminate), (getattr(signal, "SIGUSR1", None), self._stop)):
            if number is not None:
                self._before[number] = signal.signal(number, handler)

        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, child: subprocess.Popen[bytes] | None) -> None:
        """Say which process runs now."""
        self._child = child

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        raise Terminated()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True

        if self._child is not None and self._child.poll() is None:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)


def run_child(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    signals: Signals,
    on_terminal: bool,
    lock_fd: int | None = None,
    should_abort: Callable[[], bool] = lambda: False,
) -> int:
    """Run a command to its end and return its exit code; negative: the signal that killed it.

    :param log: Where its output is added; when it has ended, without the environment, which fairseq2 logs.
    :param on_terminal: Whether the output is also shown, as on a terminal.
    :param lock_fd: A file that the child keeps open as long as it runs.
    :param should_abort: Asked several times a second; true ends the child.
    :raises ConfigError: The command cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)

    # Of a run that was killed before it could.
    clean_log(log)

    try:
        with log.open("ab") as fp:
            fp.write(f"\n$ {' '.join(argv)}\n".encode("utf-8", "surrogateescape"))
            fp.flush()

            if on_terminal:
                return _run_on_terminal(argv, cwd, env, fp, signals, lock_fd, should_abort)

            child = _start(argv, cwd, env, fp.fileno(), lock_fd)

            return _wait(child, signals, should_abort, lambda: time.sleep(_POLL))
    finally:
        clean_log(log)


def _run_on_terminal(
    argv: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    log: IO[bytes],
    signals: Signals,
    lock_fd: int | None,
    should_abort: Callable[[], bool],
) -> int:
    import pty

    master, slave = pty.openpty()

    _copy_window_size(slave)

    try:
        child = _start(argv, cwd, env, slave, lock_fd)
    finally:
        os.close(slave)

    def forward(timeout: float = _POLL) -> bool:
        if not select.select([master], [], [], timeout)[0]:
            return False

        try:
            data = os.read(master, 1 << 16)
        except OSError:  # the child has closed its side
            time.sleep(timeout)

            return False

        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

        # A line that is drawn again and again, as progress bars are, is logged as it was last.
        log.write(re.sub(rb"[^\n]*\r(?!\n)", b"", _ANSI.sub(b"", data)).replace(b"\r\n", b"\n"))
        log.flush()

        return bool(data)

    try:
        code = _wait(child, signals, should_abort, forward)

        while forward(0.0):
            pass

        return code
    finally:
        os.close(master)


def _start(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: int, lock_fd: int | None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=() if lock_fd is None else (lock_fd,),
            preexec_fn=_die_with_parent(),
        )
    except OSError as ex:
        raise ConfigError(
            f"`command` cannot be started: it must begin with a program that is there and can be run, but begins with "
            f"'{argv[0]}' ({ex.strerror or ex}). Without `command`, steps are run by this Python."
        ) from ex


def _wait(
    child: subprocess.Popen[bytes], signals: Signals, should_abort: Callable[[], bool], pause: Callable[[], object]
) -> int:
    signals.watch(child)

    try:
        while (code := child.poll()) is None:
            if should_abort():
                end_child(child)

            pause()

        return code
    except KeyboardInterrupt:
        # The terminal told the child, too.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(_GRACE)

        end_child(child)

        raise
    except BaseException:
        end_child(child)

        raise
    finally:
        signals.watch(None)


def end_child(child: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it."""
    if child.poll() is not None:
        return

    child.terminate()

    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None

    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        if os.getppid() != parent:  # it died before this
            os._exit(1)

    return prepare


def _copy_window_size(slave: int) -> None:
    import fcntl
    import struct
    import termios

    try:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    except OSError:
        size = struct.pack("HHHH", 24, 120, 0, 0)

    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)


def tail(log: Path, num_lines: int = 25) -> list[str]:
    """Return the last lines of the last command in a log."""
    try:
        with log.open("rb") as fp:
            fp.seek(0, os.SEEK_END)
            fp.seek(max(0, fp.tell() - (1 << 16)))

            text = without_environment(fp.read()).decode("utf-8", "replace")
    except OSError:
        return []

    lines = [line.rstrip() for line in text.splitlines() if line.strip()]

    heads = [idx for idx, line in enumerate(lines) if line.startswith("$ ")]

    return lines[heads[-1] + 1 if heads else 0 :][-num_lines:]
