"""Several processes, one run: rank 0 decides, all start the same command, with a meeting point of their own.

Under torchrun or srun every rank runs ``iterate``. Ranks know each other by files in ``OUT/state/ranks``: each says
hello with a number of its own; what rank 0 decides names the numbers of all, so what an earlier run left is not taken
for this one's. Where there is one process, there are no files.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from hubert_plugin.errors import ConfigError, HubertError, StorageError
from hubert_plugin.files import write_text_atomic

_POLL: Final = 0.1

_PATIENCE: Final = 900.0
"""Seconds within which all ranks have to come."""


class RanksError(HubertError):
    """Ranks did not find each other."""


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int

    size: int

    env: Mapping[str, str]
    """What commands get beside the environment."""

    @staticmethod
    def of_env(env: Mapping[str, str] = os.environ) -> World:
        """Read what torchrun or srun say.

        :raises ConfigError: It is not understood.
        """
        names = ("RANK", "WORLD_SIZE")

        if all(n in env for n in names):
            pass
        elif any(n in env for n in names):
            raise ConfigError("RANK and WORLD_SIZE must be in the environment both, or neither.")
        elif "SLURM_PROCID" in env and "SLURM_STEP_ID" in env and "SLURM_NTASKS" in env:
            names = ("SLURM_PROCID", "SLURM_NTASKS")
        else:
            # In a batch script outside of srun, SLURM's variables speak of processes that nobody started.
            alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}

            return World(0, 1, alone if "SLURM_PROCID" in env else {})

        try:
            rank, size = (int(env[n]) for n in names)
        except ValueError:
            rank, size = -1, 0

        if not 0 <= rank < size:
            raise ConfigError(
                f"{names[0]} must be a number below {names[1]}, but they are '{env[names[0]]}' and '{env[names[1]]}'."
            )

        return World(rank, size, {})


@final
class Ranks:
    """The other processes."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder = folder
        self._world = world
        self._number = secrets.token_hex(8)
        self._members: dict[str, str] = {}
        self._nr = 0

    @property
    def alone(self) -> bool:
        return self._world.size == 1

    def gather(self) -> None:
        """On rank 0: wait until all have said hello.

        :raises RanksError: Some did not come.
        """
        if self.alone:
            return

        self._folder.mkdir(parents=True, exist_ok=True)

        # What earlier runs left. What others of this run are about to rename into place begins with a dot.
        for file in self._folder.glob("[!.]*"):
            with suppress(FileNotFoundError):
                file.unlink()

        deadline = time.monotonic() + _PATIENCE

        wanted = {str(r) for r in range(1, self._world.size)}

        while not wanted <= self._members.keys():
            for rank in wanted - self._members.keys():
                with suppress(OSError, ValueError):
                    self._members[rank] = json.loads(self._hello(rank).read_text())["number"]

            if time.monotonic() > deadline:
                missing = ", ".join(sorted(wanted - self._members.keys(), key=int))

                raise RanksError(
                    f"Of {self._world.size} processes, rank {missing} did not come to '{self._folder}' within "
                    f"{_PATIENCE / 60:.0f} minutes. All must be started at once (torchrun, srun), and see the same "
                    "files."
                )

            time.sleep(_POLL)

    def publish(self, decision: Mapping[str, Any]) -> None:
        """On rank 0: tell the others what is done next."""
        if self.alone:
            return

        self._nr += 1

        content = {"nr": self._nr, "members": self._members, **decision}

        write_text_atomic(self._folder / "decision.json", json.dumps(content) + "\n")

    def listen(self) -> dict[str, Any]:
        """On other ranks: wait for the next decision and return it."""
        self._folder.mkdir(parents=True, exist_ok=True)

        hello = self._hello(str(self._world.rank))

        while True:
            # Rank 0 tidies up when it begins; then it is said once more.
            if self._nr == 0 and not hello.exists():
                with suppress(OSError, StorageError):
                    write_text_atomic(hello, json.dumps({"number": self._number}) + "\n")

            decision = self._read()

            if decision is not None and decision["nr"] > self._nr:
                self._nr = decision["nr"]

                return decision

            time.sleep(_POLL)

    def is_over(self) -> bool:
        """On other ranks: whether rank 0 has given the present step up."""
        decision = self._read()

        return decision is not None and decision["nr"] > self._nr

    def finish(self, code: int) -> None:
        """On other ranks: say how the present step ended."""
        write_text_atomic(self._done(self._world.rank), json.dumps({"code": code, "number": self._number}) + "\n")

    def failed(self) -> int | None:
        """On rank 0: the exit code of a rank that failed in the present step, if there is one."""
        codes = [self._code(r) for r in range(1, self._world.size)]

        return next((c for c in codes if c), None)

    def wait(self) -> int:
        """On rank 0: wait for all to end the present step; return the first exit code that is not 0."""
        for rank in range(1, self._world.size):
            while (code := self._code(rank)) is None:
                time.sleep(_POLL)

            if code:
                return code

        return 0

    def _read(self) -> dict[str, Any] | None:
        try:
            decision = json.loads((self._folder / "decision.json").read_text())

            ours = decision["members"][str(self._world.rank)] == self._number
        except (OSError, ValueError, KeyError, TypeError):
            return None

        return decision if ours else None

    def _code(self, rank: int) -> int | None:
        try:
            content = json.loads(self._done(rank).read_text())

            return int(content["code"]) if content["number"] == self._members[str(rank)] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _hello(self, rank: str) -> Path:
        return self._folder / f"hello.{rank}.json"

    def _done(self, rank: int) -> Path:
        return self._folder / f"done.{self._nr}.{rank}.json"


def meeting_point() -> dict[str, str]:
    """On rank 0: return the address at which the processes of a step meet."""
    with socket.socket() as sock:
        sock.bind(("", 0))

        return {"host": socket.gethostname(), "port": str(sock.getsockname()[1])}


def child_env(world: World, point: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment of a step's process."""
    env = {**os.environ, **world.env}

    # torchrun's own store is met at by this run's processes; what a step leaves in it would confuse the next.
    env.pop("TORCHELASTIC_USE_AGENT_STORE", None)

    if point is not None:
        env["MASTER_PORT"] = point["port"]

        # torchrun says where rank 0 is; under SLURM rank 0 does.
        env.setdefault("MASTER_ADDR", point["host"])

    return env
