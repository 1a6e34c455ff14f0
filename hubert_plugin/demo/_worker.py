"""A worker process of the demo corpus: renders chunks of utterances and writes their audio.

Reads one chunk a line (JSON) from the standard input, answers with one message a line on the standard output: an object
with the key ``utterance`` for every utterance, then one with ``done``; or one with ``error`` and ``kind``.

The worker exists because of eSpeak NG's licence and global state (see :mod:`hubert_plugin.demo.espeak`): the engine
never enters the process that trains. It imports neither torch nor fairseq2, so it is up in a third of a second.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import soundfile

from hubert_plugin.demo.espeak import Espeak
from hubert_plugin.demo.grammar import make_text
from hubert_plugin.demo.messages import Chunk, Utterance
from hubert_plugin.demo.render import render
from hubert_plugin.demo.speakers import LEVELS
from hubert_plugin.errors import HubertError, MissingDependencyError
from hubert_plugin.frames import SAMPLE_RATE


class ChunkMaker:
    """Makes chunks, each utterance by an engine in its initial state."""

    def __init__(self) -> None:
        self.is_fresh = True
        """``False`` after an engine could not be unloaded: the next chunk must be made by another process, or else it
        would depend on this one."""

    def make(self, chunk: Chunk) -> Iterator[Utterance]:
        num_samples, index = 0, 0

        # Over by as much as under: on average, the split has the length that was asked for.
        while index == 0 or num_samples * (1 + 0.5 / index) < chunk.seconds * SAMPLE_RATE:
            utterance = self._make_utterance(chunk, index)

            yield utterance

            num_samples += utterance.num_samples

            index += 1

    def _make_utterance(self, chunk: Chunk, index: int) -> Utterance:
        speaker = chunk.speaker

        key = f"{chunk.seed}/{chunk.split}/{speaker.id}/{index}"

        text = make_text(key)

        engine = Espeak()
        try:
            rendering = render(engine, speaker, LEVELS[chunk.level], text, key)
        finally:
            self.is_fresh &= engine.close()

        id_ = f"{chunk.split}/{speaker.id}/{speaker.id}-{index:05d}.flac"

        # Encoded in memory and written by Python: a full disk is then an `OSError` with a reason.
        buffer = io.BytesIO()

        soundfile.write(buffer, rendering.pcm, SAMPLE_RATE, format="FLAC", subtype="PCM_16")

        path = Path(chunk.folder, id_)

        path.parent.mkdir(exist_ok=True)

        path.write_bytes(buffer.getbuffer())

        return Utterance(
            id=id_,
            speaker=speaker.id,
            num_samples=len(rendering.pcm),
            num_bytes=buffer.getbuffer().nbytes,
            text=text,
            phones=rendering.phones,
            words=rendering.words,
        )


def main() -> None:
    # Ctrl-C reaches every process of a terminal; the one that started the workers decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = os.getppid()

    # The messages keep the pipe to themselves: whatever a library prints goes to the standard error.
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)

    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**message: object) -> None:
        messages.write(json.dumps(message) + "\n")

    maker = ChunkMaker()

    try:
        for line in sys.stdin:
            for utterance in maker.make(Chunk.from_json(json.loads(line))):
                if os.getppid() != parent:
                    return

                send(utterance=asdict(utterance))

            send(done=True, retire=not maker.is_fresh)
    except BrokenPipeError:
        os._exit(1)
    except OSError as ex:
        send(kind="storage", error=f"'{ex.filename}': {ex.strerror or ex}" if ex.filename else ex.strerror or str(ex))
    except MissingDependencyError as ex:
        send(kind="dependency", error=str(ex))
    except HubertError as ex:
        send(kind="engine", error=str(ex))


if __name__ == "__main__":
    main()
