"""What is compiled on first use: once, whole, for this processor, and doing without where it cannot be had."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_problems import exact_scores, load, problem

from hubert_plugin import compiled
from hubert_plugin.compiled import CompileError, compile_library
from hubert_plugin.units import kernel, nearest
from hubert_plugin.units.kernel import (
    SOURCE,
    load_nearest_library,
)
from hubert_plugin.units.nearest import NearestCentroid

COMPILE = "import sys; from pathlib import Path; from hubert_plugin.compiled import compile_library as c; " \
    "c(Path(sys.argv[1]), folder=Path(sys.argv[2]))"  # fmt: skip
"""A program that compiles a source into a folder."""


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """An empty cache folder, and nothing loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.SWITCH, raising=False)

    load_nearest_library.cache_clear()

    yield monkeypatch

    load_nearest_library.cache_clear()


def write_compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")

    path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return path


@pytest.mark.parametrize("why", ["switched off", "no compiler", "no command", "failing", "another processor"])
def test_without_it_numpy_finds_the_same(why: str, anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if why == "switched off":
        anew.setenv("HUBERT_COMPILED", "0")
        expected = "HUBERT_COMPILED=0 is set"
    elif why == "no compiler":
        anew.setenv("PATH", str(tmp_path))
        anew.delenv("CC", raising=False)
        expected = r"no C compiler was found \(gcc, cc, clang\)"
    elif why == "no command":
        anew.setenv("CC", "gcc '-O2")
        expected = r"CC=gcc '-O2 is not a command \(No closing quotation\)"
    elif why == "failing":
        anew.setenv("CC", str(write_compiler(tmp_path / "mycc", "echo 'mycc: fatal error: no backend' >&2; exit 4")))
        expected = "mycc' failed: mycc: fatal error: no backend"
    else:
        anew.setattr(compiled.platform, "machine", lambda: "riscv64")
        expected = "on riscv64"

    with pytest.raises(CompileError, match=expected):
        compile_library(SOURCE)

    assert load_nearest_library() is None

    c, x = problem(140, 150, 500, 0, 0.0, 1.0)

    units = NearestCentroid(c)(torch.from_numpy(x)).numpy()

    np.testing.assert_array_equal(units, exact_scores(x, c).argmin(axis=1))


@pytest.mark.parametrize("name, right, wrong", [
    ("SOURCE", "sums[g][p] -= feature", "sums[g][p] += feature"),
    ("BYTE_SOURCE", "limit[i] += 2.0f", "limit[i] -= 2.0f"),
])  # fmt: skip
def test_what_computes_wrongly_is_not_used(
    name: str, right: str, wrong: str, anew: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load()

    text = getattr(kernel, name).read_text()

    assert text.count(right) == 1

    for header in kernel.SOURCE.parent.glob("*.h"):
        shutil.copy(header, tmp_path)

    (tmp_path / "wrong.c").write_text(text.replace(right, wrong))

    compile_library(tmp_path / "wrong.c")  # it can be compiled

    anew.setattr(kernel, name, tmp_path / "wrong.c")

    load_nearest_library.cache_clear()

    assert load_nearest_library() is None


def test_it_is_compiled_once_and_anew_for_another_processor(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load()

    folder = tmp_path / "cache/fairseq2-hubert/compiled"

    written = {f: f.stat().st_mtime_ns for f in folder.iterdir()}

    assert len(written) == 2

    compile_library(SOURCE)

    assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == written

    anew.setattr(compiled, "_processor", lambda: "another")

    compile_library(SOURCE)

    assert len(list(folder.iterdir())) == 3


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    load()

    compile_library(SOURCE, folder=tmp_path / "first")

    # Elsewhere: what is loaded once is not read again from the same place.
    (name,) = (f.name for f in (tmp_path / "first").iterdir())

    file = tmp_path / "second" / name

    file.parent.mkdir(mode=0o700)

    whole = (tmp_path / "first" / name).read_bytes()

    # Half a library would be loaded, and end the process.
    for data in (b"half", whole[: len(whole) // 2], whole[:4096], whole[:-4096] + bytes(4096)):
        file.unlink(missing_ok=True)
        file.write_bytes(data)

        run = subprocess.run([sys.executable, "-c", COMPILE, str(SOURCE), str(file.parent)])

        assert run.returncode == 0
        assert len(file.read_bytes()) == len(whole)


def test_what_others_can_write_to_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load()

    aside: list[Path] = []

    original = compiled._compile_aside

    monkeypatch.setattr(compiled, "_compile_aside", lambda *args: (aside.append(args[1]), original(*args))[1])

    compile_library(SOURCE, folder=tmp_path / "mine")

    assert not aside

    (tmp_path / "mine").chmod(0o777)

    compile_library(SOURCE, folder=tmp_path / "mine")

    assert aside == [SOURCE]


def test_where_nothing_can_be_kept_it_is_compiled_for_this_process(tmp_path: Path) -> None:
    load()

    (tmp_path / "file").touch()

    assert compile_library(SOURCE, folder=tmp_path / "file" / "folder").panel() in (2, 4)


def test_a_kill_while_compiling_leaves_nothing_that_would_be_loaded(tmp_path: Path) -> None:
    load()

    slow = write_compiler(
        tmp_path / "slowcc", 'for last; do [ "$out" = next ] && out=$last; [ "$last" = -o ] && out=next; done\n'
        'echo half > "$out"; touch "$(dirname "$0")/begun"; sleep 60'
    )  # fmt: skip

    command = [sys.executable, "-c", COMPILE, str(SOURCE), str(tmp_path / "out")]

    process = subprocess.Popen(command, env={**os.environ, "CC": str(slow)}, start_new_session=True)

    while not (tmp_path / "begun").exists():
        assert process.poll() is None

        time.sleep(0.05)

    os.killpg(process.pid, signal.SIGKILL)

    process.wait()

    assert not list((tmp_path / "out").glob("*.so"))

    # Several at once, with a compiler that works.
    env = {k: v for k, v in os.environ.items() if k != "CC"}

    processes = [subprocess.Popen(command, env=env) for _ in range(3)]

    assert [p.wait() for p in processes] == [0, 0, 0]
    assert len(list((tmp_path / "out").glob("*.so"))) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "auto"])
def test_every_precision_is_right_without_it(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "load_nearest_library", lambda: None)

    for seed, (k, dim) in enumerate([(1, 1), (3, 2), (50, 39), (130, 128), (200, 160)]):
        c, x = problem(k, dim, 400, seed, 0.0, 1.0)

        units = NearestCentroid(c, precision=precision)(torch.from_numpy(x)).numpy()  # type: ignore[arg-type]

        np.testing.assert_array_equal(units, exact_scores(x, c).argmin(axis=1))
