"""The demo corpus in the cache: equal options give equal bytes; kills and races leave a whole corpus or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny_demo import SPLITS, leftovers, read_manifest, small_config

from hubert_plugin.demo import (
    DemoCorpusConfig,
    cache,
    corpus,
    ensure_demo_corpus,
    pool,
)

# Looked for, not imported: `test_demo_corpus.py` shows that nothing imports it.
pytestmark = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="`pip install '.[demo]'`")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpusConfig:
    return small_config(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def folder(config: DemoCorpusConfig) -> Path:
    return ensure_demo_corpus(config)


def digests(folder: Path) -> dict[str, str]:
    """The content of every file; manifests without their first line, which names the folder."""
    contents = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return {
        name: sha256(data.partition(b"\n")[2] if name in ("train.tsv", "valid.tsv") else data).hexdigest()
        for name, data in contents.items()
    }


# Determinism and the cache


@pytest.mark.parametrize("num_jobs", [1, 3])
def test_the_same_options_make_the_same_bytes_whatever_the_number_of_jobs(
    folder: Path, config: DemoCorpusConfig, tmp_path: Path, num_jobs: int
) -> None:
    other = ensure_demo_corpus(replace(config, cache_dir=tmp_path, num_jobs=num_jobs))

    assert other.name == folder.name
    assert digests(other) == digests(folder)


def test_a_library_that_stays_loaded_does_not_make_chunks_depend_on_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine's state cannot be reset, each chunk gets a process of its own."""
    patch = "from hubert_plugin.demo import espeak; espeak._is_loaded = lambda path: True; _worker.main()"

    monkeypatch.setattr(pool, "_BOOTSTRAP", pool._BOOTSTRAP.replace("_worker.main()", patch))

    options: dict[str, Any] = {"train_minutes": 0.15, "valid_minutes": 0.01, "num_speakers": 3}

    one, two = (ensure_demo_corpus(small_config(tmp_path / str(n), num_jobs=n, **options)) for n in (1, 2))

    assert digests(one) == digests(two)


def test_another_seed_or_level_makes_another_corpus(folder: Path, config: DemoCorpusConfig) -> None:
    for other_config in (replace(config, seed=1), replace(config, level="clean")):
        other = ensure_demo_corpus(other_config)

        assert other != folder

        flacs = [{d for name, d in digests(f).items() if name.endswith(".flac")} for f in (folder, other)]

        assert not flacs[0] & flacs[1]


def test_folders_of_different_options_have_different_names() -> None:
    base = DemoCorpusConfig()

    configs = [
        base,
        replace(base, seed=1),
        replace(base, level="easy"),
        replace(base, train_minutes=60.0000001),
        replace(base, valid_minutes=11),
        replace(base, num_speakers=41),
        replace(base, num_valid_speakers=5),
    ]

    assert len({corpus.corpus_name(c) for c in configs}) == len(configs)

    # These do not change the corpus.
    assert corpus.corpus_name(replace(base, num_jobs=7, cache_dir=Path("x"))) == corpus.corpus_name(base)
    assert corpus.corpus_name(replace(base, num_valid_speakers=4, train_minutes=60)) == corpus.corpus_name(base)


def test_a_cached_corpus_is_returned_at_once_and_needs_no_synthesiser(
    folder: Path, config: DemoCorpusConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)

    calls = []

    start = time.perf_counter()

    assert ensure_demo_corpus(config, progress=lambda *c: calls.append(c)) == folder
    assert time.perf_counter() - start < 1
    assert not calls


