"""Nearest centroids in C: exactness whatever the features, and doing without where it cannot be had."""

from __future__ import annotations

import copy
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin import compiled
from hubert_plugin.compiled import CompileError, compile_library, find_compiler
from hubert_plugin.units import kernel, nearest
from hubert_plugin.units.kernel import (
    BYTE_SOURCE,
    SOURCE,
    ByteKernel,
    FloatKernel,
    NearestLibrary,
    load_nearest_library,
)
from hubert_plugin.units.nearest import NearestCentroid

Kernel = type[FloatKernel] | type[ByteKernel]

COMPILE = "import sys; from pathlib import Path; from hubert_plugin.compiled import compile_library as c; " \
    "c(Path(sys.argv[1]), folder=Path(sys.argv[2]))"  # fmt: skip
"""A program that compiles a source into a folder."""


def load(target: str = "native") -> NearestLibrary:
    if platform.machine() != "x86_64" or os.environ.get(compiled.SWITCH) == "0":
        pytest.skip("not for this processor, or switched off")

    try:
        find_compiler()
    except CompileError as ex:
        pytest.skip(str(ex))

    return NearestLibrary(compile_library(SOURCE, target=target), compile_library(BYTE_SOURCE, target=target))


def library_for(cls: Kernel) -> NearestLibrary:
    library = load()

    if cls is ByteKernel and library.nearest_bytes is None:
        pytest.skip("this processor does not multiply bytes")

    return library


def assign(k: FloatKernel | ByteKernel, x: np.ndarray) -> np.ndarray:
    out = np.full(len(x), -1, np.int64)

    k(x, out)

    return out


def exact_scores(x: np.ndarray, c: np.ndarray) -> np.ndarray:
    """In float64."""
    return 0.5 * np.square(c, dtype=np.float64).sum(axis=1) - x.astype(np.float64) @ c.T.astype(np.float64)


def problem(k: int, dim: int, n: int, seed: int, spread: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    scale = np.exp(spread * rng.standard_normal(dim))
    mean = offset * rng.standard_normal(dim)

    c, x = ((rng.standard_normal((m, dim)) * scale + mean).astype(np.float32) for m in (k, n))

    return c, x


PROBLEMS = (
    st.integers(1, 150),
    st.integers(1, 100),
    st.integers(0, 120),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 3.0]),
    st.sampled_from([0.0, 1.0, 30.0]),
)


@settings(max_examples=150, deadline=None)
@given(*PROBLEMS)
def test_bytes_find_what_exact_arithmetic_finds(
    k: int, dim: int, n: int, seed: int, spread: float, offset: float
) -> None:
    library = library_for(ByteKernel)

    c, x = problem(k, dim, n, seed, spread, offset)

    scores = exact_scores(x, c)

    units = assign(ByteKernel(library, c), x)

    # Not "nearly": only where float64 itself cannot tell two apart may they be mistaken for each other.
    lost = np.take_along_axis(scores, units[:, None], axis=1)[:, 0] - scores.min(axis=1)

    size = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(c.astype(np.float64), axis=1).max()

    assert (lost <= 1e-13 * (size + np.abs(scores).max(initial=0.0))).all()


@pytest.mark.parametrize("target", ["native", "haswell"])
@settings(max_examples=60, deadline=None)
@given(*PROBLEMS)
def test_float32_finds_the_nearest_but_for_its_rounding(
    target: str, k: int, dim: int, n: int, seed: int, spread: float, offset: float
) -> None:
    library = load(target)

    c, x = problem(k, dim, n, seed, spread, offset)

    scores = exact_scores(x, c)

    units = assign(FloatKernel(library, c), x)

    lost = np.take_along_axis(scores, units[:, None], axis=1)[:, 0] - scores.min(axis=1)

    # Two sums of D products, each off by half a digit of the largest.
    size = np.linalg.norm(x.astype(np.float64), axis=1) * np.linalg.norm(c.astype(np.float64), axis=1).max()

    assert (lost <= 2.0**-23 * (dim + 2) * (size + np.abs(scores).max(initial=0.0))).all()


