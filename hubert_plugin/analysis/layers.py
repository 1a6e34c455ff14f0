"""Unit quality of a model's layers, and of MFCC: cluster each, compare the units with phones.

The audio is read once for all layers. Phones are read at the centre of a frame's window
(``frames.frame_center_seconds``).

Letters: T frames, M model dimension, K units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hubert_plugin.analysis.alignments import Segments
from hubert_plugin.analysis.purity import UnitQuality, unit_quality
from hubert_plugin.analysis.spaces import MFCC, layer_name, make_extractor
from hubert_plugin.analysis.sweep import fit_spaces
from hubert_plugin.analysis.utterances import Utterances as Utterances
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.registry import Units
from hubert_plugin.units.kmeans import KMeansConfig

QUICK_KMEANS = KMeansConfig(backend="torch", n_init=3)
"""Fewer restarts than for units that are trained on: the measures move by a few thousandths."""

FramePhones = Callable[[Segments, int, int], Sequence[str | None]]
"""Returns the phones of a number of frames at a rate."""


def layer_quality(
    model: HubertModel,
    fit_on: Utterances,
    judge_on: Utterances,
    alignment: Mapping[str, Segments],
    frame_phones: FramePhones,
    *,
    num_clusters: int,
    seed: int = 0,
    mfcc: bool = False,
    half_precision: bool = False,
) -> dict[str, UnitQuality]:
    """Return the quality of the units of every layer by name, ``L1`` to the last, all fitted alike.

    :param fit_on: Utterances whose frames k-means is fitted on; read as they are, the model's own normalisation is
        done here.
    :param judge_on: Other utterances, whose units are compared with phones.
    :param alignment: The phones of ``judge_on`` by utterance id.
    :param mfcc: If true, the paper's MFCC are clustered, too (``mfcc``).
    :param half_precision: If true, the model runs in bfloat16: the features are clustered, not compared.
    """
    layers = range(1, len(model.encoder.layers) + 1)

    spaces = [*([MFCC] if mfcc else []), *map(layer_name, layers)]

    extract = make_extractor(model, layers, mfcc=mfcc, half_precision=half_precision)

    unit_models = fit_spaces(extract, fit_on, [num_clusters], QUICK_KMEANS, seed=seed)

    units: dict[str, list[Units]] = {space: [] for space in spaces}

    for idx in judge_on.indices:
        features = extract(judge_on.read(idx))

        for space in spaces:
            units[space].append(unit_models[space, num_clusters, 0].assign(features[space])[0])

    return {space: compare_units(units[space], judge_on, alignment, frame_phones) for space in spaces}


def compare_units(
    units: Sequence[Units],
    utterances: Utterances,
    alignment: Mapping[str, Segments],
    frame_phones: FramePhones,
) -> UnitQuality:
    """Return the quality of ``units``, one per 50 Hz frame, for the utterances in order."""
    pairs = []

    for idx, utterance_units in zip(utterances.indices, units, strict=True):
        phones = frame_phones(alignment[utterances.ids[idx]], len(utterance_units), 50)

        pairs.append((phones, utterance_units))

    return unit_quality(pairs)
