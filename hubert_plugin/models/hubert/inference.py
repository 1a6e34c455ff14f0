"""Features of many waveforms: sorted by length, batched, in one pass to the deepest layer that was asked for.

A batch holds waveforms of nearly the same length, so that little is computed on padding; what an utterance gets does
not depend on its batch (trap T4). Recordings longer than a limit go through :mod:`.long_audio` one by one.

Letters: N utterances, n samples, T frames, M model dimension.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, SupportsIndex

import numpy as np
import torch
from fairseq2.data_type import DataType
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import layer_norm

from hubert_plugin import frames
from hubert_plugin.errors import AudioError, ConfigError
from hubert_plugin.models.hubert.long_audio import encode_long
from hubert_plugin.samples import check_samples, check_waveforms

if TYPE_CHECKING:
    from hubert_plugin.models.hubert.model import HubertModel

DTYPES: Final[dict[str, DataType]] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions of inference, by the names that configurations use."""

MAX_PADDING: Final = 0.1
"""The largest share of a row of a batch that is padding."""

_CPU_BATCH_SECONDS: Final = 16.0
"""The longest batch of several waveforms on a CPU: more rows make nothing faster there, but leave the caches."""

_CPU_MAX_PADDING: Final = 0.02
"""The largest share of padding on a CPU, where padding costs what audio does."""

Layers = dict[int | None, Tensor]
"""The features of an utterance by layer; ``None`` is the model's output. *Shape of each:* (T, M)."""


class LayerRangeError(ConfigError, ValueError):
    """A layer was asked for that the model does not have."""


def check_layer(layer: SupportsIndex, num_layers: int) -> int:
    """Return the layer as Python's own number.

    :raises LayerRangeError: ``layer`` is not one of 0 … ``num_layers``.
    """
    # NumPy's whole numbers have an index, too; of booleans only Python's and PyTorch's.
    is_bool = isinstance(layer, bool) or getattr(layer, "dtype", None) == torch.bool

    if is_bool or not isinstance(layer, SupportsIndex):
        raise LayerRangeError(f"`layer` must be a whole number, but is {layer!r} instead.")

    try:
        layer = operator.index(layer)
    except TypeError:
        raise LayerRangeError(f"`layer` must be a whole number, but is {layer!r} instead.") from None

    if not 0 <= layer <= num_layers:
        raise LayerRangeError(
            f"`layer` must be between 0 and {num_layers}, but is {layer} instead: the model has {num_layers} layers, "
            "and layer 0 is the input of the first."
        )

    return layer


@torch.inference_mode()
def extract_layers(
    model: HubertModel,
    waveforms: Sequence[Tensor | NDArray[np.float32]],
    layers: Sequence[int | None],
    *,
    sample_rate: int | None = None,
    max_batch_seconds: float = 60.0,
    max_chunk_seconds: float = 60.0,
    attention_seconds: float | None = None,
) -> list[Layers]:
    """Return the features of several layers of each waveform, without dropout, in waveform order.

    The options are those of :meth:`HubertModel.extract_features`.

    :param layers: Layers, 1-based; 0 is the input of the first layer, ``None`` the model's output.
    :raises AudioError: A waveform has fewer than 400 samples, more than one dimension, whole numbers or another rate;
        or it is no list.
    :raises LayerRangeError: The model does not have one of the layers.
    """
    num_layers = len(model.encoder.layers)

    layers = [None if layer is None else check_layer(layer, num_layers) for layer in layers]

    for name, value in (("max_batch_seconds", max_batch_seconds), ("max_chunk_seconds", max_chunk_seconds)):
        if not value >= 1.0:
            raise ConfigError(f"`{name}` must be 1 second or longer, but is {value:g} instead.")

    if attention_seconds is not None and not attention_seconds > 0.0:
        raise ConfigError(
            f"`attention_seconds` must be greater than 0 or `None`, but is {attention_seconds:g} instead."
        )

    if sample_rate is not None and sample_rate != model.config.sample_rate:
        raise AudioError(
            f"The model expects waveforms at {model.config.sample_rate} Hz, but these have {sample_rate} Hz. Convert "
            "them before, for example with `torchaudio.functional.resample`."
        )

    check_waveforms(waveforms)

    inputs = [prepare_waveform(model, w, idx) for idx, w in enumerate(waveforms)]

    lengths = [w.numel() for w in inputs]

    results: list[Layers] = [{} for _ in inputs]

    was_training = model.training

    model.eval()

    try:
        for batch in plan_batches(model, lengths, max_batch_seconds, max_chunk_seconds):
            if lengths[batch[0]] > max_chunk_seconds * frames.SAMPLE_RATE:
                results[batch[0]] = encode_long(
                    model,
                    inputs[batch[0]],
                    layers,
                    chunk=frames.num_frames(round(max_chunk_seconds * frames.SAMPLE_RATE)),
                    attention=None if attention_seconds is None else round(attention_seconds * frames.FRAME_RATE),
                )
            else:
                for idx, outputs in zip(batch, encode_batch(model, [inputs[i] for i in batch], layers), strict=True):
                    results[idx] = outputs
    finally:
        model.train(was_training)

    return results