def test_older_processors_have_no_bytes_and_fewer_lanes() -> None:
    library = load("haswell")

    assert (library.lanes, library.nearest_bytes) == (8, None)
    assert not library.bytes_pay(1000, 1000)


def test_features_that_repeat_each_other_do_no_harm() -> None:
    """Their rounding errors do not cancel each other, so that the bound has to hold for the worst."""
    library = library_for(ByteKernel)

    rng = np.random.default_rng(0)

    c, x = (np.tile(rng.standard_normal((m, 4)), 192).astype(np.float32) for m in (300, 4_000))

    # What rounding would decide: more than a few.
    step = np.abs(c).max() / 127

    rounded = np.round(x / step) @ np.round(c / step).T * step**2

    assert ((0.5 * np.square(c).sum(axis=1) - rounded).argmin(axis=1) != exact_scores(x, c).argmin(axis=1)).sum() > 20

    np.testing.assert_array_equal(assign(ByteKernel(library, c), x), exact_scores(x, c).argmin(axis=1))


def test_the_bound_holds_for_what_rounding_takes_from_frames() -> None:
    """Centroids that bytes hold exactly, and frames that lie half a step beside what they hold."""
    library = library_for(ByteKernel)

    rng = np.random.default_rng(0)

    for _ in range(20):
        half = rng.choice([-127.0, 127.0], (50, 17)).astype(np.float32)

        c = np.concatenate([half, -half])  # with a mean of 0

        x = (
            rng.integers(-60, 60, (500, 17)) + rng.choice([-1, 1], (500, 17)) * rng.uniform(0.4, 0.5, (500, 17))
        ).astype(np.float32)

        x[:, 0] = 127.0

        scores = exact_scores(x, c)

        lost = np.take_along_axis(scores, assign(ByteKernel(library, c), x)[:, None], axis=1)[:, 0] - scores.min(axis=1)

        assert (lost <= 1e-9).all()


@pytest.mark.parametrize("offset", [2.0**27, 2.0**30])
def test_offsets_that_frames_and_centroids_share_take_no_digits(offset: float) -> None:
    library = library_for(ByteKernel)

    rng = np.random.default_rng(0)

    c, x = (rng.integers(-50, 51, (m, 40)).astype(np.float32) for m in (100, 400))

    expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2)

    for values in (c, x):
        values[:, 0] = offset

    expected = np.square(x[:, None].astype(np.float64) - c).sum(axis=2)

    units = assign(ByteKernel(library, c), x)

    np.testing.assert_array_equal(units, expected.argmin(axis=1))


@pytest.mark.parametrize("scale", [1e-25, 1e-21, 1e-15, 1e-9, 1e9, 1e14])
def test_scales_do_not_matter(scale: float) -> None:
    c, x = problem(100, 39, 500, 0, 0.0, 0.0)

    c, x = c * np.float32(scale), x * np.float32(scale)

    # In float32, as far as its squares reach.
    if scale > 1e-20:
        units = NearestCentroid(c, precision="int8" if scale > 1e-12 else "auto")(torch.from_numpy(x)).numpy()

        np.testing.assert_array_equal(units, exact_scores(x, c).argmin(axis=1))
    elif load().nearest_bytes is not None:
        assert NearestCentroid(c, precision="int8").precision == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_frames_of_other_types_are_read_as_what_they_are_and_of_other_shapes_refused(precision: str) -> None:
    load()

    c, x = problem(100, 64, 300, 0, 0.0, 0.0)

    nearest_centroid = NearestCentroid(c, precision=precision)  # type: ignore[arg-type]

    expected = exact_scores(x, c).argmin(axis=1)

    for frames in (torch.from_numpy(x).double(), torch.from_numpy(x).requires_grad_(), torch.from_numpy(x).T.clone().T):
        np.testing.assert_array_equal(nearest_centroid(frames).numpy(), expected)

    np.testing.assert_array_equal(copy.deepcopy(nearest_centroid)(torch.from_numpy(x)).numpy(), expected)

    for shape in ((5, 32), (5, 65), (5, 640), (64,)):
        with pytest.raises(ValueError, match=r"must have the shape \(frames, 64\), but has"):
            nearest_centroid(torch.zeros(shape))


