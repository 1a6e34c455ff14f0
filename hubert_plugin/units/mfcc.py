"""The acoustic features of the first HuBERT iteration: 13 MFCCs with their first and second differences.

Letters: *n* samples, *M* frames, *D* = 39 features (or 39 times the frames that are spliced).

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

from hubert_plugin.device import parse_device
from hubert_plugin.frames import SUPPORTED_LABEL_RATES
from hubert_plugin.registry import Features, FeatureSource, Waveform
from hubert_plugin.samples import check_samples, check_waveforms
from hubert_plugin.units.cepstra import NUM_CEPSTRA, Differences, cepstra, splice
from hubert_plugin.units.threads import one_thread
from hubert_plugin.units.utterance_norm import UtteranceNorm, check_norm, describe_norm, normalize_utterance

MFCC_SOURCE: Final = "mfcc"
"""The name under which the source is registered."""

MFCC_DIM: Final = 3 * NUM_CEPSTRA
"""Static, Δ and ΔΔ coefficients of a frame: 39."""


@dataclass(kw_only=True)
class MfccConfig(Validatable):
    """Configures the feature source ``mfcc``."""

    rate: int = 100
    """Frames per second: 100 (fairseq's), or 50, which keeps every second frame after the differences were taken."""

    splice: int = 1
    """How many neighbouring frames (of 10 ms) make one: 1, or an odd number. The paper's product quantizer uses 3,
    which gives 117 features: static coefficients of three frames, then their Δ, then their ΔΔ, 39 each."""

    utterance_norm: UtteranceNorm = "none"
    """What is taken out of each utterance's features: ``none`` (the paper), its ``mean``, or ``mean_variance``
    (kaldi's ``apply-cmvn --norm-vars=true``). Units then tell less of voice and channel, and more of phones."""

    device: str = "cpu"
    """Where to compute: ``cpu`` or ``cuda``. The values agree up to rounding."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.rate not in SUPPORTED_LABEL_RATES:
            result.add_error(f"`rate` must be 50 or 100 frames per second, but is {self.rate} instead.")

        check_norm(result, self.utterance_norm)

        if self.splice < 1 or self.splice % 2 == 0:
            result.add_error(f"`splice` must be an odd number of frames, 1 or greater, but is {self.splice} instead.")

        return result


@final
class MfccSource(FeatureSource):
    """Computes MFCC features, those of several utterances at once."""

    parallel: ClassVar[bool] = True
    """Several threads may call :meth:`extract` at once; ``AudioFeatureStream`` asks for this."""

    def __init__(self, config: MfccConfig | None = None) -> None:
        """
        :raises ValueError: The rate is neither 50 nor 100, the number of spliced frames is even, or there is no such
            ``utterance_norm``.
        :raises ConfigError: There is no such device.
        """
        self._config = config or MfccConfig()

        if (result := self._config.validate()).errors:
            raise ValueError(" ".join(map(str, result.errors)))

        self._device = parse_device(self._config.device or "cpu")

    @property
    @override
    def dim(self) -> int:
        return MFCC_DIM * self._config.splice

    @property
    @override
    def rate(self) -> int:
        return self._config.rate

    @override
    def extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        """Return the MFCCs of each waveform; below 400 samples there are no frames.

        :raises AudioError: A waveform holds whole numbers, or it is no list.
        """
        check_waveforms(waveforms)

        for idx, waveform in enumerate(waveforms):
            check_samples(waveform, idx)

        features, counts = _extract(waveforms, self._config.splice, self._device)

        items = np.split(features.cpu().numpy(), np.cumsum(counts)[:-1]) if counts else []

        # Before frames are left out: those of 50 Hz are every second one of those of 100 Hz.
        items = [normalize_utterance(f, self._config.utterance_norm) for f in items]

        return [f[:: 100 // self._config.rate] for f in items]

    @override
    def describe(self) -> dict[str, object]:
        # Records of unit models fitted before there was splicing stay valid: one frame is not mentioned.
        spliced = {"splice": self._config.splice} if self._config.splice > 1 else {}

        norm = describe_norm(self._config.utterance_norm)

        return {"name": MFCC_SOURCE, "dim": self.dim, "rate": self.rate, **spliced, **norm}


def mfcc(waveform: Waveform) -> Features:
    """Return the MFCC features of one waveform at 16 kHz.

    :param waveform: *Shape:* (n,), in [-1, 1].
    :returns: *Shape:* (M, 39), M = floor((n - 400) / 160) + 1, and (0, 39) below 400 samples.
    """
    return MfccSource().extract([waveform])[0]


def _extract(waveforms: Sequence[Waveform], width: int, device: torch.device) -> tuple[torch.Tensor, list[int]]:
    with one_thread(), torch.inference_mode():
        static, counts = cepstra(waveforms, device)

        differences = Differences(counts, device)

        delta = differences(static)

        parts = [static, delta, differences(delta)]

        if width > 1:
            parts = [splice(p, counts, width) for p in parts]

        return torch.cat(parts, dim=1), counts


def create_mfcc_source(resolver: DependencyResolver, config: MfccConfig) -> FeatureSource:
    """Create the feature source ``mfcc`` (the factory that is registered)."""
    return MfccSource(config)
