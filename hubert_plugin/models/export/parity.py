"""What an exported model gives where it arrives, against what ours gives here.

Outputs are dictionaries: ``layer L`` is the output of block L without the final norm, ``output`` the encoder's output
with the final norm of pre-norm models, ``logits`` those of a recogniser. *Shape of each:* (T, M) or (T, V).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from fairseq2.runtime.dependency import get_dependency_resolver
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin import frames
from hubert_plugin.errors import AudioError
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.inference import extract_layers, prepare_waveform
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel

AnyModel: TypeAlias = HubertModel | HubertCtcModel

Outputs: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """The waveform on which an export is measured."""

    waveform: NDArray[np.float32]
    """Mono, 16 kHz. *Shape:* (n,)."""

    name: str
    """What it is, for the parity line."""

    @property
    def seconds(self) -> float:
        return frames.seconds(len(self.waveform))


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from ours."""

    peer: str
    """With what the export was loaded back."""

    differences: Mapping[str, float]
    """The largest absolute difference of each output that was compared."""

    probe: Probe
    """On what."""

    @property
    def max_difference(self) -> float:
        return max(self.differences.values())

    def __str__(self) -> str:
        layers = {k: v for k, v in self.differences.items() if k.startswith("layer ")}

        parts = [f"{k} {v:.1e}" for k, v in self.differences.items() if k not in layers]

        if layers:
            parts.append(f"{len(layers)} {'layer' if len(layers) == 1 else 'layers'} {max(layers.values()):.1e}")

        return (
            f"max |difference| {self.max_difference:.1e} ({', '.join(parts)}), {self.peer}, on {self.probe.name} "
            f"({self.probe.seconds:.2f} s)"
        )


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], peer: str, probe: Probe) -> Parity:
    """Compare the outputs that both have.

    An output of another shape counts as infinitely far.
    """
    differences = {}

    for name, value in theirs.items():
        reference = ours[name]

        same = value.shape == reference.shape

        differences[name] = float((value.float() - reference.float()).abs().max()) if same else float("inf")

    return Parity(peer, differences, probe)


def encoder_of(model: AnyModel) -> HubertModel:
    """Return the encoder of a model, which can be the model itself."""
    return model.hubert if isinstance(model, HubertCtcModel) else model


def in_full_precision(model: AnyModel) -> AnyModel:
    """Return the model on the CPU, in float32 and in evaluation mode; a copy where it is not that already."""
    parameter = next(model.parameters())

    if parameter.device.type == "cpu" and parameter.dtype == torch.float32 and not model.training:
        return model

    # Modules with weight normalisation cannot be copied; they can be built anew.
    resolver = get_dependency_resolver()

    copy: AnyModel

    if isinstance(model, HubertCtcModel):
        copy = create_hubert_ctc_model(model.config, resolver)
    else:
        copy = create_hubert_model(model.config, resolver)

    copy.load_state_dict(model.state_dict())

    return copy.eval()


@torch.inference_mode()
def our_outputs(model: AnyModel, probe: Probe) -> Outputs:
    """Return what our model gives: all layers, the encoder's output, and the logits of a recogniser."""
    encoder = encoder_of(model)

    layers: list[int | None] = [*range(len(encoder.encoder.layers) + 1), None]

    (results,) = extract_layers(encoder, [probe.waveform], layers)

    outputs = {"output" if nr is None else f"layer {nr}": value for nr, value in results.items()}

    if isinstance(model, HubertCtcModel):
        waveform = prepare_waveform(encoder, probe.waveform)

        outputs["logits"] = model(waveform.unsqueeze(0))[0][0]

    return outputs


def model_input(model: AnyModel, probe: Probe) -> Tensor:
    """Return the waveform as a peer must be given it: normalised where the model says so. *Shape:* (1, n)."""
    return prepare_waveform(encoder_of(model), probe.waveform).unsqueeze(0)


def has_logits(model: AnyModel) -> bool:
    return isinstance(model.config, HubertCtcConfig)


def open_probe(audio: Path | str | NDArray[np.float32] | None) -> Probe:
    """Return the waveform to measure on.

    :param audio: An audio file, or a waveform at 16 kHz; ``None``: an utterance of the demo corpus where the extra
        ``demo`` is installed, else a synthetic signal.
    :raises AudioError: The file cannot be used.
    """
    from hubert_plugin.audio import AudioPolicy, read_waveform

    if isinstance(audio, np.ndarray):
        return Probe(audio.astype(np.float32, copy=False), "the given waveform")

    if audio is not None:
        path = Path(audio).expanduser()

        if not path.is_file():
            raise AudioError(f"There is no audio file at '{path}' to measure the export on.")

        waveform = read_waveform(path.parent, path.name, AudioPolicy())

        return Probe(waveform[: 20 * frames.SAMPLE_RATE], f"'{path.name}'")

    if find_spec("espeakng_loader") is not None:
        from hubert_plugin.data.manifest import read_manifest
        from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus

        folder = ensure_demo_corpus(DemoCorpusConfig(train_minutes=0.1, valid_minutes=0.1, num_speakers=2))

        manifest = read_manifest(folder, "valid")

        return Probe(read_waveform(manifest.root, manifest.ids[0], AudioPolicy()), "speech of the demo corpus")

    return Probe(_synthetic_speech(), "a synthetic signal (for speech, name a file)")


def _synthetic_speech() -> NDArray[np.float32]:
    """Return 3 s of tones and noise that change every 200 ms."""
    rng = np.random.default_rng(0)

    time = np.arange(3 * frames.SAMPLE_RATE) / frames.SAMPLE_RATE

    segment = (time / 0.2).astype(int)

    pitch, level = rng.uniform(100, 1500, 15)[segment], rng.uniform(0.0, 0.3, 15)[segment]

    tone = np.sin(2 * np.pi * np.cumsum(pitch) / frames.SAMPLE_RATE)

    return (level * tone + 0.02 * rng.standard_normal(time.size)).astype(np.float32)
