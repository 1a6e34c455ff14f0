"""What is exported: a model, found by whatever ``load_hubert`` takes, with its output layer if it is a recogniser."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from fairseq2.runtime.dependency import get_dependency_resolver
from torch import Tensor

from hubert_plugin.models.export.parity import AnyModel
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.interop.fit import load_into
from hubert_plugin.models.interop.resolve import resolve_source


@dataclass(frozen=True)
class Source:
    """What is exported."""

    model: AnyModel
    """The model."""

    special_rows: Tensor | None = None
    """fairseq's rows of special symbols, where the model came from a fairseq file. *Shape:* (4 * heads, d)."""

    notes: list[str] = field(default_factory=list)
    """What was left out when it was loaded, in sentences."""


def load_source(source: str | Path) -> Source:
    """Load what is to be exported.

    :raises CheckpointError: Nothing usable is found.
    """
    recognised = resolve_source(source)

    resolver = get_dependency_resolver()

    config = recognised.config

    model: AnyModel

    with torch.device("meta"):
        if isinstance(config, HubertCtcConfig):
            model = create_hubert_ctc_model(config, resolver)
        else:
            model = create_hubert_model(config, resolver)

    load_into(model, recognised)

    return Source(model.float().eval(), recognised.special_rows, recognised.notes)
