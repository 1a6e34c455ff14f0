"""Export to ONNX: one file for any runtime, for batches of any size and waveforms of any length.

Inputs: ``waveforms`` float32 (N, n), raw at 16 kHz, and ``num_samples`` int64 (N), the length of each row. Outputs:
``features`` float32 (N, T, M), or ``logits`` (N, T, V) of a recogniser, and ``num_frames`` int64 (N).
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from hubert_plugin import frames
from hubert_plugin.errors import MissingDependencyError
from hubert_plugin.models.export.onnx_graph import HubertGraph
from hubert_plugin.models.export.parity import AnyModel, Outputs, Probe, encoder_of, has_logits
from hubert_plugin.models.export.targets import check_file, new_file
from hubert_plugin.models.hubert.inference import check_layer

OPSET: Final = 17
"""The first with layer normalisation."""

MAX_INLINE_BYTES: Final = 1_900_000_000
"""Larger models have their weights in a file ``….onnx.data`` beside: a protocol buffer ends at 2 GiB."""


def require_onnx() -> None:
    """:raises MissingDependencyError: The package ``onnx`` is not installed."""
    if find_spec("onnx") is None:
        raise MissingDependencyError(
            "The export to ONNX needs the package `onnx`. Install it with `pip install 'fairseq2-hubert[onnx]'` (in a "
            "checkout: `pip install '.[onnx]'`)."
        )


def save_onnx(model: AnyModel, path: Path, *, layer: int | None, overwrite: bool) -> None:
    """Write the graph of a model in full precision on the CPU.

    :param layer: The layer whose output it returns; ``None``: the model's output, of a recogniser the logits.
    :raises LayerRangeError: There is no such layer.
    :raises MissingDependencyError: The package ``onnx`` is not installed.
    :raises OutputDirError: There is something at ``path``, or where its weights go, that must not be replaced.
    """
    if layer is not None:
        layer = check_layer(layer, len(encoder_of(model).encoder.layers))

    require_onnx()

    check_file(path, overwrite=overwrite)

    graph = HubertGraph(model, layer).eval()

    num_bytes = sum(p.numel() * p.element_size() for p in graph.parameters())

    data = path.name + ".data"

    if num_bytes <= MAX_INLINE_BYTES:
        is_replaced = path.exists()

        with new_file(path, overwrite=overwrite) as tmp:
            _export(graph, tmp, output_name(model, layer))

        # The weights of the graph that stood here before belong to nothing any more.
        if is_replaced:
            path.with_name(data).unlink(missing_ok=True)

        return

    import onnx

    check_file(path.with_name(data), overwrite=overwrite)

    # PyTorch writes the weights of such a graph as many files beside it: they are made aside and joined into one.
    with new_file(path, overwrite=overwrite) as tmp, TemporaryDirectory(dir=path.parent, prefix=".onnx-") as name:
        folder = Path(name)

        _export(graph, folder / "parts.onnx", output_name(model, layer))

        onnx.save_model(
            onnx.load(str(folder / "parts.onnx")),
            str(folder / path.name),
            save_as_external_data=True,
            location=data,
            size_threshold=1024,
        )

        # An earlier graph must not be left with the new weights, whenever this is killed.
        path.unlink(missing_ok=True)

        (folder / data).replace(path.with_name(data))
        (folder / path.name).replace(tmp)


def output_name(model: AnyModel, layer: int | None) -> str:
    return "logits" if layer is None and has_logits(model) else "features"


def _export(graph: HubertGraph, path: Path, name: str) -> None:
    # Lengths that are no multiples of anything: the tracer would take what is equal by chance for a constant.
    example = torch.zeros(2, 7_001), torch.tensor([7_001, 5_003])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        torch.onnx.export(
            graph,
            example,
            str(path),
            input_names=["waveforms", "num_samples"],
            output_names=[name, "num_frames"],
            dynamic_axes={
                "waveforms": {0: "batch", 1: "samples"},
                "num_samples": {0: "batch"},
                name: {0: "batch", 1: "frames"},
                "num_frames": {0: "batch"},
            },
            opset_version=OPSET,
            dynamo=False,
        )


def onnx_outputs(path: Path, model: AnyModel, probe: Probe, layer: int | None) -> tuple[Outputs, str] | None:
    """Return what onnxruntime computes with an exported file at several lengths, and what to call it; ``None`` if it is
    not installed.

    The waveform is computed alone, and in a batch with its halves; what is returned is its row of the batch.
    """
    if find_spec("onnxruntime") is None:
        return None

    session = open_session(path)

    waveform = probe.waveform

    lengths = [len(waveform), max(frames.RECEPTIVE_FIELD, len(waveform) // 2)]

    rows = np.zeros((2, len(waveform)), np.float32)

    for row, length in zip(rows, lengths, strict=True):
        row[:length] = waveform[:length]

    (batch, counts), (alone, _) = (
        session.run(None, {"waveforms": w, "num_samples": np.asarray(n, np.int64)})
        for w, n in ((rows, lengths), (waveform[None], lengths[:1]))
    )

    name = output_name(model, layer) if layer is None else f"layer {layer}"

    name = "output" if name == "features" else name

    outputs = {name: torch.from_numpy(batch[0, : counts[0]]), f"{name} alone": torch.from_numpy(alone[0])}

    return outputs, f"loaded back with onnxruntime {version('onnxruntime')}"


def open_session(path: Path) -> Any:
    """Return an onnxruntime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()

    options.log_severity_level = 3

    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
