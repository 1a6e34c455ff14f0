"""What is accepted as waveforms from Python: a list of mono waveforms, as floats from -1 to 1. No torch."""

from __future__ import annotations

from numbers import Number
from os import PathLike
from typing import Any

from hubert_plugin.errors import AudioError

_NUM_VALUES = {"int8": 128, "int16": 32_768, "int32": 2_147_483_648}
"""By how much whole numbers that samples are stored as are divided."""


def check_waveforms(waveforms: Any) -> None:
    """Check that these are waveforms, one after another, rather than the samples of one.

    :raises AudioError: It is a single waveform, or the name of a file.
    """
    # Of several, arrays in an array of objects.
    is_one = getattr(waveforms, "ndim", None) == 1 and str(getattr(waveforms, "dtype", "")) != "object"

    if is_one or (isinstance(waveforms, (list, tuple)) and waveforms and isinstance(waveforms[0], Number)):
        raise AudioError("`waveforms` must be a list of waveforms, but is one waveform; of a single one write `[it]`.")

    if isinstance(waveforms, (str, PathLike)):
        raise AudioError(f"`waveforms` must be a list of waveforms, but is '{waveforms}'. {_READ}")


def check_samples(waveform: Any, idx: int = 0) -> None:
    """Check that a waveform holds samples of the kind that is expected.

    :param idx: The number by which an error names the waveform.
    :raises AudioError: It is the name of a file, or holds whole numbers: scaled by 32,768, and the logarithms and norms
        of features then have other values, without anything that would show it.
    """
    if isinstance(waveform, (str, PathLike)):
        raise AudioError(f"Waveform {idx} must hold samples, but is '{waveform}'. {_READ}")

    dtype = str(getattr(waveform, "dtype", "float")).removeprefix("torch.")

    if not dtype.startswith(("float", "bfloat")):
        scale = _NUM_VALUES.get(dtype)

        advice = f"divide by {scale}" if scale is not None else "convert it"

        raise AudioError(f"Waveform {idx} holds {dtype}; floats from -1 to 1 are expected: {advice}.")


_READ = "Audio files are read first, for example with `soundfile.read(file, dtype='float32')`."
