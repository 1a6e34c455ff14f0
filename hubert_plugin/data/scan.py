"""Finding the audio under a folder or in an archive, and measuring it by its headers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

from hubert_plugin.audio.archives import iter_archive_members
from hubert_plugin.audio.policy import AudioPolicy
from hubert_plugin.audio.source import ARCHIVE_EXTENSIONS, resolve_ref, split_ref
from hubert_plugin.audio.waveform import AudioInfo, check_length, check_sample_rate, probe_audio
from hubert_plugin.data.manifest import field_problem
from hubert_plugin.errors import AudioError, ManifestError, format_problems
from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE

AUDIO_EXTENSIONS: Final = (".aif", ".aiff", ".flac", ".mp3", ".ogg", ".opus", ".sph", ".wav")
"""File name extensions (in any case) that are looked for: what libsndfile reads."""

OnError: TypeAlias = Literal["raise", "skip"]

_CHUNK: Final = 64  # files that a thread takes at a time


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What to look for and what to keep."""

    policy: AudioPolicy = field(default_factory=AudioPolicy)

    extensions: tuple[str, ...] = AUDIO_EXTENSIONS

    min_seconds: float = 0.0
    """Shorter utterances are left out and counted; those below 400 samples (one frame) always are."""

    max_seconds: float | None = None
    """Longer utterances are left out and counted."""

    on_error: OnError = "raise"
    """What to do with files that cannot be used: name all of them and stop, or leave them out and list them."""

    short_is_error: bool = False
    """Whether files that cannot hold a frame are files that cannot be used, rather than left out and counted."""

    any_name: bool = False
    """Whether names may hold what a manifest cannot express (tabs and line breaks); otherwise such files are files that
    cannot be used."""

    remedy: str = "Mend or remove them, or set `on_error: skip` to leave them out:"
    """What the error tells to do about them."""

    num_workers: int = 8
    """The number of threads that read headers. They wait on the disk or network more than they compute."""


@dataclass(frozen=True)
class Candidate:
    """A file, or a member of an archive, that looks like audio."""

    name: str
    """Its path relative to the root; for a member of an archive ``archive.zip/path/inside``. This is what splits and
    speaker patterns look at, since it stays when an archive is packed anew."""

    ref: str
    """Its manifest entry."""


@dataclass(frozen=True)
class Utterance:
    """An utterance that is kept."""

    name: str

    ref: str

    num_samples: int
    """At 16 kHz."""


@dataclass(frozen=True)
class ScanResult:
    root: Path
    """The folder to which manifest entries are relative."""

    utterances: list[Utterance]
    """Sorted by name."""

    skipped: list[tuple[str, str]]
    """Manifest entry (or archive) and reason of each file that could not be used; empty under ``on_error: raise``."""

    num_too_short: int

    num_too_long: int

    sample_rates: dict[int, int]
    """How many of the kept utterances have which sample rate (Hz) in their file."""

    num_multichannel: int
    """How many of the kept utterances have more than one channel, to be averaged."""


