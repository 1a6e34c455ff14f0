"""Features with the mean, or mean and variance, of their utterance taken out.

What stays the same through an utterance (the channel, much of the voice) moves all of its frames together; k-means then
spends units on speakers and microphones. Kaldi takes it out of cepstra by ``apply-cmvn`` (with ``--norm-vars=true`` the
variance, too); the statistics here are always those of the utterance itself.

Letters: *M* frames, *D* features.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import numpy as np
from fairseq2.utils.validation import ValidationResult

from hubert_plugin.registry import Features

UtteranceNorm = Literal["none", "mean", "mean_variance"]

STD_FLOOR: Final = 1e-3
"""Added to the standard deviation: what does not change in an utterance, as in a single frame, becomes 0."""


def normalize_utterance(features: Features, kind: UtteranceNorm) -> Features:
    """Return the features of one utterance with zero mean, and unit variance for ``mean_variance``, over its frames.

    As kaldi's ``ApplyCmvn`` (``transform/cmvn.cc``), which floors variances at 1e-20 where this adds :data:`STD_FLOOR`.

    :param features: *Shape:* (M, D).
    :returns: *Shape:* (M, D), float32; ``features`` themselves for ``none``, and where there are no frames.
    :raises ValueError: There is no such normalisation.
    """
    if problem := _problem(kind):
        raise ValueError(problem)

    if kind == "none" or len(features) == 0:
        return features

    # In double precision: sums of a long recording lose digits in single.
    centred = features - features.mean(axis=0, dtype=np.float64)

    if kind == "mean_variance":
        centred /= centred.std(axis=0) + STD_FLOOR

    return np.asarray(centred, np.float32)


def check_norm(result: ValidationResult, kind: str) -> None:
    """Add an error if there is no such normalisation: settings from files may hold any text."""
    if problem := _problem(kind):
        result.add_error(problem)


def describe_norm(kind: UtteranceNorm) -> dict[str, object]:
    """Return what a feature source's description says of it: nothing if nothing is done, so that older records fit."""
    return {} if kind == "none" else {"utterance_norm": kind}


def _problem(kind: str) -> str | None:
    names = get_args(UtteranceNorm)

    return None if kind in names else f"`utterance_norm` must be one of {', '.join(names)}, but is '{kind}' instead."
