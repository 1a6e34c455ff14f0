"""The embedded corpus: synthesised speech with exact phone times, made once and kept in the user's cache folder.

The folder of a corpus holds, for the splits ``train`` and ``valid``:

- ``{split}.tsv``: fairseq's manifest; the paths in it name the utterances everywhere else,
- ``{split}/<speaker>/*.flac``: the audio, 16 kHz, mono,
- ``{split}.align.tsv``, ``{split}.words.tsv``: utterance, start and end in seconds, and phone or word,
- ``{split}.wrd``, ``{split}.ltr``: the words and letters of each utterance, in the manifest's order,
- ``{split}.triphone.item``, ``{split}.phoneme.item``: what ABX tests compare,

and ``speakers.tsv`` and ``corpus.json``, which tells how the corpus was made. Validation speakers do not occur in
training. On one platform the corpus is a function of its options, whatever the number of processes; on others, the
sound may differ in its last bits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hubert_plugin.demo.cache import default_cache_dir, make_once
from hubert_plugin.demo.messages import Chunk, Utterance
from hubert_plugin.demo.phones import PHONES
from hubert_plugin.demo.pool import run_chunks
from hubert_plugin.demo.speakers import LEVELS, make_speakers
from hubert_plugin.demo.tables import SPLITS, count_audio_bytes, update_root, write_speakers, write_split
from hubert_plugin.errors import ConfigError, MissingDependencyError, StorageError, format_problems
from hubert_plugin.frames import seconds

MAKER_VERSION: Final = 2
"""To be raised with every change that makes another corpus from the same options: cached ones are then made anew."""

_FORMAT: Final = "hubert_demo_corpus"

_ENGINE_PACKAGE: Final = "espeakng_loader"


@dataclass(kw_only=True)
class DemoCorpusConfig:
    """The options of the embedded corpus."""

    train_minutes: float = 60.0
    """The length of the training split, in minutes of audio."""

    valid_minutes: float = 10.0
    """The length of the validation split, in minutes of audio. For a steady ABX error, 30."""

    num_speakers: int = 40
    """The number of speakers, held-out ones included."""

    num_valid_speakers: int | None = None
    """The number of speakers held out for validation. If ``None``, a tenth, but at least two of three or more."""

    level: str = "hard"
    """How much speakers and recordings vary: ``clean``, ``easy`` or ``hard`` (for MFCC units, like LibriSpeech)."""

    seed: int = 0
    """Of texts, speakers and recordings."""

    num_jobs: int | None = None
    """The number of worker processes; it does not change the corpus. If ``None``, the number of usable CPU cores."""

    cache_dir: Path | None = None
    """The folder to keep corpora in. If ``None``, ``fairseq2-hubert/demo`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""


def ensure_demo_corpus(config: DemoCorpusConfig, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """Return the folder of the corpus, making it first if it is not in the cache.

    Can be killed at any moment and called by several processes at once: a folder under the final name is complete. One
    that lost audio files since is made anew.

    :param progress: Called with the seconds of audio made and those to make while the corpus is being made.
    :raises ConfigError: An option cannot be used.
    :raises MissingDependencyError: The corpus is not in the cache and the synthesiser is not installed.
    :raises StorageError: The cache folder cannot be written.
    :raises HubertError: The synthesiser failed.
    """
    check_config(config)

    cache_dir = config.cache_dir

    try:
        cache_dir = Path(cache_dir or default_cache_dir()).expanduser().absolute()

        folder = cache_dir / corpus_name(config)

        if not _is_complete(folder):
            _require_engine()

            make_once(folder, lambda: _is_complete(folder), lambda staging: _make(config, staging, folder, progress))

        for split in SPLITS:
            update_root(folder, split)
    except (OSError, StorageError) as ex:
        where = f"'{cache_dir}'" if cache_dir else "the user's cache folder"

        reason = _reason(ex) if isinstance(ex, OSError) else str(ex)

        raise StorageError(
            f"The demo corpus cannot be kept in {where}: {reason}. Free space or name another folder with `cache_dir`, "
            "then run the same command again; what was half made is not used."
        ) from ex

    return folder


def check_config(config: DemoCorpusConfig) -> None:
    """Check the options.

    :raises ConfigError: Lists all that is wrong with them.
    """
    problems = []

    for name in ("train_minutes", "valid_minutes"):
        minutes = getattr(config, name)
        if not (math.isfinite(minutes) and minutes > 0):
            problems.append(f"`{name}` must be a positive number of minutes, but is {minutes} instead.")

    if config.num_speakers < 2:
        problems.append(
            "`num_speakers` must be at least 2, since one speaker at least is held out for validation, but is "
            f"{config.num_speakers} instead."
        )
    elif config.num_valid_speakers is not None and not 0 < config.num_valid_speakers < config.num_speakers:
        problems.append(
            f"`num_valid_speakers` must be at least 1 and less than `num_speakers` ({config.num_speakers}), but is "
            f"{config.num_valid_speakers} instead."
        )

    if config.level not in LEVELS:
        near = get_close_matches(str(config.level).lower(), LEVELS, n=1, cutoff=0.3)

        hint = f" Did you mean '{near[0]}'?" if near else ""

        problems.append(f"`level` must be one of {', '.join(LEVELS)}, but is '{config.level}' instead.{hint}")

    if config.num_jobs is not None and config.num_jobs < 1:
        problems.append(f"`num_jobs` must be at least 1, but is {config.num_jobs} instead.")

    if problems:
        raise ConfigError(format_problems("The demo corpus cannot be made with these options:", problems))


def corpus_name(config: DemoCorpusConfig) -> str:
    """Return the name of the corpus' folder. Corpora made from different options have different names."""
    digest = sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()[:10]

    return f"{config.level}-{config.train_minutes:g}min-seed{config.seed}-{digest}"


def num_valid_speakers(config: DemoCorpusConfig) -> int:
    """Return how many speakers are held out."""
    if config.num_valid_speakers is not None:
        return config.num_valid_speakers

    return min(max(2, round(config.num_speakers / 10)), config.num_speakers - 1)


def _identity(config: DemoCorpusConfig) -> dict[str, Any]:
    """Return all that the corpus depends on."""
    return {
        "maker_version": MAKER_VERSION,
        "level": config.level,
        "seed": int(config.seed),
        "train_minutes": float(config.train_minutes),
        "valid_minutes": float(config.valid_minutes),
        "num_speakers": int(config.num_speakers),
        "num_valid_speakers": num_valid_speakers(config),
    }


def _is_complete(folder: Path) -> bool:
    """Return whether ``folder`` is a corpus and none of its audio files is missing or cut."""
    try:
        info = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))

        return bool(info["format"] == _FORMAT) and all(
            count_audio_bytes(folder, split) == info["splits"][split]["num_bytes"] for split in SPLITS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _require_engine() -> None:
    # Only looked for: the library, under the GPL, is loaded in worker processes alone.
    if find_spec(_ENGINE_PACKAGE) is None:
        raise MissingDependencyError(
            "The embedded demo corpus needs the speech synthesiser of the package `espeakng-loader`, which is not "
            "installed. Install it with `pip install 'fairseq2-hubert[demo]'` (in a checkout: `pip install '.[demo]'`) "
            "or use audio of your own: make a manifest with `fairseq2 recipe hubert manifest` and name its folder with "
            "`dataset.manifest_dir=…`."
        )


def _make(config: DemoCorpusConfig, staging: Path, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    """Fill ``staging`` with the corpus whose final place is ``folder``."""
    num_valid = num_valid_speakers(config)

    speakers = dict(
        zip(
            SPLITS,
            make_speakers(config.seed, LEVELS[config.level], config.num_speakers - num_valid, num_valid),
            strict=True,
        )
    )

    minutes = {"train": config.train_minutes, "valid": config.valid_minutes}

    chunks = [
        Chunk(
            folder=str(staging),
            split=split,
            level=config.level,
            seed=config.seed,
            seconds=minutes[split] * 60 / len(speakers[split]),
            speaker=speaker,
        )
        for split in SPLITS
        for speaker in speakers[split]
    ]

    for split in SPLITS:
        (staging / split).mkdir()

    utterances: dict[str, list[Utterance]] = {split: [] for split in SPLITS}

    num_done, num_total = 0, round(sum(minutes.values()) * 60)

    def collect(utterance: Utterance) -> None:
        nonlocal num_done

        utterances[utterance.id.partition("/")[0]].append(utterance)

        num_done += utterance.num_samples

        if progress is not None:
            # Utterances are whole: a little more than asked for may be made.
            progress(min(int(seconds(num_done)), num_total), num_total)

    run_chunks(chunks, config.num_jobs or _num_usable_cores(), collect)

    for split in SPLITS:
        # Workers finish in any order.
        utterances[split].sort(key=lambda u: u.id)

        write_split(staging, folder, split, utterances[split])

    write_speakers(staging, speakers)

    info = {
        "format": _FORMAT,
        **_identity(config),
        "engine": f"eSpeak NG (espeakng-loader {_engine_version()})",
        "phones": PHONES,
        "splits": {
            split: {
                "num_speakers": len(speakers[split]),
                "num_utterances": len(utterances[split]),
                "num_samples": (num_samples := sum(u.num_samples for u in utterances[split])),
                "seconds": seconds(num_samples),
                "num_bytes": sum(u.num_bytes for u in utterances[split]),
            }
            for split in SPLITS
        },
    }

    (staging / "corpus.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")

    if progress is not None:
        progress(num_total, num_total)


def _num_usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _engine_version() -> str:
    try:
        return version(_ENGINE_PACKAGE.replace("_", "-"))
    except PackageNotFoundError:
        return "of unknown version"


def _reason(ex: OSError) -> str:
    reason = ex.strerror or str(ex)

    return f"{reason} ('{ex.filename}')" if ex.filename else reason
