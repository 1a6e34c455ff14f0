"""The embedded corpus, made by real worker processes: tens of seconds of speech, in a second or two."""

from __future__ import annotations

import json
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_plugin.demo import (
    PHONES,
    SILENCE,
    DemoCorpusConfig,
    cache,
    corpus,
    ensure_demo_corpus,
    frame_phones,
    pool,
    read_alignment,
)
from hubert_plugin.demo.phones import UNKNOWN
from hubert_plugin.errors import ConfigError, HubertError, ManifestError, MissingDependencyError, StorageError
from hubert_plugin.frames import num_frames

# Looked for, not imported: one of the tests below shows that nothing imports it.
pytestmark = pytest.mark.skipif(find_spec("espeakng_loader") is None, reason="`pip install '.[demo]'`")

SPLITS = ("train", "valid")


def small_config(cache_dir: Path, **options: Any) -> DemoCorpusConfig:
    options = {"train_minutes": 0.25, "valid_minutes": 0.15, "num_speakers": 5, "num_jobs": 2, **options}

    return DemoCorpusConfig(cache_dir=cache_dir, **options)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpusConfig:
    return small_config(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def folder(config: DemoCorpusConfig, progress: list[tuple[int, int]]) -> Path:
    return ensure_demo_corpus(config, progress=lambda done, total: progress.append((done, total)))


def read_manifest(folder: Path, split: str) -> dict[str, int]:
    root, *lines = (folder / f"{split}.tsv").read_text().splitlines()

    assert root == str(folder)

    return {id_: int(n) for id_, n in (line.split("\t") for line in lines)}


def digests(folder: Path) -> dict[str, str]:
    """The content of every file; manifests without their first line, which names the folder."""
    contents = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    return {
        name: sha256(data.partition(b"\n")[2] if name in ("train.tsv", "valid.tsv") else data).hexdigest()
        for name, data in contents.items()
    }


def leftovers(cache_dir: Path) -> list[str]:
    return [p.name for p in cache_dir.iterdir() if p.name.endswith(".tmp")]


# Contents


def test_manifest_counts_are_the_files_lengths(folder: Path) -> None:
    for split in SPLITS:
        manifest = read_manifest(folder, split)

        assert manifest
        assert list(manifest) == sorted(manifest)
        assert {str(p.relative_to(folder)) for p in (folder / split).rglob("*.flac")} == set(manifest)

        for id_, num_samples in manifest.items():
            info = soundfile.info(folder / id_)

            assert (info.frames, info.samplerate, info.channels) == (num_samples, 16000, 1)


def test_speech_is_audible_not_clipped_and_never_digitally_silent(folder: Path) -> None:
    for id_ in read_manifest(folder, "train"):
        waveform, _ = soundfile.read(folder / id_)

        assert 0.25 < np.abs(waveform).max() < 0.85
        assert (np.abs(waveform[: len(waveform) // 400 * 400].reshape(-1, 400)).max(axis=1) > 0).all()


def test_alignments_cover_every_utterance_with_known_phones(folder: Path) -> None:
    for split in SPLITS:
        manifest, alignment = read_manifest(folder, split), read_alignment(folder, split)

        assert list(alignment) == list(manifest)

        for id_, segments in alignment.items():
            assert segments[0][0] == 0.0
            assert segments[-1][1] == manifest[id_] / 16000
            assert all(start < end for start, end, _ in segments)
            assert all(a[1] == b[0] for a, b in pairwise(segments))
            assert {phone for *_, phone in segments} <= set(PHONES) - {UNKNOWN}

            # Whole samples, exactly.
            assert all(start == round(start * 16000) / 16000 for start, _, _ in segments)


def test_phones_sound_louder_than_the_silence_around_them(folder: Path) -> None:
    vowels: list[float] = []
    pauses: list[float] = []

    for id_, segments in read_alignment(folder, "train").items():
        waveform, _ = soundfile.read(folder / id_)

        t = num_frames(len(waveform))

        rms = np.sqrt([np.mean(waveform[320 * i : 320 * i + 400] ** 2) for i in range(t)])

        phones = np.array(frame_phones(segments, t, 50))

        vowels += rms[np.isin(phones, ("AA", "AE", "AY", "EY", "OW"))].tolist()
        pauses += rms[phones == SILENCE].tolist()

    assert np.mean(vowels) > 2 * np.mean(pauses)


def test_words_lie_inside_the_utterance_and_spell_the_transcript(folder: Path) -> None:
    for split in SPLITS:
        spoken: dict[str, list[tuple[float, float, str]]] = {}

        for line in (folder / f"{split}.words.tsv").read_text().splitlines():
            id_, start, end, word = line.split("\t")
            spoken.setdefault(id_, []).append((float(start), float(end), word))

        manifest = read_manifest(folder, split)

        transcripts = (folder / f"{split}.wrd").read_text().splitlines()
        letters = (folder / f"{split}.ltr").read_text().splitlines()

        for (id_, num_samples), transcript, spelled in zip(manifest.items(), transcripts, letters, strict=True):
            words = spoken[id_]

            assert words[0][0] > 0
            assert words[-1][1] < num_samples / 16000
            assert all(start < end for start, end, _ in words)
            assert all(a[1] <= b[0] for a, b in pairwise(words))
            assert " ".join(w for *_, w in words).upper() == transcript
            assert spelled.replace(" ", "").replace("|", " ").rstrip() == transcript


def test_items_name_three_neighbouring_phones(folder: Path) -> None:
    alignment = read_alignment(folder, "valid")

    head, *triphones = (folder / "valid.triphone.item").read_text().splitlines()
    phoneme_head, *phonemes = (folder / "valid.phoneme.item").read_text().splitlines()

    assert head == phoneme_head == "#file onset offset #phone prev-phone next-phone speaker"
    assert len(triphones) == len(phonemes) > 50

    for triphone, phoneme in zip(triphones, phonemes, strict=True):
        id_, onset, offset, phone, before, after, speaker = triphone.split()

        i = [start for start, _, _ in alignment[id_]].index(float(onset))

        a, b, c = alignment[id_][i : i + 3]

        assert (a[2], b[2], c[2], c[1]) == (before, phone, after, float(offset))
        assert id_.split("/")[1] == speaker
        assert phoneme.split()[1:3] == [f"{b[0]:.7f}", f"{b[1]:.7f}"]


def test_held_out_speakers_and_their_voices_do_not_occur_in_training(folder: Path) -> None:
    head, *lines = (folder / "speakers.tsv").read_text().splitlines()

    speakers = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]

    by_split = {split: [s for s in speakers if s["split"] == split] for split in SPLITS}

    assert [len(by_split[split]) for split in SPLITS] == [3, 2]

    for key in ("id", "voice"):
        assert not {s[key] for s in by_split["train"]} & {s[key] for s in by_split["valid"]}

    for split in SPLITS:
        assert {id_.split("/")[1] for id_ in read_manifest(folder, split)} == {s["id"] for s in by_split[split]}


def test_corpus_json_tells_what_was_made(folder: Path, config: DemoCorpusConfig) -> None:
    info = json.loads((folder / "corpus.json").read_text())

    assert (info["level"], info["seed"], info["num_speakers"]) == (config.level, config.seed, config.num_speakers)

    for split in SPLITS:
        manifest = read_manifest(folder, split)

        assert info["splits"][split]["num_utterances"] == len(manifest)
        assert info["splits"][split]["seconds"] == sum(manifest.values()) / 16000


def test_splits_have_about_the_length_asked_for(tmp_path: Path) -> None:
    folder = ensure_demo_corpus(small_config(tmp_path, train_minutes=1.5, valid_minutes=0.1, num_speakers=3))

    total = sum(read_manifest(folder, "train").values()) / 16000

    assert 80 < total < 100


def test_progress_rises_to_the_total(folder: Path, progress: list[tuple[int, int]]) -> None:
    assert folder.exists()
    assert len(progress) > 3
    assert progress == sorted(progress)
    assert progress[-1] == (24, 24)
    assert {total for _, total in progress} == {24}


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


# The synthesiser stays out


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
def test_the_gpl_library_never_enters_this_process(folder: Path) -> None:
    assert folder.exists()
    assert "espeak" not in Path("/proc/self/maps").read_text()
    assert "espeakng_loader" not in sys.modules
    assert "hubert_plugin.demo.espeak" not in sys.modules


def test_neither_corpus_nor_workers_import_torch() -> None:
    code = (
        "import sys, hubert_plugin.demo, hubert_plugin.demo._worker; "
        "sys.exit(' '.join({'torch', 'fairseq2', 'scipy', 'sklearn'} & set(sys.modules)) or 0)"
    )

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path)}

    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr


def test_data_behind_a_long_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec("espeakng_loader")
    assert spec is not None and spec.origin is not None

    # eSpeak NG itself fails from about 140 characters on.
    long = tmp_path / ("x" * 100) / ("y" * 100)
    long.mkdir(parents=True)
    (long / "espeakng_loader").symlink_to(Path(spec.origin).parent, target_is_directory=True)

    monkeypatch.syspath_prepend(str(long))

    folder = ensure_demo_corpus(
        small_config(tmp_path / "cache", train_minutes=0.01, valid_minutes=0.01, num_speakers=2)
    )

    assert read_manifest(folder, "train")


# Bad input and bad luck


def test_without_the_synthesiser_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)

    with pytest.raises(MissingDependencyError) as info:
        ensure_demo_corpus(small_config(tmp_path))

    for part in ("pip install 'fairseq2-hubert[demo]'", "pip install '.[demo]'", "dataset.manifest_dir"):
        assert part in str(info.value)

    assert not list(tmp_path.iterdir())