@pytest.mark.parametrize("cls", [FloatKernel, ByteKernel])
def test_of_equal_centroids_the_first_is_taken(cls: Kernel) -> None:
    library = library_for(cls)

    rng = np.random.default_rng(0)

    few = rng.standard_normal((7, 40), np.float32)

    # Each again and again, in all lanes and panels.
    c = few[rng.permutation(np.arange(210) % 7)]

    x = rng.standard_normal((100, 40), np.float32)

    units = assign(cls(library, c), x)

    first = {row.tobytes(): int(np.flatnonzero((c == row).all(axis=1))[0]) for row in few}

    assert [first[c[u].tobytes()] for u in units] == units.tolist()
    assert len(set(units.tolist())) > 3


@pytest.mark.parametrize("cls", [FloatKernel, ByteKernel])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e25, 1e-42, 0.0])
def test_features_that_no_one_should_have_give_some_unit_and_leave_others_alone(cls: Kernel, value: float) -> None:
    library = library_for(cls)

    c, x = problem(20, 40, 50, 0, 0.0, 1.0)

    before = assign(cls(library, c), x)

    x[7] = value
    x[23, 5] = value

    after = assign(cls(library, c), x)

    assert after.min() >= 0 and after.max() < 20

    # Even where no score is below another, only those of centroids that there are count: 20, of 24 with room.
    if cls is ByteKernel:
        assert 0 <= cls(library, c)(np.full((50, 40), value, np.float32), np.empty(50, np.int64)) <= 20 * 50

    others = np.delete(np.arange(50), [7, 23])

    np.testing.assert_array_equal(after[others], before[others])


@pytest.mark.parametrize("cls", [FloatKernel, ByteKernel])
def test_a_frame_has_its_unit_wherever_it_stands(cls: Kernel) -> None:
    k = cls(library_for(cls), problem(130, 39, 0, 0, 1.0, 1.0)[0])

    x = problem(0, 39, 1_000, 0, 1.0, 1.0)[1]

    whole = assign(k, x)

    for size in (1, 5, 6, 7, 15, 16, 17, 47, 48, 49, 63, 64, 65, 129, 333):
        np.testing.assert_array_equal(
            np.concatenate([assign(k, x[i : i + size]) for i in range(0, len(x), size)]), whole
        )

    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(lambda _: assign(k, x), range(8)):
            np.testing.assert_array_equal(part, whole)


def test_few_products_are_left_to_float32() -> None:
    library = library_for(ByteKernel)

    assert library.bytes_pay(500, 39) and library.bytes_pay(100, 768)
    assert not library.bytes_pay(25, 39) and not library.bytes_pay(10, 768)

    c = torch.randn(500, 39)

    assert NearestCentroid(c).precision == "int8"
    assert NearestCentroid(c, precision="fp32").precision == "fp32"
    assert NearestCentroid(c[:25]).precision == "fp32"


# Without.


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


@pytest.mark.parametrize("why", ["switched off", "no compiler", "a failing compiler", "another processor"])
def test_without_it_numpy_finds_the_same(why: str, anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if why == "switched off":
        anew.setenv("HUBERT_COMPILED", "0")
        expected = "HUBERT_COMPILED=0 is set"
    elif why == "no compiler":
        anew.setenv("PATH", str(tmp_path))
        anew.delenv("CC", raising=False)
        expected = r"no C compiler was found \(gcc, cc, clang\)"
    elif why == "a failing compiler":
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
    ("BYTE_SOURCE", "limit[v] = _mm512_fmadd_ps(", "limit[v] = _mm512_fnmadd_ps("),
])  # fmt: skip
def test_what_computes_wrongly_is_not_used(
    name: str, right: str, wrong: str, anew: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library_for(ByteKernel if name == "BYTE_SOURCE" else FloatKernel)

    text = getattr(kernel, name).read_text()

    assert text.count(right) == 1

    (tmp_path / "wrong.c").write_text(text.replace(right, wrong))

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
