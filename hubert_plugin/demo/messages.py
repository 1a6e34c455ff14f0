"""What the maker of a corpus and its worker processes tell each other, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubert_plugin.demo.phones import SampleSegment
from hubert_plugin.demo.speakers import Speaker


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What one speaker says in one split."""

    folder: str
    """The folder to write to, absolute."""

    split: str
    level: str
    seed: int

    seconds: float
    """How much speech to make, to the nearest whole utterance and at least one."""

    speaker: Speaker

    @staticmethod
    def from_json(obj: dict[str, Any]) -> Chunk:
        return Chunk(**{**obj, "speaker": Speaker(**obj["speaker"])})


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """What the corpus says of an utterance beside its audio. All times are in samples at 16 kHz."""

    id: str
    """The audio's path relative to the corpus, as in the manifest."""

    speaker: str

    num_samples: int

    num_bytes: int
    """The size of the audio file."""

    text: list[str]
    """The words spoken."""

    phones: list[SampleSegment]
    """From 0 to ``num_samples`` without gaps."""

    words: list[SampleSegment]
    """Words do not overlap; pauses lie between them."""

    @staticmethod
    def from_json(obj: dict[str, Any]) -> Utterance:
        """Undo :func:`dataclasses.asdict` followed by a round trip through JSON, which turns tuples into lists."""
        segments = {key: [(int(a), int(b), str(c)) for a, b, c in obj[key]] for key in ("phones", "words")}

        return Utterance(**{**obj, **segments})
