"""A checkpoint as it was read, and what it was recognised as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import ENCODER_PREFIX, AnyConfig, KeyTable, encoder_config
from hubert_plugin.models.interop.shapes import describe_size, list_sizes

Kind = Literal["pretrained", "ctc", "encoder"]


@dataclass
class Checkpoint:
    """A file, or a Hugging Face folder, as it was read."""

    path: Path
    """What it is called in messages."""

    content: Mapping[str, Any]
    """The entries of the file."""

    config: Mapping[str, Any] | None = None
    """``config.json`` of its folder (Hugging Face), or the JSON file of its name (of an export to torchaudio)."""

    preprocessor: Mapping[str, Any] | None = None
    """``preprocessor_config.json`` beside it."""

    symbols: Sequence[str] = ()
    """The symbols of ``vocab.json`` beside it, in the order of the outputs."""


@dataclass
class Recognised:
    """What a checkpoint is."""

    path: Path
    """Where it came from."""

    format: str
    """The name of the format."""

    config: AnyConfig
    """The configuration of the whole model."""

    state_dict: dict[str, Tensor]
    """The parameters under our names: those of ``config``'s model."""

    states_normalization: bool = False
    """Whether the checkpoint itself says if waveforms are normalised; else ``config`` holds the customary value."""

    special_rows: Tensor | None = None
    """fairseq's rows of special symbols, which are no units. *Shape:* (4 * heads, d)."""

    notes: list[str] = field(default_factory=list)
    """What was left out, in sentences."""

    key_table: KeyTable | None = None
    """What parameters are called in the file."""

    def show_key(self, key: str) -> str:
        """Return the name of a parameter for messages: ours, and the format's where it is another."""
        if self.key_table is None:
            return key

        theirs = self.key_table.name_of(key.removeprefix(ENCODER_PREFIX))

        return key if theirs in (None, key) else f"{key} ('{theirs}' in {self.key_table.format})"

    @property
    def kind(self) -> Kind:
        """``pretrained``: with target heads; ``ctc``: with an output layer for recognition; else ``encoder``."""
        if isinstance(self.config, HubertCtcConfig):
            return "ctc"

        return "pretrained" if self.config.heads else "encoder"

    def describe(self) -> str:
        """Return what was recognised, in words."""
        kinds = {
            "pretrained": f"with target heads for {list_sizes(encoder_config(self.config).heads)}",
            "ctc": "fine-tuned for recognition",
            "encoder": "without heads",
        }

        return (
            f"a HuBERT in the format of {self.format}, {describe_size(encoder_config(self.config))}, {kinds[self.kind]}"
        )
