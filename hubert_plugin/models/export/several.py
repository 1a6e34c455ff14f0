"""Several exports of one model into one folder: what the ``export`` verb does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hubert_plugin.errors import ConfigError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.models.export.api import EXPORT_FORMATS, ExportReport, check_format, export_loaded
from hubert_plugin.models.export.onnx import require_onnx
from hubert_plugin.models.export.parity import encoder_of, open_probe
from hubert_plugin.models.export.source import load_source
from hubert_plugin.models.export.targets import check_file, check_folder
from hubert_plugin.models.hubert.inference import LayerRangeError, check_layer


def export_all(
    source: str | Path,
    folder: Path,
    formats: Sequence[str],
    *,
    layer: int | None = None,
    heads: bool | None = None,
    audio: Path | None = None,
) -> Iterator[ExportReport]:
    """Export to each format, under the names of :data:`EXPORT_FORMATS` in ``folder``; earlier exports are replaced.

    All that can be checked is checked before the first export. What was measured is in ``parity.json``, too.

    The parameters and errors are those of :func:`~hubert_plugin.models.export.export_hubert`.
    """
    for name in formats:
        check_format(name)

        if name == "onnx":
            require_onnx()

        (check_folder if name == "huggingface" else check_file)(folder / EXPORT_FORMATS[name], overwrite=True)

    if layer is not None and "onnx" not in formats:
        raise ConfigError("`layer` is for the format 'onnx' only: all others hold the whole model.")

    probe = open_probe(audio)

    loaded = load_source(source)

    if layer is not None:
        try:
            layer = check_layer(layer, len(encoder_of(loaded.model).encoder.layers))
        except LayerRangeError as ex:
            raise ConfigError(str(ex)) from None

    records: dict[str, Any] = {}

    for name in formats:
        report = export_loaded(
            loaded,
            folder / EXPORT_FORMATS[name],
            name,
            probe=probe,
            layer=layer if name == "onnx" else None,
            heads=heads,
            overwrite=True,
        )

        parity = report.parity

        records[name] = {
            "path": report.path.name,
            "notes": report.notes,
            "peer": parity and parity.peer,
            "audio": probe.name,
            "seconds": probe.seconds,
            "max_differences": parity and dict(parity.differences),
        }

        write_text_atomic(folder / "parity.json", json.dumps(records, indent=2) + "\n")

        yield report