def test_all_unusable_options_are_named_at_once(tmp_path: Path) -> None:
    config = small_config(
        tmp_path, train_minutes=-1.0, valid_minutes=float("nan"), num_speakers=1, level="harder", num_jobs=0
    )

    with pytest.raises(ConfigError) as info:
        ensure_demo_corpus(config)

    message = str(info.value)

    for name in ("train_minutes", "valid_minutes", "num_speakers", "level", "num_jobs"):
        assert f"`{name}` must be" in message

    assert "Did you mean 'hard'?" in message
    assert "clean, easy, hard" in message

    with pytest.raises(ConfigError, match=r"`num_valid_speakers` must be .* less than `num_speakers` \(5\)"):
        ensure_demo_corpus(small_config(tmp_path, num_valid_speakers=5))

    assert not list(tmp_path.iterdir())


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match=r"cannot be kept in .*file/cache.*Not a directory.*`cache_dir`"):
        ensure_demo_corpus(small_config(tmp_path / "file" / "cache"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
@pytest.mark.parametrize("limit", [10_000, 400_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, limit: int) -> None:
    """Files cannot grow over ``limit`` bytes: audio, written by a worker, or a table, written by the maker."""
    code = (
        "import resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from pathlib import Path; from hubert_plugin.demo import *; from hubert_plugin.errors import *; "
        "from hubert_plugin.demo import corpus; "
        "write = corpus.write_split; "
        # A table over the limit, though the corpus is small.
        "corpus.write_split = lambda staging, folder, split, u: write(staging, folder, split, list(u) * 500); "
        "config = DemoCorpusConfig(train_minutes=0.01, valid_minutes=0.01, num_speakers=2)\n"
        "config.cache_dir = Path(sys.argv[1])\n"
        "try: ensure_demo_corpus(config)\n"
        "except StorageError as ex: print(ex)"
    )

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path)}

    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, capture_output=True, text=True, check=True
    )

    assert "cannot be kept in" in result.stdout, result.stderr
    assert "File too large" in result.stdout
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9"),
        ("import sys; sys.exit('no luck today')", "ended with exit code 1. Its last words: no luck today"),
    ],
)
def test_a_failing_worker_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(pool, "worker_command", lambda: [sys.executable, "-c", code])

    with pytest.raises(HubertError, match=message):
        ensure_demo_corpus(small_config(tmp_path))

    assert not leftovers(tmp_path)


def test_an_error_of_the_caller_ends_the_workers(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    start = time.perf_counter()

    with pytest.raises(KeyboardInterrupt):
        ensure_demo_corpus(small_config(tmp_path, train_minutes=60), progress=interrupt)

    assert time.perf_counter() - start < 10
    assert not leftovers(tmp_path)


def test_read_alignment_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"train\.align\.tsv' cannot be read: No such file"):
        read_alignment(tmp_path, "train")

    (tmp_path / "train.align.tsv").write_text("a\t0.0\t1.0\tAA\na\tone\t2.0\tAA\n")

    with pytest.raises(ManifestError, match=r"line 2: expected utterance id"):
        read_alignment(tmp_path, "train")
