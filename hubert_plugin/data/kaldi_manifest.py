"""Kaldi data folders (``wav.scp``, ``segments``, ``utt2spk``, ``text``) as audio to make manifests of.

Audio may be in files, in archives (``wav.ark:offset``), or come from commands (``sph2pipe … |``). Commands are refused
unless they are allowed explicitly; then each runs once, and what it writes is kept in a folder, for a manifest names
audio that can be read again at any time.

Segments become manifest entries ``recording.wav[start:stop]``. Their ends are counted in samples as kaldi's
``extract-segments`` does: seconds times rate, cut off to a whole number; an end up to half a second beyond the
recording is its end, and -1 is its end, too.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Final

from hubert_plugin.audio.archives import locate_in_ark
from hubert_plugin.audio.waveform import probe_audio
from hubert_plugin.data.kaldi_commands import keep_output
from hubert_plugin.data.kaldi_scp import KaldiFormatError, ScpEntry, read_lines, read_scp
from hubert_plugin.data.manifest import field_problem
from hubert_plugin.data.scan import Candidate, ScanOptions, ScanResult, measure_audio
from hubert_plugin.errors import AudioError, ManifestError, format_problems

MAX_OVERSHOOT_SECONDS: Final = 0.5
"""How far a segment may end beyond its recording (``extract-segments --max-overshoot``)."""

_MAX_SAMPLES: Final = 1 << 62
"""What times that no recording has are counted as."""


@dataclass(frozen=True)
class KaldiScan:
    """What a kaldi data folder holds, measured."""

    scan: ScanResult
    """The utterances; ``name`` is kaldi's utterance id."""

    speakers: Mapping[str, str] | None
    """The speaker of each utterance; ``None`` without ``utt2spk``."""

    texts: Mapping[str, str] | None
    """The transcript of each utterance; ``None`` without ``text``."""


def is_kaldi_folder(path: Path) -> bool:
    """Tell whether ``path`` is a kaldi data folder: it has a ``wav.scp``."""
    return (path / "wav.scp").is_file()


