"""``load_hubert``: a HuBERT from anywhere - an asset card, a training run, a file or folder of any known format, a hub
id."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq2.data_type import DataType
from fairseq2.device import Device
from fairseq2.models.hub import ModelHubAccessor
from fairseq2.runtime.dependency import get_dependency_resolver

from hubert_plugin.device import check_float_type, parse_device
from hubert_plugin.models.hubert.config import HUBERT_FAMILY, HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.interop.fit import check_head_available, encoder_of, load_into
from hubert_plugin.models.interop.resolve import resolve_source
from hubert_plugin.models.interop.sources import Step, find_checkpoint

__all__ = ["find_checkpoint", "get_hubert_model_hub", "load_hubert"]

get_hubert_model_hub = ModelHubAccessor(HUBERT_FAMILY, kls=HubertModel, config_kls=HubertConfig)


def load_hubert(
    source: str | Path,
    *,
    step: Step = "last",
    config: HubertConfig | None = None,
    require_heads: bool = False,
    device: Device | str = "cpu",
    dtype: DataType = torch.float32,
) -> HubertModel:
    """Load a HuBERT, in evaluation mode.

    Format and size are recognised from the contents; nothing in a file is run. Of a model fine-tuned for recognition,
    the encoder is loaded.

    :param source: The output folder of a training run, its ``checkpoints`` or ``step_N`` folder; a file of fairseq,
        torchaudio, s3prl, minimal_hubert, Transformers or this package; a folder of Hugging Face; the name of an asset
        card; the id of a repository on the Hugging Face hub, such as ``facebook/hubert-base-ls960``; or an address on
        the web.
    :param step: Which checkpoint of a run folder; ``best`` is the one with the highest validation score.
    :param config: What the model must be. Needed only for files without a configuration and of unusual sizes.
    :param require_heads: If true, a model without target heads is refused.
    :raises CheckpointError: Nothing usable is found; says what was looked for.
    :raises ConfigError: There is no such device, ``dtype`` is not of floating point, or ``config`` is of another type.
    """
    device, dtype = parse_device(device), check_float_type(dtype)

    recognised = resolve_source(source, step=step, config=config)

    if require_heads:
        check_head_available(recognised)

    recognised = encoder_of(recognised)

    assert isinstance(recognised.config, HubertConfig)

    with torch.device("meta"):
        model = create_hubert_model(recognised.config, get_dependency_resolver())

    load_into(model, recognised)

    return model.to(device=device, dtype=dtype).eval()
