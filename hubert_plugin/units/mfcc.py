"""The acoustic features of the first HuBERT iteration: 13 MFCCs with their first and second differences.

Letters: *n* samples, *M* frames, *D* = 39 features.

The values are those of fairseq's ``simple_kmeans/dump_mfcc_feature.py``: Kaldi MFCCs (25 ms windows every 10 ms, 13
cepstra of 23 mel bins, povey window, no dither, ``use_energy=False``) of a waveform in [-1, 1], then torchaudio's
``compute_deltas`` twice over time (5 frames, edges repeated), stacked as [static | Δ | ΔΔ]. The scale of the waveform
matters near silence, where the floor under the mel energies shows; do not multiply by 32768.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

import numpy as np
import torch
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE, SUPPORTED_LABEL_RATES
from hubert_plugin.registry import Features, FeatureSource, Waveform

MFCC_SOURCE: Final = "mfcc"
"""The name under which the source is registered."""

NUM_CEPSTRA: Final = 13

MFCC_DIM: Final = 3 * NUM_CEPSTRA
"""Static, Δ and ΔΔ coefficients of a frame: 39."""


@dataclass(kw_only=True)
class MfccConfig(Validatable):
    """Configures the feature source ``mfcc``."""

    rate: int = 100
    """Frames per second: 100 (fairseq's), or 50, which keeps every second frame after the differences were taken."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.rate not in SUPPORTED_LABEL_RATES:
            result.add_error(f"`rate` must be 50 or 100 frames per second, but is {self.rate} instead.")

        return result


@final
class MfccSource(FeatureSource):
    """Computes 39-dimensional MFCC features on the CPU, one utterance at a time."""

    parallel: ClassVar[bool] = True
    """Several threads may call :meth:`extract` at once; ``AudioFeatureStream`` asks for this."""

    def __init__(self, config: MfccConfig | None = None) -> None:
        """:raises ValueError: The rate is neither 50 nor 100."""
        self._config = config or MfccConfig()

        if self._config.rate not in SUPPORTED_LABEL_RATES:
            raise ValueError(f"`rate` must be 50 or 100 frames per second, but is {self._config.rate} instead.")

    @property
    @override
    def dim(self) -> int:
        return MFCC_DIM

    @property
    @override
    def rate(self) -> int:
        return self._config.rate

    @override
    def extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        return [mfcc(w)[:: 100 // self._config.rate] for w in waveforms]

    @override
    def describe(self) -> dict[str, object]:
        return {"name": MFCC_SOURCE, "dim": MFCC_DIM, "rate": self.rate}


def mfcc(waveform: Waveform) -> Features:
    """Return the MFCC features of one waveform at 16 kHz.

    :param waveform: *Shape:* (n,), in [-1, 1].
    :returns: *Shape:* (M, 39), M = floor((n - 400) / 160) + 1, and (0, 39) below 400 samples.
    """
    import torchaudio.compliance.kaldi as kaldi
    from torchaudio.functional import compute_deltas

    if len(waveform) < RECEPTIVE_FIELD:
        return np.empty((0, MFCC_DIM), np.float32)

    with torch.inference_mode():
        wave = torch.from_numpy(np.ascontiguousarray(waveform, np.float32)).unsqueeze(0)

        static = kaldi.mfcc(wave, sample_frequency=SAMPLE_RATE, use_energy=False).T  # (13, M)

        # Differences run along the last axis, which therefore must be time.
        delta = compute_deltas(static)

        return torch.cat([static, delta, compute_deltas(delta)]).T.contiguous().numpy()


def create_mfcc_source(resolver: DependencyResolver, config: MfccConfig) -> FeatureSource:
    """Create the feature source ``mfcc`` (the factory that is registered)."""
    return MfccSource(config)
