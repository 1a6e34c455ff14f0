from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

# Before anything imports torch or fairseq2: a failing extension must fail the tests, not only warn, and two test runs
# side by side should not fight for the cores.
os.environ.setdefault("FAIRSEQ2_EXTENSION_TRACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(4, os.cpu_count() or 1))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hubert_plugin  # noqa: F401 - finds libsndfile, which fairseq2 asks for wherever a test imports it first

# Jobs that a shell starts in the background ignore SIGINT, and so would what the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_home() -> Iterator[Path]:
    """Keep the user's cache folder out of the tests; ``HUBERT_TEST_CACHE`` names one to keep between runs."""
    before = os.environ.get("XDG_CACHE_HOME")

    with tempfile.TemporaryDirectory(prefix="hubert-cache-", ignore_cleanup_errors=True) as folder:
        path = Path(os.environ.get("HUBERT_TEST_CACHE", folder))

        path.mkdir(parents=True, exist_ok=True)

        os.environ["XDG_CACHE_HOME"] = str(path)

        yield path

    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The reference data made by other projects' code."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


def _make_distribution(folder: Path, name: str, entry_points: Mapping[str, str], files: Mapping[str, str]) -> Path:
    """Lay out what an installed distribution looks like: its files, and the metadata that declares its recipes."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)

    points = "\n".join(f"{k} = {v}" for k, v in entry_points.items())

    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fairseq2.recipe]\n{points}\n")

    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)

    return folder


@pytest.fixture(scope="session")
def make_distribution() -> Callable[[Path, str, Mapping[str, str], Mapping[str, str]], Path]:
    """Makes a throw-away distribution: ``make_distribution(folder, name, entry_points, files)``."""
    return _make_distribution
