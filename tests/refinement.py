"""Refinements under test: a folder, a configuration, and the command run in a process of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from processes import recipe_env

from hubert_plugin.cli import main
from hubert_plugin.refinement.settings import merge

FAKE_VERBS = [sys.executable, "-S", "-E", str(Path(__file__).with_name("fake_verbs.py"))]

STEPS = [
    *(f"round{nr}/{verb}" for nr in (1, 2) for verb in ("cluster", "label", "pretrain", "analyze")),
    "report",
]
"""The steps of :func:`two_rounds`."""


def write_manifests(folder: Path, *, root: str = "/audio", names: Sequence[str] = ("a.wav", "b.wav")) -> Path:
    """Write manifests of audio that need not be there."""
    folder.mkdir(parents=True, exist_ok=True)

    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text(f"{root}\n" + "".join(f"{split}/{n}\t160000\n" for n in names))

    return folder


def two_rounds(manifest_dir: Path, **changes: Any) -> dict[str, Any]:
    """The configuration of two rounds of fake verbs."""
    config: dict[str, Any] = {
        "dataset": {"manifest_dir": str(manifest_dir)},
        "rounds": [
            {"units": {"name": "kmeans", "config": {"num_clusters": 100}}},
            {"units": {"name": "kmeans", "config": {"num_clusters": 50}}},
        ],
        "options": {"pretrain": {"regime": {"num_steps": 4}}},
        "command": FAKE_VERBS,
    }

    return merge(config, changes)


@dataclass
class Refinement:
    """A folder that is refined."""

    folder: Path

    config: dict[str, Any]

    env: dict[str, str] = field(default_factory=dict)

    out_name: str = "out"

    @property
    def out(self) -> Path:
        return self.folder / self.out_name

    @property
    def log(self) -> Path:
        """What the fake verbs were asked for."""
        return self.folder / "fake.log"

    def args(self, *args: str) -> list[str]:
        file = self.folder / "config.json"  # JSON is YAML

        file.write_text(json.dumps(self.config))

        return [
            *(sys.executable, "-m", "hubert_plugin", "recipe", "hubert", "iterate", str(self.out)),
            *("--config-file", str(file), *args),
        ]

    def start(self, *args: str, env: Mapping[str, str] | None = None, **kwargs: Any) -> subprocess.Popen[str]:
        kwargs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **kwargs}

        return subprocess.Popen(
            self.args(*args),
            env=recipe_env(FAKE_LOG=str(self.log), **self.env, **(env or {})),
            **kwargs,
        )

    def run(self, *args: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Run the command to its end, in this process, and return what it said. Steps have processes of their own."""
        values = {"OMP_NUM_THREADS": "1", "FAKE_LOG": str(self.log), **self.env, **(env or {})}

        argv, said = sys.argv, io.StringIO()

        with patch.dict(os.environ, values), redirect_stdout(said), redirect_stderr(said):
            try:
                found: object = main(self.args(*args)[3:])
            except SystemExit as ex:
                found = ex.code
            finally:
                sys.argv = argv

        assert (found or 0) == code, said.getvalue()

        return said.getvalue()

    def asked(self) -> list[tuple[str, list[str], dict[str, str]]]:
        """Return places, options and environments of the verbs that were run, and forget them; checks do not count."""
        return [e for e in self._logged() if "--check" not in e[1]]

    def checks(self) -> list[tuple[str, list[str]]]:
        """Return places and options of the checks that were run, and forget all that was run."""
        return [(place, options) for place, options, _ in self._logged() if "--check" in options]

    def _logged(self) -> list[tuple[str, list[str], dict[str, str]]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []

        self.log.unlink(missing_ok=True)

        return [tuple(json.loads(line)) for line in lines]

    def done(self) -> list[str]:
        """Return the steps that were run, and forget them."""
        return ["report" if place == "." else place for place, _, _ in self.asked()]

    def record(self, step: str) -> dict[str, Any]:
        return json.loads((self.out / f"state/{step.replace('/', '-')}.json").read_text())  # type: ignore[no-any-return]

    def numbers(self) -> dict[str, str]:
        """Return what the report of fake verbs holds: all that the steps left."""
        return json.loads((self.out / "report/report.json").read_text())  # type: ignore[no-any-return]


def kill(process: subprocess.Popen[str]) -> None:
    """Kill it as nothing can be caught, and wait."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def line_of(text: str, step: str) -> str:
    """Return the first line that was said of a step."""
    return next(line for line in text.splitlines() if line.startswith(f"{step.replace('/', ' / ')}: "))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False

    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout

    while not condition():
        assert time.monotonic() < deadline, "waited in vain"

        time.sleep(0.01)


def reference(refinement: Refinement, folder: Path) -> dict[str, str]:
    """What a run that nobody disturbs leaves."""
    folder.mkdir()

    other = Refinement(folder, refinement.config)

    other.run()

    return other.numbers()
