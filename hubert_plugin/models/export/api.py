"""``export_hubert``: a model, or whatever ``load_hubert`` takes, to a folder or file in another library's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin.errors import CheckpointError, OutputDirError
from hubert_plugin.models.export.fairseq import check_heads, fairseq_notes, fairseq_outputs, save_fairseq
from hubert_plugin.models.export.huggingface import huggingface_outputs, save_huggingface
from hubert_plugin.models.export.onnx import onnx_outputs, save_onnx
from hubert_plugin.models.export.parity import (
    AnyModel,
    Outputs,
    Parity,
    Probe,
    compare,
    in_full_precision,
    open_probe,
    our_outputs,
)
from hubert_plugin.models.export.source import Source, load_source
from hubert_plugin.models.export.torchaudio import save_torchaudio, torchaudio_outputs
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import AnyConfig, encoder_config
from hubert_plugin.models.interop.torchaudio import export_torchaudio_kwargs
from hubert_plugin.registry import unknown_name_error

EXPORT_FORMATS: Final[Mapping[str, str]] = {
    "huggingface": "hubert_huggingface",
    "torchaudio": "hubert_torchaudio.pth",
    "fairseq": "hubert_fairseq.pt",
    "onnx": "hubert.onnx",
}
"""The formats, and what the ``export`` verb calls the folder or file it writes."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how near it is to the original."""

    format: str
    """The format."""

    path: Path
    """The folder or file."""

    parity: Parity | None
    """The measured differences; ``None`` if nothing that could read the export is installed."""

    notes: list[str] = field(default_factory=list)
    """What the format has no place for, a sentence each."""

    def __str__(self) -> str:
        """The parity line."""
        parity = "not measured (onnxruntime is not installed)" if self.parity is None else str(self.parity)

        return " ".join([f"{self.format}: {parity}.", *self.notes])


def check_format(name: str) -> None:
    """:raises ConfigError: There is no such format."""
    if name not in EXPORT_FORMATS:
        raise unknown_name_error("format of an export", name, list(EXPORT_FORMATS))


def export_hubert(
    source: AnyModel | str | Path,
    target: str | Path,
    *,
    format: str,
    layer: int | None = None,
    heads: bool | None = None,
    overwrite: bool = False,
    audio: Path | str | NDArray[np.float32] | None = None,
) -> ExportReport:
    """Export a HuBERT, or a recogniser, and measure what arrived.

    :param source: A model, or whatever ``load_hubert`` takes.
    :param target: The folder to write (``huggingface``), or the file (all others).
    :param format: One of :data:`EXPORT_FORMATS`.
    :param layer: For ``onnx``: the layer whose output the graph returns; ``None``: the model's output, or its logits.
    :param heads: Whether target heads are exported; ``None``: where the format has a place for them. Hugging Face and
        ONNX have none.
    :param overwrite: If true, an earlier export at ``target`` is replaced.
    :param audio: The audio file or waveform on which the export is measured; ``None``: see
        :func:`~hubert_plugin.models.export.parity.open_probe`.
    :raises AudioError: ``audio`` cannot be used.
    :raises CheckpointError: The source cannot be loaded, or the format has no such model.
    :raises ConfigError: There is no such format or layer.
    :raises OutputDirError: There is something at ``target`` that must not be replaced.
    :raises StorageError: ``target`` cannot be written.
    """
    check_format(format)

    target = Path(target).expanduser()

    if isinstance(source, (str, Path)) and target.exists() and target.resolve() == Path(source).expanduser().resolve():
        raise OutputDirError(f"'{target}' is what is to be exported. Choose another target.")

    probe = open_probe(audio)  # before the work, so that a wrong name is noticed at once

    return export_loaded(
        load_source(source) if isinstance(source, (str, Path)) else Source(source),
        target,
        format,
        probe=probe,
        layer=layer,
        heads=heads,
        overwrite=overwrite,
    )


def export_loaded(
    source: Source,
    target: Path,
    format: str,
    *,
    probe: Probe,
    layer: int | None,
    heads: bool | None,
    overwrite: bool,
) -> ExportReport:
    """Export a model; see :func:`export_hubert`.

    :param probe: The waveform on which the export is measured.
    """
    check_format(format)

    model, special_rows = in_full_precision(source.model), source.special_rows

    config: AnyConfig = model.config

    state_dict = {key: value.detach() for key, value in model.state_dict().items()}

    notes = list(source.notes)

    if isinstance(config, HubertCtcConfig) and config.layer_pooling != "last":
        raise CheckpointError(
            f"The format '{format}' has no place for a weighted sum of layers, which this recogniser reads "
            "(`layer_pooling: weighted`, a probe). In Python its encoder alone can be exported: "
            f"`export_hubert(load_hubert('MODEL'), 'TARGET', format='{format}')`, both from `hubert_plugin`."
        )

    if isinstance(config, HubertConfig) and config.heads:
        config, state_dict = _select_heads(config, state_dict, format, heads, notes)

    theirs: tuple[Outputs, str] | None

    if format == "huggingface":
        save_huggingface(state_dict, config, target, overwrite=overwrite)

        theirs = huggingface_outputs(target, model, probe)
    elif format == "torchaudio":
        if not encoder_config(config).heads:
            notes.append("The mask embedding is left out: only models with target heads have one there.")

        save_torchaudio(state_dict, config, target, overwrite=overwrite)

        theirs = torchaudio_outputs(target, model, probe)
    elif format == "fairseq":
        if isinstance(config, HubertConfig) and config.heads and special_rows is None:
            notes.append("The rows of fairseq's four special symbols, which the model does not have, were drawn.")

        notes += fairseq_notes(config)

        save_fairseq(state_dict, config, target, overwrite=overwrite, special_rows=special_rows)

        theirs = fairseq_outputs(target, model, probe)
    else:
        save_onnx(model, target, layer=layer, overwrite=overwrite)

        theirs = onnx_outputs(target, model, probe, layer)

    if theirs is None:
        return ExportReport(format, target, None, notes)

    ours = our_outputs(model, probe)

    # What is computed twice there is the same thing here.
    ours |= {f"{name} alone": value for name, value in ours.items()}

    return ExportReport(format, target, compare(ours, *theirs, probe), notes)


def _select_heads(
    config: HubertConfig, state_dict: dict[str, Tensor], format: str, heads: bool | None, notes: list[str]
) -> tuple[HubertConfig, dict[str, Tensor]]:
    """Leave target heads out where they are not wanted, or have no place."""
    names = ", ".join(h.label_set for h in config.heads)

    bare = replace(config, heads=[])

    without = {k: v for k, v in state_dict.items() if not k.startswith("target_heads.")}

    if format in ("huggingface", "onnx"):
        if heads:
            raise CheckpointError(f"The format '{format}' has no place for target heads ({names}): leave `heads` out.")

        notes.append(f"Target heads ({names}) are left out: the format has no place for them.")

        return bare, without

    if heads is False:
        return bare, without

    try:
        if format == "fairseq":
            check_heads(config)
        else:
            export_torchaudio_kwargs(config)
    except CheckpointError:
        if heads:
            raise

        notes.append(f"Target heads ({names}) are left out: the format has no place for such heads.")

        return bare, without

    return config, state_dict
