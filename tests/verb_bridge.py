"""Lets a refinement run real verbs quickly: its steps ask this process, whose server of commands forks for each.

A step is a small client, which sends its arguments over a socket, waits, and ends with the verb's output and exit code.
If the client is killed, so is the verb.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from processes import command_server

_CLIENT = """
import json, os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
names = [n for n in os.environ if n.startswith(("RANK", "WORLD_", "LOCAL_", "MASTER_"))]
env = {n: os.environ[n] for n in names}
sock.sendall((json.dumps({"args": sys.argv[2:], "cwd": os.getcwd(), "env": env}) + "\\n").encode())
answer = json.loads(sock.makefile().readline())
sys.stdout.write(answer["text"])
sys.exit(answer["code"] if answer["code"] >= 0 else 128 - answer["code"])
"""


class VerbBridge:
    """Listens as long as it is open; ``command`` is what a refinement's configuration takes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hubert-bridge-")

        place = Path(self._folder.name)

        (place / "client.py").write_text(_CLIENT)

        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(place / "socket"))
        self._socket.listen()

        self.command = [sys.executable, "-S", "-E", str(place / "client.py"), str(place / "socket")]

        self.places: list[str] = []
        """The output folders of the verbs that were run."""

        command_server()

        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

        self._socket.close()

        self._thread.join(10)

        self._folder.cleanup()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return

            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = json.loads(connection.makefile().readline())

        args = request["args"]

        if "--check" not in args:
            self.places.append(args[3])

        code = f"import os, sys\nos.chdir({request['cwd']!r})\nfrom hubert_plugin.cli import main\nmain({args!r})\n"

        run = command_server().start(code=code, env=request["env"])

        connection.setblocking(False)

        while run.poll() is None:
            with suppress(BlockingIOError):
                if connection.recv(1) == b"":  # the client was killed
                    os.kill(run.pid, signal.SIGKILL)

            threading.Event().wait(0.02)

        connection.setblocking(True)

        with suppress(OSError):
            connection.sendall((json.dumps({"code": run.poll(), "text": run.raw}) + "\n").encode())
