"""Tiny data for tests: a corpus that is written in milliseconds, labels, and a model that trains in milliseconds.

Everything is drawn from seeds, so two builds are equal byte by byte.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.data.batch import HubertBatch, collate
from hubert_plugin.data.labels import write_labels
from hubert_plugin.data.manifest import read_manifest, write_manifest
from hubert_plugin.data.masks import MaskConfig, sample_mask
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.registry import LabelSetSpec

NUM_UNITS = 8

CONV_LAYERS = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
"""The shape of every HuBERT's front-end, with few channels."""

TINY_MODEL: dict[str, Any] = {
    "model_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 64,
    "conv_layers": [list(layer) for layer in CONV_LAYERS],
    "pos_conv_kernel": 16,
    "pos_conv_groups": 4,
    "final_dim": 16,
}
"""``model.config_overrides`` of a recipe: two layers of dimension 32."""


def tiny_config(**overrides: Any) -> HubertConfig:
    """The configuration of :data:`TINY_MODEL`, without dropout unless ``overrides`` say so, with one head."""
    config = HubertConfig(
        **{**TINY_MODEL, "conv_layers": list(CONV_LAYERS)},
        dropout_p=0.0,
        attn_dropout_p=0.0,
        input_dropout_p=0.0,
        layer_drop_p=0.0,
        feature_grad_scale=1.0,
        heads=[HubertHeadConfig(size=NUM_UNITS)],
    )

    return replace(config, **overrides)


