"""Audio that commands in ``wav.scp`` write (``sph2pipe … |``): run once, and kept."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from hubert_plugin.audio.waveform import probe_audio
from hubert_plugin.data.kaldi_scp import ScpEntry, run_command
from hubert_plugin.data.shards import remove_leftovers
from hubert_plugin.errors import AudioError
from hubert_plugin.files import atomic_path

_ENDINGS: Final = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"NIST": ".sph", b"FORM": ".aiff"}


def keep_output(entry: ScpEntry, audio_dir: Path) -> Path:
    """Run the command of ``entry`` and keep what it writes, unless that was done before; return where it is.

    :raises AudioError: It writes no audio, or some that cannot be used.
    :raises KaldiFormatError: It fails.
    :raises StorageError: What it writes cannot be kept.
    """
    # Keys may hold slashes; two keys never get one name, since what is replaced is told by its number.
    stem = re.sub(r"[^\w.-]", lambda m: f"%{ord(m[0]):x}", entry.key)

    # Another command under the same key writes other audio.
    stem += "-" + hashlib.sha256(entry.path.encode("utf-8", "surrogateescape")).hexdigest()[:8]

    for ending in _ENDINGS.values():
        if (path := audio_dir / f"{stem}{ending}").exists():
            return path

    data = run_command(entry)

    if (kind := _ENDINGS.get(data[:4])) is None:
        raise AudioError(
            f"The command of '{entry.key}' ({entry.path!r}) must write audio (WAV, FLAC, Ogg, NIST or AIFF), but wrote "
            f"{len(data):,} bytes that begin with {data[:8]!r}."
        )

    path = audio_dir / f"{stem}{kind}"

    remove_leftovers(path)

    with atomic_path(path) as tmp:
        tmp.write_bytes(data)

    try:
        probe_audio(audio_dir, path.name)
    except AudioError as ex:
        # Kept, it would be in the way of what the command writes once it is mended.
        path.unlink()

        raise AudioError(
            f"The command of '{entry.key}' ({entry.path!r}) must write audio, but what it wrote cannot be used and is "
            f"not kept: {ex}"
        ) from ex

    return path