def scan_audio(
    source: Path,
    options: ScanOptions,
    *,
    on_found: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ScanResult | None:
    """Find and measure the audio under ``source``, a folder (zip and tar archives in it are looked into) or an archive.

    The result depends on the files alone, not on the order in which the system lists them nor on the threads.

    :param on_found: Is told once how many files are to be measured.
    :param on_progress: Is told how many more files have been measured.
    :param should_stop: Is asked now and then; when it says yes, the scan ends and returns ``None``.
    :raises ManifestError: ``source`` does not exist, holds no audio, or nothing of it is left.
    :raises AudioError: Files cannot be used and ``options.on_error`` is ``raise``; names all of them.
    """
    root, candidates, problems = find_audio(source, options.extensions, any_name=options.any_name)

    return measure_audio(
        source,
        root,
        candidates,
        problems,
        options,
        on_found=on_found,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def measure_audio(
    source: Path,
    root: Path,
    candidates: Sequence[Candidate],
    problems: list[tuple[str, str]],
    options: ScanOptions,
    *,
    on_found: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ScanResult | None:
    """Measure ``candidates``, which were found in ``source``, and keep those that ``options`` want.

    The other parameters, and what is raised, are those of :func:`scan_audio`.

    :param root: The folder to which the candidates' manifest entries are relative.
    :param problems: What was found wrong before: manifest entry and reason.
    """
    if on_found is not None:
        on_found(len(candidates))

    num_files = len(candidates) + len(problems)

    problems = list(problems)

    utterances: list[Utterance] = []
    sample_rates: Counter[int] = Counter()
    num_too_short = num_too_long = num_multichannel = 0

    min_samples = max(RECEPTIVE_FIELD, options.min_seconds * SAMPLE_RATE)
    max_samples = float("inf") if options.max_seconds is None else options.max_seconds * SAMPLE_RATE

    for chunk, infos in _iter_probed(root, candidates, options):
        if should_stop():
            return None

        for candidate, info in zip(chunk, infos, strict=True):
            if isinstance(info, AudioError):
                problems.append((candidate.ref, str(info)))
            elif info.num_samples < min_samples:
                num_too_short += 1
            elif info.num_samples > max_samples:
                num_too_long += 1
            else:
                utterances.append(Utterance(candidate.name, candidate.ref, info.num_samples))
                sample_rates[info.sample_rate] += 1
                num_multichannel += info.num_channels > 1

        if on_progress is not None:
            on_progress(len(chunk))

    if problems and options.on_error == "raise":
        raise AudioError(
            format_problems(
                f"{len(problems)} of the audio files under '{source}' cannot be used. {options.remedy}",
                [message for _, message in problems],
            )
        )

    if not utterances:
        message = (
            f"Nothing is left of the {num_files} audio files under '{source}': {num_too_short} are too short, "
            f"{num_too_long} too long, {len(problems)} cannot be used."
        )

        raise ManifestError(format_problems(message, [m for _, m in problems]) if problems else message)

    return ScanResult(
        root, utterances, problems, num_too_short, num_too_long, dict(sorted(sample_rates.items())), num_multichannel
    )


def find_audio(
    source: Path, extensions: Sequence[str], *, any_name: bool = False
) -> tuple[Path, list[Candidate], list[tuple[str, str]]]:
    """List the audio under ``source`` by its names.

    Hidden files (among them macOS' ``._*``) are passed over; links are followed.

    :param any_name: Whether names may hold what a manifest cannot express.
    :returns: The root, the candidates sorted by name, and each file or archive that cannot be used with the reason.
    :raises ManifestError: ``source`` does not exist, holds nothing that looks like audio, or has a name that a manifest
        cannot express.
    """
    source = Path(os.path.abspath(source))

    candidates: list[Candidate] = []
    problems: list[tuple[str, str]] = []

    if source.is_dir():
        root, names = source, _iter_files(source)
    elif source.is_file() and source.suffix.lower() in ARCHIVE_EXTENSIONS:
        root, names = source.parent, iter([source.name])
    else:
        found = "another file" if source.exists() else "nothing there"

        raise ManifestError(f"'{source}' cannot be scanned: expected a folder or a zip or tar archive, found {found}.")

    if not any_name and (problem := field_problem(str(root))):
        raise ManifestError(f"The folder {problem}")

    for name in names:
        extension = os.path.splitext(name)[1].lower()

        # Members of an archive stand in a manifest without their names: that of the archive is what counts.
        if not any_name and extension in (*extensions, *ARCHIVE_EXTENSIONS) and field_problem(name):
            problems.append((name, f"The name of {field_problem(str(root / name))}"))
        elif extension in extensions:
            candidates.append(Candidate(name, name))
        elif extension in ARCHIVE_EXTENSIONS:
            try:
                candidates += _list_archive(root, name, extensions)
            except AudioError as ex:
                problems.append((name, str(ex)))

    if not candidates and not problems:
        raise ManifestError(
            f"No audio was found under '{source}'. Looked for files that end in {', '.join(extensions)}, also in "
            f"uncompressed archives ({', '.join(ARCHIVE_EXTENSIONS)})."
        )

    candidates.sort(key=lambda c: (c.name, c.ref))
    problems.sort()

    return root, candidates, problems


def count_common(first: ScanResult, second: ScanResult) -> int:
    """Return how many utterances of ``second`` are in ``first``, too, whatever the way that leads there."""
    # What is the same is as long; so links are followed for few of a large corpus.
    lengths = {u.num_samples for u in second.utterances}

    def places(scan: ScanResult) -> set[str]:
        return {_real_place(scan.root, u.ref) for u in scan.utterances if u.num_samples in lengths}

    return len(places(first) & places(second)) if lengths else 0


def _real_place(root: Path, ref: str) -> str:
    path = split_ref(ref)[0]

    return os.path.realpath(root / path) + ref[len(path) :]


def _iter_files(root: Path) -> Iterator[str]:
    """Yield the paths of all visible files under ``root``, relative to it, with forward slashes."""
    # Links may lead in a circle, so each folder is entered once.
    entered: set[tuple[int, int]] = set()

    def raise_error(ex: OSError) -> None:
        raise ManifestError(f"'{ex.filename}' cannot be listed: {ex.strerror}.") from ex

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=raise_error):
        stat = os.stat(folder)

        if (stat.st_dev, stat.st_ino) in entered:
            subfolders.clear()
            continue

        entered.add((stat.st_dev, stat.st_ino))

        # Which of two links to one folder is entered has to be the same every time.
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))

        prefix = os.path.relpath(folder, root)
        prefix = "" if prefix == os.curdir else f"{prefix}/"

        for name in files:
            if not name.startswith("."):
                yield prefix + name


def _list_archive(root: Path, name: str, extensions: Sequence[str]) -> list[Candidate]:
    folder = os.path.dirname(name)

    return [
        Candidate(f"{name}/{member}", os.path.join(folder, ref))
        for member, ref in iter_archive_members(root / name, extensions)
        if not os.path.basename(member).startswith(".")
    ]


def _iter_probed(
    root: Path, candidates: Sequence[Candidate], options: ScanOptions
) -> Iterator[tuple[Sequence[Candidate], list[AudioInfo | AudioError]]]:
    """Yield the candidates in order, in chunks, with what their headers say."""

    def probe(candidate: Candidate) -> AudioInfo | AudioError:
        try:
            info = probe_audio(root, candidate.ref)

            source = resolve_ref(root, candidate.ref)

            check_sample_rate(source, info.sample_rate, options.policy)

            if options.short_is_error:
                check_length(source, info.num_samples)
        except AudioError as ex:
            return ex

        return info

    def probe_chunk(chunk: Sequence[Candidate]) -> list[AudioInfo | AudioError]:
        return [probe(c) for c in chunk]

    chunks = iter([candidates[i : i + _CHUNK] for i in range(0, len(candidates), _CHUNK)])

    with ThreadPoolExecutor(options.num_workers) as pool:
        # Few chunks are in flight at a time, so that a stop does not have to wait for the whole corpus.
        pending = [(c, pool.submit(probe_chunk, c)) for c in islice(chunks, 2 * options.num_workers)]

        while pending:
            chunk, future = pending.pop(0)

            yield chunk, future.result()

            pending += [(c, pool.submit(probe_chunk, c)) for c in islice(chunks, 1)]