def speech_like(seconds: float, speaker: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise and tones that change every 200 ms; the pitch is the speaker's. *Shape:* (n,)."""
    num_samples = int(seconds * frames.SAMPLE_RATE)

    time = np.arange(num_samples) / frames.SAMPLE_RATE

    segment = (time / 0.2).astype(int)

    pitch = (100 + 20 * speaker) * rng.integers(1, 12, segment.max() + 1)[segment]

    level = rng.uniform(0.0, 0.3, segment.max() + 1)[segment]

    tone = np.sin(2 * np.pi * np.cumsum(pitch) / frames.SAMPLE_RATE)

    return (level * tone + 0.02 * rng.standard_normal(num_samples)).astype(np.float32)


def make_corpus(
    folder: Path,
    *,
    num_train: int = 24,
    num_valid: int = 4,
    seconds: tuple[float, float] = (1.0, 3.0),
    num_speakers: int = 3,
    seed: int = 0,
    label_sets: Mapping[str, int] | None = None,
) -> Path:
    """Write ``wav/``, ``train.tsv``, ``valid.tsv`` and labels into ``folder``.

    :param label_sets: The names and sizes of random labels at 50 Hz; ``None``: ``km`` with :data:`NUM_UNITS` units.
    """
    rng = np.random.default_rng(seed)

    for split, count in (("train", num_train), ("valid", num_valid)):
        rows = []

        for i in range(count):
            speaker = i % num_speakers

            waveform = speech_like(rng.uniform(*seconds), speaker, rng)

            ref = f"s{speaker}/{split}{i:02}.wav"

            path = folder / "wav" / ref

            path.parent.mkdir(parents=True, exist_ok=True)

            sf.write(path, waveform, frames.SAMPLE_RATE, subtype="FLOAT")

            rows.append((ref, waveform.size))

        write_manifest(folder / f"{split}.tsv", "wav", rows)

        for name, size in ({"km": NUM_UNITS} if label_sets is None else label_sets).items():
            make_labels(folder, split, name, size, seed=seed)

    return folder


def make_labels(
    folder: Path, split: str, name: str = "km", size: int = NUM_UNITS, *, rate: int = 50, seed: int = 0
) -> None:
    """Write random labels, held for three frames each, with their record."""
    manifest = read_manifest(folder, split)

    rng = np.random.default_rng([seed, size, rate])

    units = [
        np.repeat(rng.integers(0, size, n // 3 + 1), 3)[:n].astype(np.int32)
        for n in (frames.num_labels(s, rate) for s in manifest.sizes.tolist())
    ]

    write_labels(folder, split, LabelSetSpec(name, size, rate), units, manifest, {"made_by": "tests"})


def make_batch(
    lengths: Sequence[int],
    *,
    sizes: Sequence[int] = (NUM_UNITS,),
    seed: int = 0,
    mask: MaskConfig | None = None,
) -> HubertBatch:
    """A batch of random utterances of ``lengths`` samples; what is drawn for one does not depend on the others."""
    waveforms, labels, masks = [], [], []

    for idx, length in enumerate(lengths):
        rng = np.random.default_rng([seed, idx])

        num_frames = frames.num_frames(length)

        waveforms.append((0.1 * rng.standard_normal(length)).astype(np.float32))
        labels.append([rng.integers(0, size, num_frames).astype(np.int32) for size in sizes])
        masks.append(sample_mask(num_frames, mask or MaskConfig(), rng))

    return collate(waveforms, labels, masks, [f"utt{i}" for i in range(len(lengths))])


def pretrain_config(manifest_dir: Path, **sections: Any) -> dict[str, Any]:
    """The configuration of a small, exact run of ``pretrain``, for a YAML file; ``sections`` are merged into it."""
    config: dict[str, Any] = {
        "model": {"config_overrides": {**TINY_MODEL, "layer_drop_p": 0.3, "dropout_p": 0.1, "input_dropout_p": 0.1}},
        "dataset": {"manifest_dir": str(manifest_dir), "labels": ["km"]},
        "task": {
            "config": {
                "batching": {"batch_seconds": 6.0, "max_seconds": 2.5, "min_seconds": 0.5},
                "valid_batch_seconds": 12.0,
            }
        },
        "trainer": {"mixed_precision": {"mode": "off"}},
        "lr_scheduler": {"config": {"num_warmup_steps": 2}},
        "regime": {
            "num_steps": 12,
            "validate_every_n_steps": 4,
            "checkpoint_every_n_steps": 4,
            "publish_metrics_every_n_steps": 1,
        },
        "common": {"metric_recorders": {"tensorboard": {"enabled": False}}},
    }

    return merge(config, sections)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes``, section by section."""
    result = dict(base)

    for key, value in changes.items():
        old = result.get(key)

        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value

    return result


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a configuration file. JSON is YAML."""
    path.write_text(json.dumps(config, indent=2))

    return path


def recipe_env(**extra: str) -> dict[str, str]:
    """The environment of a command under test: one thread, so that sums have one order and cores are left to others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FAIRSEQ2_EXTENSION_TRACE": "1", **extra}


def run_command(*args: str, timeout: float = 300.0, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``fairseq2 ARGS`` in a new interpreter, as a user does (12 s of imports), and return what it answered."""
    kwargs.setdefault("env", recipe_env())

    return subprocess.run(
        [sys.executable, "-m", "hubert_plugin", *args], capture_output=True, text=True, timeout=timeout, **kwargs
    )


_SERVER = """
import json, os, resource, signal, sys
from importlib import import_module

from hubert_plugin.cli import main
import fairseq2.recipe.cli, fairseq2.recipe.composition, hubert_plugin.extension
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: tiny tensors gain nothing from more, and threads that wait take others' cores."""
    before = torch.get_num_threads()

    torch.set_num_threads(1)

    yield

    torch.set_num_threads(before)


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


def read_metrics(output_dir: Path, kind: str = "train") -> list[dict[str, Any]]:
    """Return the records of ``OUT/metrics/KIND.jsonl``."""
    path = output_dir / "metrics" / f"{kind}.jsonl"

    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load_weights(step_dir: Path) -> dict[str, torch.Tensor]:
    """Return the model parameters of a checkpoint of an unsharded run."""
    (file,) = (step_dir / "model").rglob("*.pt")

    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)

    return state
