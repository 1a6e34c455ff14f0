"""What is done to a decoded waveform before anybody sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

SampleRatePolicy: TypeAlias = Literal["resample", "refuse"]


@dataclass(frozen=True, kw_only=True)
class AudioPolicy:
    """How audio that is not already what the model wants is brought there."""

    sample_rate: SampleRatePolicy = "resample"
    """What to do with a file that is not at 16 kHz: convert it (torchaudio's sinc resampler), or refuse it by name."""

    normalize: bool = False
    """If ``True``, every utterance gets zero mean and unit variance over its whole file, before any crop. It has to be
    what the model was pretrained with: off for HuBERT base, on for large and x-large (FACTS, trap T5)."""
