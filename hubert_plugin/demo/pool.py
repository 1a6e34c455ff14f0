"""Worker processes that make the chunks of a corpus, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import IO, Any, Final

from hubert_plugin.demo.messages import Chunk, Utterance
from hubert_plugin.errors import HubertError, MissingDependencyError, StorageError

# A plain child process instead of `multiprocessing`, whose children import the caller's main module and with it torch.
# It gets the caller's module path, so that it finds the package wherever the caller found it.
_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hubert_plugin.demo import _worker; _worker.main()"
)


def worker_command() -> list[str]:
    """Return the command line of a worker process."""
    return [sys.executable, "-c", _BOOTSTRAP, json.dumps([os.path.abspath(p) for p in sys.path])]


def run_chunks(chunks: Sequence[Chunk], num_jobs: int, on_utterance: Callable[[Utterance], None]) -> None:
    """Have ``chunks`` made by ``num_jobs`` processes.

    :param on_utterance: Called in the calling thread for every utterance, in no particular order.
    :raises StorageError: A worker could not write; the message is only the reason.
    :raises MissingDependencyError: The synthesiser could not be loaded.
    :raises HubertError: The synthesiser failed, or a worker ended unexpectedly.
    """
    todo: SimpleQueue[Chunk] = SimpleQueue()

    for chunk in chunks:
        todo.put(chunk)

    inbox: SimpleQueue[Utterance | BaseException | None] = SimpleQueue()

    foremen = [_Foreman(todo, inbox) for _ in range(min(num_jobs, len(chunks)))]

    num_active = len(foremen)

    try:
        for foreman in foremen:
            foreman.start()

        while num_active > 0:
            item = inbox.get()
            if item is None:
                num_active -= 1
            elif isinstance(item, Utterance):
                on_utterance(item)
            else:
                raise item
    finally:
        for foreman in foremen:
            foreman.stop()


class _Foreman(Thread):
    """Keeps one worker process busy and hands on what it says, in the end ``None``."""

    def __init__(self, todo: SimpleQueue[Chunk], inbox: SimpleQueue[Utterance | BaseException | None]) -> None:
        super().__init__(daemon=True)

        self._todo = todo
        self._inbox = inbox
        self._stopping = Event()
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        try:
            with tempfile.TemporaryFile() as log:
                while not self._stopping.is_set():
                    try:
                        chunk = self._todo.get_nowait()
                    except Empty:
                        break

                    self._make(chunk, log)

                self._dismiss()
        except BaseException as ex:
            self._inbox.put(ex)
        else:
            self._inbox.put(None)

    def stop(self) -> None:
        """End the worker, whatever it is doing, and this thread."""
        self._stopping.set()

        if self.ident is None:
            return

        # Again and again, since the thread may be just about to start a process.
        while self.is_alive():
            if (process := self._process) is not None:
                process.kill()

            self.join(0.05)

        self._dismiss()

    def _make(self, chunk: Chunk, log: IO[bytes]) -> None:
        process = self._process or self._employ(log)

        if process.stdin is None or process.stdout is None:
            raise AssertionError("The worker has no pipes.")

        # If the worker is gone, its reason is read below.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(chunk)) + "\n")
            process.stdin.flush()

        for line in process.stdout:
            message = json.loads(line)

            if "utterance" in message:
                self._inbox.put(Utterance.from_json(message["utterance"]))
            elif "error" in message:
                raise _told_error(message)
            else:
                if message["retire"]:
                    self._dismiss()

                return

        raise _untold_error(process.wait(), log)

    def _employ(self, log: IO[bytes]) -> subprocess.Popen[str]:
        # The arrays are short: threads of the linear algebra library would only cost their start.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

        try:
            self._process = subprocess.Popen(
                worker_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                encoding="utf-8",
                # Python looks for modules in the working directory first: not in that of the user.
                cwd=Path(sys.executable).parent,
            )
        except OSError as ex:
            raise HubertError(
                f"A worker process that synthesises the demo corpus cannot be started: {ex}. Run the same command "
                "again, if need be with fewer worker processes (`num_jobs`)."
            ) from ex

        return self._process

    def _dismiss(self) -> None:
        """Close the worker's input, at which it ends, and wait for that."""
        process, self._process = self._process, None

        if process is None:
            return

        with suppress(OSError, ValueError):
            process.communicate()


def _told_error(message: dict[str, Any]) -> HubertError:
    errors = {"storage": StorageError, "dependency": MissingDependencyError}

    return errors.get(message["kind"], HubertError)(message["error"])


def _untold_error(exit_code: int, log: IO[bytes]) -> HubertError:
    log.seek(0)

    lines = log.read().decode(errors="replace").strip().splitlines()

    how = f"was ended by signal {-exit_code}" if exit_code < 0 else f"ended with exit code {exit_code}"

    return HubertError(
        f"A worker process that synthesises the demo corpus {how}. Its last words: {lines[-1] if lines else 'none'}. "
        "Run the same command again, if need be with fewer worker processes (`num_jobs`)."
    )