def encode_batch(model: HubertModel, waveforms: Sequence[Tensor], layers: Sequence[int | None]) -> list[Layers]:
    """Return the features of waveforms, prepared by :func:`prepare_waveform`, computed in one padded batch."""
    lengths = [w.numel() for w in waveforms]

    width = max(lengths)

    seqs = waveforms[0].new_zeros((len(waveforms), width))

    for row, waveform in zip(seqs, waveforms, strict=True):
        row[: waveform.numel()] = waveform

    num_samples = None if min(lengths) == width else lengths

    taps = {layer for layer in layers if layer is not None}

    # Early exit: no layer after the deepest runs. A tap is never normed, also if it is of the last layer.
    features = model.encode(seqs, num_samples, taps=taps, num_layers=None if None in layers else max(taps))

    outputs: Layers = {None: features.output}

    for layer, value in features.layers.items():
        outputs[layer] = value

    return [{layer: outputs[layer][i, : frames.num_frames(n)] for layer in layers} for i, n in enumerate(lengths)]


def prepare_waveform(model: HubertModel, waveform: Tensor | NDArray[np.float32], idx: int = 0) -> Tensor:
    """Return a waveform as the model expects it: on its device, normalised where it says so, in its precision.

    :param idx: The number by which an error names the waveform.
    :raises AudioError: It has fewer than 400 samples, more than one dimension, or whole numbers.
    """
    check_samples(waveform, idx)

    param = model.masker.temporal_mask_embed

    if isinstance(waveform, np.ndarray):
        # PyTorch takes no array that is reversed, as `w[::-1]`, nor NumPy's longer floats.
        waveform = np.asarray(waveform, np.float32, order="C")

    seq = torch.as_tensor(waveform).to(param.device)

    if seq.ndim != 1:
        raise AudioError(f"Waveform {idx} must be one-dimensional (mono), but has the shape {tuple(seq.shape)}.")

    if seq.numel() < frames.RECEPTIVE_FIELD:
        raise AudioError(
            f"Waveform {idx} must have at least {frames.RECEPTIVE_FIELD} samples (25 ms), but has {seq.numel()}."
        )

    seq = seq.float()

    if model.config.normalize_audio:
        seq = layer_norm(seq, seq.shape)  # per utterance, in float32, before padding (trap T5)

    return seq.to(param.dtype)


def plan_batches(
    model: HubertModel, lengths: Sequence[int], max_batch_seconds: float, max_chunk_seconds: float
) -> list[list[int]]:
    """Put waveforms together as it suits the model and its device; see :func:`batches_by_length`."""
    max_padding = MAX_PADDING

    if model.masker.temporal_mask_embed.device.type == "cpu":
        max_batch_seconds, max_padding = min(max_batch_seconds, _CPU_BATCH_SECONDS), _CPU_MAX_PADDING

    # Where padding is in the statistics (only on request), nothing may be padded.
    if model.config.group_norm_includes_padding:
        max_padding = 0.0

    return batches_by_length(lengths, max_batch_seconds, max_chunk_seconds, max_padding)


def batches_by_length(
    lengths: Sequence[int], max_batch_seconds: float, max_chunk_seconds: float, max_padding: float = MAX_PADDING
) -> list[list[int]]:
    """Put waveforms of similar length together, the longest first.

    :param lengths: In samples.
    :param max_batch_seconds: The longest batch, padding included; a waveform that is longer is a batch by itself.
    :param max_chunk_seconds: A waveform that is longer than this is a batch by itself, too.
    :param max_padding: The largest share of a row that is padding.
    :returns: The indices of the waveforms of each batch.
    """
    batches: list[list[int]] = []

    for idx in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches:
            batch = batches[-1]

            width = lengths[batch[0]]

            fits = width * (len(batch) + 1) <= max_batch_seconds * frames.SAMPLE_RATE

            if fits and width <= max_chunk_seconds * frames.SAMPLE_RATE and lengths[idx] >= (1.0 - max_padding) * width:
                batch.append(idx)

                continue

        batches.append([idx])

    return batches