def scan_kaldi(
    source: Path,
    options: ScanOptions,
    *,
    allow_pipes: bool = False,
    audio_dir: Path | None = None,
    on_found: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> KaldiScan | None:
    """Find and measure the utterances of a kaldi data folder.

    The other parameters, and what is raised, are those of :func:`~hubert_plugin.data.scan.scan_audio`.

    :param allow_pipes: Whether commands in ``wav.scp`` are run.
    :param audio_dir: Where the output of commands is kept.
    :raises ManifestError: Files of the folder are malformed or do not belong together, or utterances are of the same
        samples: all problems of a file at once.
    """
    source = Path(os.path.abspath(source))

    problems: list[tuple[str, str]] = []

    def leave_out(recording: str, reason: str) -> None:
        problems.append((recording, reason))

    try:
        on_missing = leave_out if options.on_error == "skip" else None

        entries = read_scp(source / "wav.scp", allow_pipes=allow_pipes, on_missing=on_missing)

        known = {e.key for e in entries} | {recording for recording, _ in problems}

        _refuse_ranges(source / "wav.scp", entries)

        recordings = _locate_recordings(entries, options, audio_dir, problems)

        root = _common_root([path for path, _ in recordings.values()])

        refs = {key: os.path.relpath(path, root) + part for key, (path, part) in recordings.items()}

        if (source / "segments").is_file():
            refs, more = _read_segments(source / "segments", root, refs, known, options)
            problems += more

        _refuse_repeated(source, refs)

        speakers = _read_column(source / "utt2spk", refs)
        texts = _read_column(source / "text", refs, may_be_empty=True)
    except KaldiFormatError as ex:
        raise ManifestError(str(ex)) from ex

    candidates = sorted((Candidate(key, ref) for key, ref in refs.items()), key=lambda c: c.name)

    if not candidates and not problems:
        raise ManifestError(f"There are no utterances in '{source}'.")

    scan = measure_audio(
        source,
        root,
        candidates,
        problems,
        options,
        on_found=on_found,
        on_progress=on_progress,
        should_stop=should_stop,
    )

    return None if scan is None else KaldiScan(scan, speakers, texts)


def _refuse_ranges(path: Path, entries: Sequence[ScpEntry]) -> None:
    problems = [
        f"{path}:{e.line}: '{e.key}' must be a whole recording, but has the range {e.range_text}"
        for e in entries
        if e.ranges
    ]

    if problems:
        raise ManifestError(
            format_problems(f"'{path}' cannot be used. To cut recordings, list the parts in 'segments'.", problems)
        )


def _refuse_repeated(source: Path, refs: Mapping[str, str]) -> None:
    """Refuse utterances of the same samples: an entry names its audio once, and validation is not to be trained on."""
    by_ref: defaultdict[str, list[str]] = defaultdict(list)

    for key, ref in refs.items():
        by_ref[ref].append(key)

    repeated = [(ref, keys) for ref, keys in by_ref.items() if len(keys) > 1]

    problems = ["'" + "', '".join(keys[:-1]) + f"' and '{keys[-1]}' are '{ref}'" for ref, keys in repeated]

    if problems:
        raise ManifestError(
            format_problems(
                f"Utterances of '{source}' are of exactly the same samples. Keep one of each in the lists:", problems
            )
        )


def _locate_recordings(
    entries: Sequence[ScpEntry], options: ScanOptions, audio_dir: Path | None, problems: list[tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """Return path and byte range (``""``, ``:offset:length``) of each recording; add what is wrong to ``problems``."""
    ends = _ends_in_archives(entries)

    def locate(entry: ScpEntry) -> tuple[str, str]:
        if entry.is_command:
            if audio_dir is None:
                raise AudioError(f"The audio of '{entry.key}' comes from a command, for which there is no folder.")

            return str(keep_output(entry, audio_dir)), ""

        path = os.path.abspath(entry.path)

        if problem := field_problem(path):
            raise AudioError(f"'{entry.key}': the name of {problem}")

        if entry.offset is None:
            return path, ""

        if not path.lower().endswith(".ark"):
            raise AudioError(f"'{entry.place}' must be an archive whose name ends in '.ark', to be read in place.")

        offset, length = locate_in_ark(path, entry.offset, ends.get((entry.path, entry.offset)))

        return path, f":{offset}:{length}"

    def locate_or_tell(entry: ScpEntry) -> tuple[str, str] | AudioError:
        try:
            return locate(entry)
        except AudioError as ex:
            return ex
        except KaldiFormatError as ex:
            return AudioError(str(ex))

    with ThreadPoolExecutor(options.num_workers) as pool:
        located = list(pool.map(locate_or_tell, entries))

    recordings: dict[str, tuple[str, str]] = {}

    for entry, place in zip(entries, located, strict=True):
        if isinstance(place, AudioError):
            problems.append((entry.key, str(place)))
        else:
            recordings[entry.key] = place

    return recordings


def _ends_in_archives(entries: Sequence[ScpEntry]) -> dict[tuple[str, int | None], int]:
    """Return where the object after each one begins (with its key), in archives that hold several of the entries."""
    by_archive = defaultdict(list)

    for entry in entries:
        if entry.offset is not None:
            by_archive[entry.path].append((entry.offset, entry.key))

    ends: dict[tuple[str, int | None], int] = {}

    for path, objects in by_archive.items():
        objects.sort()

        for (offset, _), (next_offset, next_key) in pairwise(objects):
            ends[path, offset] = next_offset - len(next_key.encode("utf-8", "surrogateescape")) - 1

    return ends


def _common_root(paths: Sequence[str]) -> Path:
    return Path(os.path.commonpath([os.path.dirname(p) for p in paths])) if paths else Path("/")


def _read_segments(
    path: Path, root: Path, recordings: Mapping[str, str], known: set[str], options: ScanOptions
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the manifest entry of each segment, and what is wrong with recordings and segments."""
    segments: list[tuple[str, str, float, float, int]] = []
    malformed: list[str] = []
    first: dict[str, int] = {}

    for nr, key, rest in read_lines(path):
        parsed = _parse_segment(key, rest)

        if isinstance(parsed, str):
            malformed.append(f"{path}:{nr}: {parsed}")
            continue

        recording, start, end = parsed

        if (first_nr := first.setdefault(key, nr)) != nr:
            malformed.append(f"{path}:{nr}: '{key}' is also in line {first_nr}")
        elif recording not in known:
            malformed.append(f"{path}:{nr}: '{key}' is of the recording '{recording}', which wav.scp does not have")
        else:
            segments.append((key, recording, start, end, nr))

    if malformed:
        raise ManifestError(format_problems(f"'{path}' cannot be used.", malformed))

    used = sorted({s[1] for s in segments if s[1] in recordings})

    def probe(recording: str) -> tuple[int, int] | AudioError:
        try:
            info = probe_audio(root, recordings[recording])
        except AudioError as ex:
            return ex

        return info.num_file_samples, info.sample_rate

    with ThreadPoolExecutor(options.num_workers) as pool:
        infos = dict(zip(used, pool.map(probe, used), strict=True))

    refs: dict[str, str] = {}
    problems = [(r, str(i)) for r, i in infos.items() if isinstance(i, AudioError)]

    for key, recording, start, end, nr in segments:
        info = infos.get(recording)

        if info is None or isinstance(info, AudioError):
            continue

        num_samples, rate = info

        first_sample = _to_samples(start, rate)
        last_sample = num_samples if end == -1 else _to_samples(end, rate)

        if first_sample >= num_samples:
            wrong = f"starts at {start:g} s"
        elif last_sample > num_samples + MAX_OVERSHOOT_SECONDS * rate:
            wrong = f"ends at {end:g} s"
        else:
            refs[key] = f"{recordings[recording]}[{first_sample}:{min(last_sample, num_samples)}]"
            continue

        reason = f"{path}:{nr}: '{key}' {wrong}, but the recording '{recording}' ends at {num_samples / rate:.2f} s."

        problems.append((key, reason))

    return refs, problems


def _parse_segment(key: str, rest: str) -> tuple[str, float, float] | str:
    """Return recording, start and end (-1: that of the recording) of a line of ``segments``, or what is wrong."""
    fields = rest.split()

    if len(fields) != 3:
        return f"must be 'utterance recording start end' in seconds, but is '{key} {rest}'"

    times = []

    for name, text in zip(("start", "end"), fields[1:], strict=True):
        try:
            times.append(float(text))
        except ValueError:
            return f"the {name} of '{key}' must be a number of seconds, but is '{text}'"

        if not isfinite(times[-1]):
            return f"the {name} of '{key}' must be a finite number of seconds, but is '{text}'"

    start, end = times

    if start < 0:
        return f"'{key}' must start at 0 s or later, but starts at {start:g} s"

    if end < 0 and end != -1:
        return f"the end of '{key}' must be later than its start, or -1 (that of the recording), but is {end:g} s"

    if start == end:
        return f"'{key}' has no length: it starts and ends at {start:g} s"

    if start > end != -1:
        return f"'{key}' must end after it starts, but goes from {start:g} to {end:g} s"

    return fields[0], start, end


def _to_samples(seconds: float, rate: int) -> int:
    return int(min(seconds * rate, _MAX_SAMPLES))


def _read_column(path: Path, utterances: Mapping[str, str], *, may_be_empty: bool = False) -> dict[str, str] | None:
    """Return what a text table says of each utterance, ``None`` if there is no such file."""
    if not path.is_file():
        return None

    column: dict[str, str] = {}
    problems: list[str] = []

    for nr, key, value in read_lines(path):
        if key in column:
            problems.append(f"{path}:{nr}: '{key}' is there already")
        elif not value and not may_be_empty:
            problems.append(f"{path}:{nr}: '{key}' has no value")
        else:
            column[key] = value

    problems += [f"{path}: has no line for the utterance '{u}'" for u in utterances if u not in column]

    if problems:
        raise ManifestError(format_problems(f"'{path}' does not fit.", problems))

    return column