@pytest.mark.parametrize("damage", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_a_damaged_corpus_is_made_anew(
    folder: Path, config: DemoCorpusConfig, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    config = small_config(tmp_path, train_minutes=0.01, valid_minutes=0.01, num_speakers=2)

    folder = ensure_demo_corpus(config)

    before = digests(folder)

    damage(next(folder.rglob("*.flac")))

    assert ensure_demo_corpus(config) == folder
    assert digests(folder) == before
    assert not leftovers(tmp_path)


def test_a_cache_that_was_moved_stays_valid(tmp_path: Path) -> None:
    config = small_config(tmp_path / "old", train_minutes=0.01, valid_minutes=0.01, num_speakers=2)

    ensure_demo_corpus(config)

    (tmp_path / "old").rename(tmp_path / "new")

    calls: list[Any] = []

    folder = ensure_demo_corpus(replace(config, cache_dir=tmp_path / "new"), progress=lambda *c: calls.append(c))

    assert not calls
    assert all((folder / id_).exists() for split in SPLITS for id_ in read_manifest(folder, split))


def test_the_default_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert cache.default_cache_dir() == tmp_path / "fairseq2-hubert" / "demo"

    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)

        assert cache.default_cache_dir() == Path.home() / ".cache" / "fairseq2-hubert" / "demo"


# Kills and races


SCRIPT = """
import sys
from pathlib import Path
from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus

def progress(done, total):
    print(done, flush=True)

config = DemoCorpusConfig(
    train_minutes=float(sys.argv[2]), valid_minutes=0.1, num_speakers=4, num_jobs=2, cache_dir=Path(sys.argv[1])
)
print(ensure_demo_corpus(config, progress=progress), flush=True)
"""


def start_maker(cache_dir: Path, minutes: float) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path)}

    args = [sys.executable, "-c", SCRIPT, str(cache_dir), str(minutes)]

    return subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=env)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX only")
def test_killed_while_making_the_same_call_finishes_it(tmp_path: Path) -> None:
    maker = start_maker(tmp_path, 0.5)
    with maker:
        assert maker.stdout is not None
        maker.stdout.readline()
        maker.send_signal(signal.SIGKILL)

    assert maker.returncode == -signal.SIGKILL
    assert leftovers(tmp_path)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".")]

    config = small_config(tmp_path, train_minutes=0.5, valid_minutes=0.1, num_speakers=4)

    folder = ensure_demo_corpus(config)

    assert not leftovers(tmp_path)
    assert digests(folder) == digests(ensure_demo_corpus(replace(config, cache_dir=tmp_path / "untroubled")))


@pytest.mark.skipif(cache.fcntl is None, reason="POSIX only")
def test_leftovers_of_other_options_are_removed_unless_their_maker_lives(tmp_path: Path) -> None:
    dead, alive = (tmp_path / f".{name}.{cache._host()}.abc.tmp" for name in ("dead-1.5min", "alive"))
    elsewhere = tmp_path / ".alive.another-host.abc.tmp"

    for path in (dead, alive, elsewhere):
        (path / "train").mkdir(parents=True)

    with cache._lock(tmp_path / "alive", wait=True):
        ensure_demo_corpus(small_config(tmp_path, train_minutes=0.01, valid_minutes=0.01, num_speakers=2))

    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_two_processes_at_once_make_one_corpus(tmp_path: Path) -> None:
    makers = [start_maker(tmp_path, 0.1) for _ in range(2)]

    outputs = [maker.communicate()[0].splitlines() for maker in makers]

    assert [maker.returncode for maker in makers] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]

    # One made it, the other waited.
    assert sorted(len(lines) > 1 for lines in outputs) == [False, True]

    assert {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")} == {Path(outputs[0][-1]).name}
    assert not leftovers(tmp_path)


def test_without_file_locks_the_first_to_finish_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "fcntl", None)

    config = small_config(tmp_path, train_minutes=0.05, valid_minutes=0.01, num_speakers=2)

    with ThreadPoolExecutor(2) as executor:
        folders = [f.result() for f in [executor.submit(ensure_demo_corpus, config) for _ in range(2)]]

    assert folders[0] == folders[1]
    assert read_manifest(folders[0], "train")
    assert not leftovers(tmp_path)
