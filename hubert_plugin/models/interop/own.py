"""This package's own parameters as a format: what fairseq2 saves, without the description beside it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import ENCODER_PREFIX, PROJ_PREFIX, AnyConfig, has_prefix, split_recogniser
from hubert_plugin.models.interop.shapes import infer_config

_PREFIX = "encoder_frontend.pos_encoder."


def is_own_state_dict(state_dict: Mapping[str, object]) -> bool:
    """Return whether the keys are those of our :class:`HubertModel` or recogniser."""
    return has_prefix(state_dict, _PREFIX, ENCODER_PREFIX + _PREFIX)


def import_own_config(state_dict: Mapping[str, Tensor], *, hint: HubertConfig | None = None) -> AnyConfig:
    """Return the configuration that the shapes describe; what they do not say is taken from ``hint``."""
    proj = state_dict.get(f"{PROJ_PREFIX}weight")

    encoder = split_recogniser(state_dict)[0] if proj is not None else dict(state_dict)

    norm_order = "pre" if "encoder.layer_norm.weight" in encoder else "post"

    config = infer_config(encoder, norm_order, hint=hint)  # type: ignore[arg-type]

    return config if proj is None else HubertCtcConfig(encoder=config, vocab_size=proj.size(0))
