"""What there is to transcribe: files, a folder or archive, a split of a manifest, or a recording on standard input."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.audio import AudioPolicy, probe_audio, read_waveform
from hubert_plugin.audio.source import resolve_ref
from hubert_plugin.audio.waveform import check_length
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.data.scan import OnError, ScanOptions, scan_audio
from hubert_plugin.errors import AudioError, ConfigError, format_problems
from hubert_plugin.frames import seconds

STDIN: Final = "-"

STDIN_ID: Final = "stdin"
"""The id of what came on standard input."""

_REMEDY: Final = "Mend or remove them, or set `on_bad_audio=skip` to give them an empty transcript:"


@dataclass(frozen=True)
class AudioInput:
    """Recordings to transcribe."""

    ids: Sequence[str]
    """What each is called: the path in the manifest or in the folder, or the path as given."""

    sizes: Sequence[int]
    """Samples at 16 kHz."""

    read: Callable[[int], NDArray[np.float32]]
    """Returns the waveform at a position. *Shape:* (n,)."""

    source: dict[str, Any]
    """Where they come from, for the record."""

    manifest: Manifest | None = None
    """The manifest, if it was one."""

    @property
    def seconds(self) -> float:
        """How long all recordings are together."""
        return seconds(int(sum(self.sizes)))


def open_input(
    names: Sequence[str],
    policy: AudioPolicy,
    *,
    keep_unreadable: bool = False,
    num_processes: int = 1,
    stdin: Callable[[], bytes] | None = None,
) -> AudioInput:
    """Find the recordings that ``names`` name.

    :param names: Audio files; or one folder or archive of audio; or one manifest (``FOLDER/SPLIT.tsv``); or ``-``.
    :param policy: What to do about other sample rates. Waveforms are not normalised, whatever it says.
    :param keep_unreadable: If true, files that are missing or whose headers cannot be read are taken in, with a length
        of zero or the manifest's: reading them tells what is wrong.
    :param num_processes: How many processes share them: standard input is for one alone.
    :param stdin: Gives what came on standard input.
    :raises ConfigError: There is nothing of that name, or these names do not go together.
    :raises ManifestError: The manifest or the folder cannot be used.
    :raises AudioError: Files cannot be used; names all of them.
    """
    policy = AudioPolicy(sample_rate=policy.sample_rate)

    if STDIN in names:
        if len(names) > 1:
            raise ConfigError(f"`input` must be '{STDIN}' alone, or files, but is {list(names)}.")

        if num_processes > 1:
            raise ConfigError(f"Standard input can be read by one process alone, but there are {num_processes}.")

        return _open_stdin(policy, stdin or sys.stdin.buffer.read)

    paths = [Path(name).expanduser() for name in names]

    if missing := [p for p in paths if not p.exists()]:
        raise ConfigError(
            format_problems(
                "`input` must be audio files, a folder or archive of audio, a manifest (`FOLDER/SPLIT.tsv`) or '-' for "
                "a wav on standard input. What is not there:",
                [f"'{p}'" for p in missing],
            )
        )

    if len(paths) == 1 and paths[0].suffix == ".tsv":
        return open_manifest(_read_manifest(paths[0], keep_unreadable), policy)

    if len(paths) == 1 and (paths[0].is_dir() or paths[0].suffix.lower() in (".zip", ".tar")):
        return _open_folder(paths[0], policy, keep_unreadable)

    if folders := [p for p in paths if p.is_dir()]:
        raise ConfigError(f"`input` must be one folder, or files, but names several and the folder '{folders[0]}'.")

    return _open_files(paths, policy, keep_unreadable)


def _read_manifest(path: Path, keep_unreadable: bool) -> Manifest:
    if keep_unreadable:
        manifest = read_manifest(path.parent, path.stem, check_files=False)

        # Files may be missing then, but not all that there are.
        if manifest.root.is_dir():
            return manifest

    return read_manifest(path.parent, path.stem)


def open_manifest(manifest: Manifest, policy: AudioPolicy) -> AudioInput:
    """Return the recordings of a split."""

    def read(idx: int) -> NDArray[np.float32]:
        return read_waveform(manifest.root, manifest.ids[idx], policy, expected_samples=int(manifest.sizes[idx]))

    return AudioInput(
        manifest.ids,
        manifest.sizes.tolist(),
        read,
        {"manifest": str(manifest.path.absolute()), "fingerprint": manifest.fingerprint},
        manifest,
    )


def _open_folder(folder: Path, policy: AudioPolicy, keep_unreadable: bool) -> AudioInput:
    on_error: OnError = "skip" if keep_unreadable else "raise"

    options = ScanOptions(policy=policy, on_error=on_error, short_is_error=True, any_name=True, remedy=_REMEDY)

    result = scan_audio(folder, options)

    assert result is not None  # nothing asked it to stop

    found = [(u.name, u.ref, u.num_samples) for u in result.utterances]

    found += [(ref, ref, 0) for ref, _ in result.skipped]

    found.sort()

    def read(idx: int) -> NDArray[np.float32]:
        return read_waveform(result.root, found[idx][1], policy)

    ids, sizes = [name for name, _, _ in found], [size for _, _, size in found]

    return AudioInput(ids, sizes, read, {"folder": str(folder.absolute()), "fingerprint": _fingerprint(ids, sizes)})


def _open_files(paths: Sequence[Path], policy: AudioPolicy, keep_unreadable: bool) -> AudioInput:
    sizes, problems = [], []

    for path in paths:
        try:
            num_samples = probe_audio(path.parent, path.name).num_samples

            check_length(resolve_ref(path.parent, path.name), num_samples)

            sizes.append(num_samples)
        except AudioError as ex:
            sizes.append(0)

            problems.append(str(ex))

    if problems and not keep_unreadable:
        raise AudioError(
            format_problems(f"{len(problems)} of {len(paths)} audio files cannot be used. {_REMEDY}", problems)
        )

    def read(idx: int) -> NDArray[np.float32]:
        return read_waveform(paths[idx].parent, paths[idx].name, policy)

    ids = [str(p) for p in paths]

    source = {"files": [str(p.absolute()) for p in paths[:100]], "fingerprint": _fingerprint(ids, sizes)}

    return AudioInput(ids, sizes, read, source)


def _open_stdin(policy: AudioPolicy, read_all: Callable[[], bytes]) -> AudioInput:
    data = read_all()

    if not data:
        raise AudioError("Nothing came on standard input: expected a wav file (`… --config input=- < FILE.wav`).")

    # libsndfile seeks, and errors name a file: it gets one.
    with tempfile.TemporaryDirectory(prefix="hubert-stdin-") as folder:
        path = Path(folder, f"{STDIN_ID}.wav")

        path.write_bytes(data)

        try:
            waveform = read_waveform(path.parent, path.name, policy)
        except AudioError as ex:
            reason = str(ex).replace(f"'{path}'", "It").replace(os.fspath(path), "it")

            raise AudioError(
                f"What came on standard input ({len(data):,} bytes) cannot be transcribed: expected a wav file, or "
                f"another that libsndfile reads. {reason}"
            ) from ex

    return AudioInput([STDIN_ID], [len(waveform)], lambda idx: waveform, {"stdin": sha256(data).hexdigest()[:16]})


def _fingerprint(ids: Sequence[str], sizes: Sequence[int]) -> str:
    """Return 16 hexadecimal digits that stand for the names and lengths of recordings."""
    lines = "".join(f"{i}\t{n}\n" for i, n in zip(ids, sizes, strict=True))

    return sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]
