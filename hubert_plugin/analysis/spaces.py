"""Feature spaces: MFCC and the layers of a model, all computed from one reading of a waveform.

A space is named ``mfcc``, or ``L6`` for layer 6. All are read at 50 frames per second, so their frames correspond.

Letters: *n* samples, *T* frames, *D* features of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch

from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.inference import extract_layers
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.registry import Features, Waveform
from hubert_plugin.units.mfcc import MfccConfig, MfccSource

MFCC: Final = "mfcc"
"""The name of the space of MFCC with their differences, every second one of 100 a second."""

RATE: Final = 50
"""Frames per second of every space."""

Extract = Callable[[Waveform], Mapping[str, Features]]
"""Returns the features of a waveform by space. *Shape of each:* (T, D)."""


def layer_name(layer: int) -> str:
    """Return the name of the space of a layer."""
    return f"L{layer}"


def scale_for_angles(space: str, features: Features) -> Features:
    """Return the features of an utterance as they are compared by angle: MFCC get zero mean and unit variance.

    As they are, the loudness in the first coefficient is most of any angle between MFCC: the ABX error of the demo
    corpus is 20.9 % then (triphones within speakers), and 11.1 % so. A baseline should be the best there is.
    """
    if space != MFCC or not len(features):
        return features

    return np.asarray((features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6), np.float32)


def check_layers(layers: Sequence[int] | None, num_layers: int) -> list[int]:
    """Return the layers that are meant, in order.

    :param layers: 1-based; 0 is the input of block 1. ``None``: 1 to the last.
    :param num_layers: How many the model has.
    :raises ConfigError: A layer is not there.
    """
    if layers is None:
        return list(range(1, num_layers + 1))

    if beyond := sorted({layer for layer in layers if not 0 <= layer <= num_layers}):
        raise ConfigError(
            f"`layers` must be between 0 (the input of block 1) and {num_layers}, the model's last layer, but holds "
            f"{', '.join(map(str, beyond))}."
        )

    return sorted(set(layers))


def make_extractor(
    model: HubertModel | None,
    layers: Sequence[int] = (),
    *,
    mfcc: bool = False,
    half_precision: bool = False,
) -> Extract:
    """Return a function that computes all spaces of a waveform at once.

    Layers are computed as :func:`extract_layers` gives them: the blocks' outputs, without the final norm, without
    running the blocks after the last one that is asked for, and long recordings in chunks. The model gets waveforms of
    zero mean and unit variance where it was trained so; MFCC are computed from the waveform as it is.

    :param model: In evaluation mode.
    :param mfcc: If ``True``, MFCC are a space, too.
    :param half_precision: If ``True``, the model runs in bfloat16.
    """
    source = MfccSource(MfccConfig(rate=RATE)) if mfcc else None

    @torch.inference_mode()
    def extract(waveform: Waveform) -> Mapping[str, Features]:
        result: dict[str, Features] = {}

        if source is not None:
            result[MFCC] = source.extract([waveform])[0]

        if model is None or not layers:
            return result

        device = model.masker.temporal_mask_embed.device

        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half_precision):
            (features,) = extract_layers(model, [waveform], list(layers))

        for layer in layers:
            result[layer_name(layer)] = np.ascontiguousarray(features[layer].float().cpu().numpy())

        return result

    return extract
