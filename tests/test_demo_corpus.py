"""The embedded corpus, made by real worker processes: tens of seconds of speech, in a second or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_demo import SPLITS, leftovers, read_manifest, small_config

from hubert_plugin.demo import (
    PHONES,
    SILENCE,
    DemoCorpusConfig,
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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpusConfig:
    return small_config(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def folder(config: DemoCorpusConfig, progress: list[tuple[int, int]]) -> Path:
    return ensure_demo_corpus(config, progress=lambda done, total: progress.append((done, total)))


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


# The synthesiser stays out


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
def test_the_gpl_library_never_enters_this_process(folder: Path) -> None:
    assert folder.exists()
    assert "espeak" not in Path("/proc/self/maps").read_text()
    assert "espeakng_loader" not in sys.modules
    assert "hubert_plugin.demo.espeak" not in sys.modules


SAY_ALL_TWICE = """
from hubert_plugin.demo.espeak import Espeak
from hubert_plugin.demo.speakers import _VARIANTS

def say(variant):
    with Espeak() as engine:
        return engine.say("a fox", f"en-us+{variant}", wpm=190, pitch=60, pitch_range=40, seed=5).pcm.tobytes()

print([variant for variant in _VARIANTS if say(variant) != say(variant)])
"""


def test_no_voice_depends_on_what_was_said_before() -> None:
    """Or else an utterance would depend on which worker makes it, and when."""
    run = subprocess.run([sys.executable, "-c", SAY_ALL_TWICE], capture_output=True, text=True, check=True)

    assert run.stdout == "[]\n"


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
