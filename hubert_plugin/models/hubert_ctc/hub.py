"""``load_hubert_ctc``: a HuBERT fine-tuned for recognition, from anywhere."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq2.data_type import DataType
from fairseq2.device import Device
from fairseq2.models.hub import ModelHubAccessor
from fairseq2.runtime.dependency import get_dependency_resolver

from hubert_plugin.device import check_float_type, parse_device
from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert_ctc.config import HUBERT_CTC_FAMILY, HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.models.interop.fit import load_into
from hubert_plugin.models.interop.resolve import resolve_source
from hubert_plugin.models.interop.sources import Step

get_hubert_ctc_model_hub = ModelHubAccessor(HUBERT_CTC_FAMILY, kls=HubertCtcModel, config_kls=HubertCtcConfig)


def load_hubert_ctc(
    source: str | Path,
    *,
    step: Step = "last",
    config: HubertCtcConfig | None = None,
    device: Device | str = "cpu",
    dtype: DataType = torch.float32,
) -> HubertCtcModel:
    """Load a recogniser, in evaluation mode. ``config.symbols`` of the result names its outputs, where that is known.

    :param source: As for :func:`~hubert_plugin.load_hubert`.
    :param step: Which checkpoint of a run folder; ``best`` is the one with the highest validation score.
    :param config: What the model must be. Needed only for files without a configuration and of unusual sizes.
    :raises CheckpointError: Nothing usable is found, or the model was not fine-tuned for recognition.
    :raises ConfigError: There is no such device, ``dtype`` is not of floating point, or ``config`` is of another type.
    """
    device, dtype = parse_device(device), check_float_type(dtype)

    recognised = resolve_source(source, step=step, config=config)

    if not isinstance(recognised.config, HubertCtcConfig):
        raise CheckpointError(
            f"'{source}' was not fine-tuned for recognition: it is {recognised.describe()}. Fine-tune it first, or "
            "load it with `load_hubert`."
        )

    with torch.device("meta"):
        model = create_hubert_ctc_model(recognised.config, get_dependency_resolver())

    load_into(model, recognised)

    return model.to(device=device, dtype=dtype).eval()
