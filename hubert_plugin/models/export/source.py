"""What is exported: a model, found by whatever ``load_hubert`` takes, with its output layer if it is a recogniser."""

from __future__ import annotations

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


def load_source(source: str | Path) -> tuple[AnyModel, Tensor | None]:
    """Return the model, and fairseq's rows of special symbols where it came from a fairseq file.

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

    load_into(model, recognised.state_dict, recognised.path)

    return model.float().eval(), recognised.special_rows
