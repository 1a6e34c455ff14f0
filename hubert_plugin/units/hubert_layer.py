"""Features from the inside of a HuBERT model: what later iterations and downstream units are clustered on.

Letters: *n* samples, *T* frames at 50 Hz, *D* the model dimension. Layer L is the output of block L, 1-based, without
the final norm; layer 0 is the input of block 1 (DESIGN, decision 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.errors import ConfigError, UnitModelError
from hubert_plugin.files import file_digest
from hubert_plugin.frames import RECEPTIVE_FIELD
from hubert_plugin.registry import Features, FeatureSource, Waveform

HUBERT_LAYER_SOURCE: Final = "hubert_layer"
"""The name under which the source is registered."""


@dataclass(kw_only=True)
class HubertLayerConfig(Validatable):
    """Configures the feature source ``hubert_layer``."""

    model: str | None = None
    """A model card, a checkpoint file or the folder of a run: whatever ``load_hubert`` takes."""

    layer: int = 6
    """The 1-based layer whose output is used; 0 is the input of block 1. The paper: 6 for iteration 2, then 9."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.model:
            result.add_error("`model` must name a model card, a checkpoint file or the folder of a run.")

        if self.layer < 0:
            result.add_error(f"`layer` must be 0 or greater, but is {self.layer} instead.")

        return result


@final
class HubertLayerSource(FeatureSource):
    """Takes the output of one layer of a HuBERT model, loaded on first use and kept in evaluation mode."""

    parallel: ClassVar[bool] = False
    """The model uses all cores by itself; only the reading of audio is spread over threads."""

    def __init__(self, config: HubertLayerConfig) -> None:
        """:raises ConfigError: No model is named."""
        if not config.model:
            raise ConfigError(f"The feature source '{HUBERT_LAYER_SOURCE}' needs `model`: a card, a file or a folder.")

        self._config = config

    @cached_property
    def _model(self) -> Any:
        from hubert_plugin import load_hubert  # the model family is loaded only when it is used

        return load_hubert(str(self._config.model)).eval()

    @cached_property
    def _dim(self) -> int:
        return int(self._extract([np.zeros(RECEPTIVE_FIELD, np.float32)])[0].shape[1])

    @property
    @override
    def dim(self) -> int:
        return self._dim

    @property
    @override
    def rate(self) -> int:
        return 50

    @override
    def extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        """Return the layer's output for each waveform; below 400 samples there are no frames."""
        long_enough = [w for w in waveforms if len(w) >= RECEPTIVE_FIELD]

        outputs = iter(self._extract(long_enough) if long_enough else [])

        empty = np.empty((0, self.dim), np.float32)

        return [next(outputs) if len(w) >= RECEPTIVE_FIELD else empty for w in waveforms]

    def _extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        with torch.inference_mode():
            outputs = self._model.extract_features(list(waveforms), layer=self._config.layer)

        if len(outputs) != len(waveforms):
            raise UnitModelError(f"The model returned features of {len(outputs)} of {len(waveforms)} utterances.")

        return [o.detach().to(device="cpu", dtype=torch.float32).numpy() for o in outputs]

    @override
    def describe(self) -> dict[str, object]:
        model = str(self._config.model)

        # Two files of one name may hold different weights: the digest tells them apart, the name tells the reader.
        digest = file_digest(Path(model)) if Path(model).is_file() else None

        return {
            "name": HUBERT_LAYER_SOURCE,
            "model": Path(model).name if digest else model,
            "model_fingerprint": digest,
            "layer": self._config.layer,
            "rate": self.rate,
        }


def create_hubert_layer_source(resolver: DependencyResolver, config: HubertLayerConfig) -> FeatureSource:
    """Create the feature source ``hubert_layer`` (the factory that is registered)."""
    return HubertLayerSource(config)
