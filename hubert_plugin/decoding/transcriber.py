"""From recordings to hypotheses: reading, the recogniser, the decoder and a second look at n-best lists."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from hubert_plugin.decoding.decoder import Decoder
from hubert_plugin.decoding.emissions import emit
from hubert_plugin.decoding.hypothesis import Hypothesis
from hubert_plugin.decoding.inputs import AudioInput
from hubert_plugin.decoding.options import Options
from hubert_plugin.errors import AudioError, format_problems
from hubert_plugin.frames import SAMPLE_RATE

if TYPE_CHECKING:
    from hubert_plugin.decoding.rescoring import Rescorer
    from hubert_plugin.models.hubert_ctc.model import HubertCtcModel


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options):
    """How much is computed at once. Results do not depend on it, but to rounding."""

    max_batch_seconds: float = 60.0
    """How many seconds of audio the recogniser gets at once, padding included."""

    max_chunk_seconds: float = 60.0
    """Longer recordings are computed in chunks of this length."""

    attention_seconds: float | None = None
    """In longer recordings, how far before and after its chunk a frame attends; ``null``: to all of the recording. A
    bound saves time in recordings of many minutes, and makes results approximate."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The precision of the recogniser. Half precision suits GPUs."""

    num_workers: int = 4
    """Threads that read audio."""

    @override
    def problems(self) -> list[str]:
        problems = [
            f"`{name}` must be 1 second or longer, but is {getattr(self, name):g} instead."
            for name in ("max_batch_seconds", "max_chunk_seconds")
            if not getattr(self, name) >= 1.0
        ]

        if self.attention_seconds is not None and not self.attention_seconds > 0.0:
            problems.append(f"`attention_seconds` must be greater than 0, but is {self.attention_seconds:g} instead.")

        if self.dtype not in ("fp32", "bf16", "fp16"):
            problems.append(f"`dtype` must be fp32, bf16 or fp16, but is '{self.dtype}' instead.")

        if self.num_workers < 1:
            problems.append(f"`num_workers` must be 1 or greater, but is {self.num_workers} instead.")

        return problems


@dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording."""

    id: str

    num_samples: int

    hypotheses: list[Hypothesis]
    """The best first, at least one; without words where nothing was recognised."""

    error: str | None = None
    """Why the recording was skipped, if it was."""


@dataclass
class Times:
    """Seconds of wall-clock time."""

    reading: float = 0.0
    model: float = 0.0
    decoding: float = 0.0

    @property
    def total(self) -> float:
        return self.reading + self.model + self.decoding


class Transcriber:
    """Transcribes recordings. What one gives does not depend on the others."""

    def __init__(
        self,
        model: HubertCtcModel,
        decoder: Decoder,
        config: ComputeConfig,
        *,
        rescorer: Rescorer | None = None,
        skip_bad_audio: bool = False,
    ) -> None:
        """
        :param skip_bad_audio: If ``True``, recordings that cannot be read get an empty transcript and the reason.
        """
        self.decoder = decoder

        self._model = model
        self._config = config
        self._rescorer = rescorer
        self._skip_bad_audio = skip_bad_audio

    def transcribe(self, source: AudioInput, indices: Sequence[int], times: Times) -> list[Transcript]:
        """Transcribe some recordings, which are held in memory together.

        :param indices: Their positions.
        :param times: What it took is added here.
        :raises AudioError: Recordings cannot be read and are not to be skipped; names all of them.
        """
        transcripts: dict[int, Transcript] = {}

        for idx, logits in self.emit(source, indices, times):
            start = time.monotonic()

            if isinstance(logits, AudioError):
                hypotheses, error = [Hypothesis((), 0.0, 0.0)], str(logits)
            else:
                hypotheses, error = self.decoder.decode(logits), None

                if self._rescorer is not None:
                    hypotheses = self._rescorer.rescore(hypotheses)

            transcripts[idx] = Transcript(source.ids[idx], int(source.sizes[idx]), hypotheses, error)

            times.decoding += time.monotonic() - start

        return [transcripts[idx] for idx in indices]

    def emit(
        self, source: AudioInput, indices: Sequence[int], times: Times
    ) -> Iterator[tuple[int, Tensor | AudioError]]:
        """Yield the recogniser's scores of some recordings (*Shape:* (T, V)), or why one cannot be read.

        :raises AudioError: Recordings cannot be read and are not to be skipped; names all of them.
        """
        start = time.monotonic()

        waveforms = self._read(source, indices)

        times.reading += time.monotonic() - start

        problems = [str(w) for w in waveforms if isinstance(w, AudioError)]

        if problems and not self._skip_bad_audio:
            raise AudioError(
                format_problems(
                    f"{len(problems)} of {len(indices)} recordings cannot be read. Mend them, or set "
                    "`on_bad_audio=skip` to give them an empty transcript:",
                    problems,
                )
            )

        yield from ((i, w) for i, w in zip(indices, waveforms, strict=True) if isinstance(w, AudioError))

        readable = [(i, w) for i, w in zip(indices, waveforms, strict=True) if not isinstance(w, AudioError)]

        for part in _parts([len(w) for _, w in readable], self._config.max_batch_seconds):
            start = time.monotonic()

            logits = emit(
                self._model,
                [readable[i][1] for i in part],
                max_batch_seconds=self._config.max_batch_seconds,
                max_chunk_seconds=self._config.max_chunk_seconds,
                attention_seconds=self._config.attention_seconds,
            )

            times.model += time.monotonic() - start

            yield from zip([readable[i][0] for i in part], logits, strict=True)

    def _read(self, source: AudioInput, indices: Sequence[int]) -> list[NDArray[np.float32] | AudioError]:
        def read(idx: int) -> NDArray[np.float32] | AudioError:
            try:
                return source.read(idx)
            except AudioError as ex:
                return ex

        with ThreadPoolExecutor(self._config.num_workers) as pool:
            return list(pool.map(read, indices))


def blocks_of(sizes: Sequence[int], block_seconds: float) -> list[range]:
    """Cut a list of recordings into runs of about this length, of one recording at least."""
    blocks: list[range] = []

    start, length = 0, 0

    for idx, size in enumerate(sizes):
        if idx > start and length + size > block_seconds * SAMPLE_RATE:
            blocks.append(range(start, idx))

            start, length = idx, 0

        length += size

    if start < len(sizes):
        blocks.append(range(start, len(sizes)))

    return blocks


def _parts(lengths: Sequence[int], batch_seconds: float) -> Iterator[list[int]]:
    """Yield the positions of waveforms, the longest first, in lots of ten batches: enough to put equal lengths
    together, without holding the scores of a whole block."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    for block in blocks_of([lengths[i] for i in order], 10 * batch_seconds):
        yield [order[i] for i in block]
