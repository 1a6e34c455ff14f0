"""Unit quality of a model's layers: cluster each layer, compare the units with phones.

The audio is read once for all layers. Phones are read at the centre of a frame's window
(``frames.frame_center_seconds``).

Letters: T frames, M model dimension, K units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_plugin import frames
from hubert_plugin.analysis.purity import UnitQuality, unit_quality
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.registry import Units
from hubert_plugin.units.kmeans import KMeansConfig, KMeansFitter
from hubert_plugin.units.stream import ArrayFeatureStream

Segments = Sequence[tuple[float, float, str]]
"""The phones of an utterance: start and end in seconds, and name."""

ReadWaveform = Callable[[int], NDArray[np.float32]]


@dataclass(frozen=True)
class Utterances:
    """Some utterances of a split."""

    ids: Sequence[str]

    read: ReadWaveform
    """Returns the waveform of the utterance at a position."""

    indices: Sequence[int]
    """The positions that take part."""


def layer_quality(
    model: HubertModel,
    fit_on: Utterances,
    judge_on: Utterances,
    alignment: Mapping[str, Segments],
    frame_phones: Callable[[Segments, int, int], Sequence[str]],
    *,
    num_clusters: int,
    seed: int = 0,
    half_precision: bool = False,
) -> dict[int, UnitQuality]:
    """Return the quality of the units of every layer, 1 to the last.

    :param fit_on: Utterances whose frames k-means is fitted on.
    :param judge_on: Other utterances, whose units are compared with phones.
    :param alignment: The phones of ``judge_on`` by utterance id.
    :param half_precision: If true, the model runs in bfloat16: the features are clustered, not compared.
    """
    layers = range(1, len(model.encoder.layers) + 1)

    fit_features = _features_by_layer(model, fit_on, layers, half_precision)

    judge_features = _features_by_layer(model, judge_on, layers, half_precision)

    result = {}

    for layer in layers:
        stream = ArrayFeatureStream(fit_features.pop(layer), rate=50, description={"layer": layer})

        # Fewer restarts and passes than for units that are trained on: the measure moves by a few thousandths.
        config = KMeansConfig(num_clusters=num_clusters, n_init=3, max_iter=20, max_no_improvement=10)

        unit_model = KMeansFitter(config).fit(stream, seed=seed).model

        units = [unit_model.assign(f)[0] for f in judge_features.pop(layer)]

        result[layer] = compare_units(units, judge_on, alignment, frame_phones)

    return result


def compare_units(
    units: Sequence[Units],
    utterances: Utterances,
    alignment: Mapping[str, Segments],
    frame_phones: Callable[[Segments, int, int], Sequence[str]],
) -> UnitQuality:
    """Return the quality of ``units``, one per 50 Hz frame, for the utterances in order."""
    pairs = []

    for idx, utterance_units in zip(utterances.indices, units, strict=True):
        phones = frame_phones(alignment[utterances.ids[idx]], len(utterance_units), 50)

        pairs.append((phones, utterance_units))

    return unit_quality(pairs)


@torch.inference_mode()
def _features_by_layer(
    model: HubertModel, utterances: Utterances, layers: Sequence[int], half_precision: bool
) -> dict[int, list[NDArray[np.float32]]]:
    """Return the features of each utterance by layer. *Shape of each:* (T, M)."""
    result: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in layers}

    device = model.masker.temporal_mask_embed.device

    for idx in utterances.indices:
        waveform = torch.from_numpy(utterances.read(idx))[None].to(device)

        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half_precision):
            taps = model.encode(waveform, taps=layers).layers

        num_frames = frames.num_frames(waveform.size(1))

        for layer in layers:
            result[layer].append(taps[layer][0, :num_frames].float().cpu().numpy())

    return result
