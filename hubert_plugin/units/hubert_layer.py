"""Features from the inside of a HuBERT model: what later iterations and downstream units are clustered on.

Letters: *n* samples, *T* frames at 50 Hz, *D* the model dimension. Layer L is the output of block L, 1-based, without
the final norm; layer 0 is the input of block 1 (DESIGN, decision 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, final

import numpy as np
import torch
from fairseq2.device import Device
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.device import parse_device
from hubert_plugin.errors import ConfigError, UnitModelError
from hubert_plugin.files import file_digest
from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE
from hubert_plugin.models.fingerprint import folder_fingerprint
from hubert_plugin.models.hubert.inference import DTYPES, LayerRangeError
from hubert_plugin.registry import Features, FeatureSource, Waveform
from hubert_plugin.units.utterance_norm import UtteranceNorm, check_norm, describe_norm, normalize_utterance

HUBERT_LAYER_SOURCE: Final = "hubert_layer"
"""The name under which the source is registered."""


@dataclass(kw_only=True)
class HubertLayerConfig(Validatable):
    """Configures the feature source ``hubert_layer``."""

    model: str | None = None
    """A model card, a checkpoint file or the folder of a run: whatever ``load_hubert`` takes."""

    layer: int = 6
    """The 1-based layer whose output is used; 0 is the input of block 1. The paper: 6 for iteration 2, then 9."""

    utterance_norm: UtteranceNorm = "none"
    """What is taken out of each utterance's features: ``none`` (the paper), its ``mean``, or ``mean_variance``."""

    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """The precision of the model. Features come out in float32 in any case. Half precision suits GPUs."""

    device: str | None = None
    """Where the model runs (``cpu``, ``cuda``, ``cuda:1``); ``null``: where the recipe runs, a GPU if there is one."""

    max_batch_seconds: float = 60.0
    """The seconds of audio, padding included, that are computed at once. The features do not depend on it."""

    max_chunk_seconds: float = 60.0
    """Longer recordings are computed in chunks of this length. The features do not depend on it, but to rounding."""

    attention_seconds: float | None = None
    """In longer recordings, how far before and after its chunk a frame attends; ``null``: to all of the recording. A
    bound saves time in recordings of many minutes, and makes the features approximate."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.model:
            result.add_error("`model` must name a model card, a checkpoint file or the folder of a run.")

        if self.layer < 0:
            result.add_error(f"`layer` must be 0 or greater, but is {self.layer} instead.")

        check_norm(result, self.utterance_norm)

        if self.dtype not in DTYPES:
            result.add_error(f"`dtype` must be one of {', '.join(DTYPES)}, but is '{self.dtype}' instead.")

        for name in ("max_batch_seconds", "max_chunk_seconds"):
            if not getattr(self, name) >= 1.0:
                result.add_error(f"`{name}` must be 1 second or longer, but is {getattr(self, name):g} instead.")

        if self.attention_seconds is not None and not self.attention_seconds > 0.0:
            result.add_error(f"`attention_seconds` must be greater than 0, but is {self.attention_seconds:g} instead.")

        return result


@final
class HubertLayerSource(FeatureSource):
    """Takes the output of one layer of a HuBERT model, loaded on first use and kept in evaluation mode."""

    parallel: ClassVar[bool] = False
    """The model uses all cores by itself; only the reading of audio is spread over threads."""

    def __init__(self, config: HubertLayerConfig, device: Device | None = None) -> None:
        """
        :param device: Where the model runs if the configuration does not say.
        :raises ConfigError: No model is named, or the precision, normalisation or device is not known.
        """
        if not config.model:
            raise ConfigError(f"The feature source '{HUBERT_LAYER_SOURCE}' needs `model`: a card, a file or a folder.")

        if config.dtype not in DTYPES:
            raise ConfigError(f"`dtype` must be one of {', '.join(DTYPES)}, but is '{config.dtype}' instead.")

        check_norm(result := ValidationResult(), config.utterance_norm)

        if result.errors:
            raise ConfigError(" ".join(map(str, result.errors)))

        self._config = config

        self._device = parse_device(config.device) if config.device else device or torch.device("cpu")

    @property
    def chunk_seconds(self) -> float:
        """How much audio is best given at once: from several batches' worth, batches of similar lengths can be made;
        a GPU is through with them in no time."""
        num_batches, least = (4, 960.0) if self._device.type == "cuda" else (2, 240.0)

        return max(num_batches * self._config.max_batch_seconds, least)

    @cached_property
    def _model(self) -> Any:
        from hubert_plugin import load_hubert  # the model family is loaded only when it is used

        dtype = DTYPES[self._config.dtype]

        return load_hubert(str(self._config.model), device=self._device, dtype=dtype).eval()

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
        """Return the layer's output for each waveform; below 400 samples there are no frames.

        :raises ConfigError: The model does not have the layer.
        """
        long_enough = [w for w in waveforms if len(w) >= RECEPTIVE_FIELD]

        outputs = iter(self._extract(long_enough) if long_enough else [])

        empty = np.empty((0, self.dim), np.float32)

        return [next(outputs) if len(w) >= RECEPTIVE_FIELD else empty for w in waveforms]

    def _extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        config = self._config

        try:
            outputs = self._model.extract_features(
                list(waveforms),
                layer=config.layer,
                sample_rate=SAMPLE_RATE,
                max_batch_seconds=config.max_batch_seconds,
                max_chunk_seconds=config.max_chunk_seconds,
                attention_seconds=config.attention_seconds,
            )
        except LayerRangeError as ex:
            raise ConfigError(
                f"The feature source '{HUBERT_LAYER_SOURCE}' with the model '{config.model}': {ex}"
            ) from None

        if len(outputs) != len(waveforms):
            raise UnitModelError(f"The model returned features of {len(outputs)} of {len(waveforms)} utterances.")

        items = [o.detach().to(device="cpu", dtype=torch.float32).numpy() for o in outputs]

        return [normalize_utterance(f, config.utterance_norm) for f in items]

    @override
    def describe(self) -> dict[str, object]:
        name, digest = self._identity

        description: dict[str, object] = {
            "name": HUBERT_LAYER_SOURCE,
            "model": name,
            "model_fingerprint": digest,
            "layer": self._config.layer,
            "rate": self.rate,
        }

        description |= describe_norm(self._config.utterance_norm)

        # What changes the features says so; what only changes how they are computed does not.
        if self._config.dtype != "fp32":
            description["dtype"] = self._config.dtype

        if self._config.attention_seconds is not None:
            description["attention_seconds"] = self._config.attention_seconds
            description["max_chunk_seconds"] = self._config.max_chunk_seconds

        return description

    @cached_property
    def _identity(self) -> tuple[str, str | None]:
        """The name of the model for the reader, and the digest that tells two checkpoints of one name apart."""
        model = str(self._config.model)

        path = Path(model).expanduser()

        if path.is_file():
            return path.name, file_digest(path)

        if path.is_dir():
            return path.resolve().name, folder_fingerprint(path)

        return model, None


def create_hubert_layer_source(resolver: DependencyResolver, config: HubertLayerConfig) -> FeatureSource:
    """Create the feature source ``hubert_layer`` (the factory that is registered)."""
    return HubertLayerSource(config, resolver.maybe_resolve(Device))
