"""Key tables: names of parameters elsewhere and here, read in both directions.

A table is a list of pairs of templates. ``{i}`` stands for a number, a trailing ``.*`` for ``.weight``, ``.bias`` and
the like; both mean the same on the two sides of a pair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, final

import torch
from torch import Generator, Tensor

from hubert_plugin.errors import CheckpointError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig

AnyConfig = HubertConfig | HubertCtcConfig
"""The configuration of a HuBERT, or of a recogniser."""

KeyPair = tuple[str, str]

ENCODER_PREFIX: Final = "hubert."
"""Where the encoder is in the state dict of our recogniser."""

PROJ_PREFIX: Final = "final_proj."
"""Where the output layer is in the state dict of our recogniser."""

LAYER_WEIGHTS_KEY: Final = "layer_weights.weight"
"""The weights of layers in the state dict of our recogniser, where its output layer reads their sum."""

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.")
"""What data parallel training, ``torch.compile``, FSDP and Lightning put before each name."""


@final
class KeyTable:
    """Renames parameters in both directions."""

    def __init__(self, format_: str, pairs: Iterable[KeyPair], *, joined: Mapping[str, str] | None = None) -> None:
        """
        :param format_: What the format is called in errors.
        :param pairs: Templates of the format's names and of ours.
        :param joined: Pieces of names, patterns, and what files say instead where they hold several parameters as one.
        """
        self.format = format_
        self._joined = dict(joined or {})

        pairs = list(pairs)

        self._to_ours = [_compile(theirs, ours) for theirs, ours in pairs]
        self._to_theirs = [_compile(ours, theirs) for theirs, ours in pairs]

    def import_(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters under our names.

        :raises CheckpointError: A name is not in the table; all such names are listed.
        """
        return self._rename(state_dict, self._to_ours, f"are not names of {self.format}")

    def export(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters under the format's names.

        :raises CheckpointError: A name has no counterpart; all such names are listed.
        """
        return self._rename(state_dict, self._to_theirs, f"have no counterpart in {self.format}")

    def name_of(self, key: str) -> str | None:
        """Return what files of the format call a parameter of ours; ``None``: it has no counterpart."""
        for pattern, replacement in self._to_theirs:
            if pattern.match(key):
                name = pattern.sub(replacement, key)

                for piece, joined in self._joined.items():
                    name = re.sub(piece, joined, name)

                return name

        return None

    def _rename(
        self, state_dict: Mapping[str, Tensor], rules: Sequence[tuple[re.Pattern[str], str]], what: str
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}

        unknown: list[str] = []

        for key, value in state_dict.items():
            for pattern, replacement in rules:
                new_key, count = pattern.subn(replacement, key)

                if count:
                    result[new_key] = value

                    break
            else:
                unknown.append(key)

        if unknown:
            raise CheckpointError(format_problems(f"{len(unknown)} parameters {what}:", unknown))

        return result


def _compile(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source.removesuffix(".*")).replace(re.escape("{i}"), r"(\d+)")

    replacement = target.removesuffix(".*").replace("{i}", r"\1")

    if source.endswith(".*"):
        pattern += r"(?P<rest>\.\w+)"
        replacement += r"\g<rest>"

    return re.compile(rf"^{pattern}$"), replacement


def with_old_weight_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call PyTorch's newer weight norm parameters ``original0/1`` by their older names, ``weight_g`` and ``weight_v``,
    which fairseq and this package use."""
    result = {}

    for key, value in state_dict.items():
        key = key.replace("parametrizations.weight.original0", "weight_g")

        result[key.replace("parametrizations.weight.original1", "weight_v")] = value

    return result


def with_new_weight_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`with_old_weight_norm`."""
    result = {}

    for key, value in state_dict.items():
        key = re.sub(r"\.weight_g$", ".parametrizations.weight.original0", key)

        result[re.sub(r"\.weight_v$", ".parametrizations.weight.original1", key)] = value

    return result


def encoder_config(config: AnyConfig) -> HubertConfig:
    """Return the configuration of the encoder."""
    return config.encoder if isinstance(config, HubertCtcConfig) else config


def split_model(state_dict: Mapping[str, Tensor], config: AnyConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder's parameters and the output layer's, which only a recogniser has; prefixes removed."""
    return split_recogniser(state_dict) if isinstance(config, HubertCtcConfig) else (dict(state_dict), {})


def split_recogniser(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the state dict of our recogniser into the encoder's and the output layer's, prefixes removed."""
    encoder = {k.removeprefix(ENCODER_PREFIX): v for k, v in state_dict.items() if k.startswith(ENCODER_PREFIX)}

    proj = {k.removeprefix(PROJ_PREFIX): v for k, v in state_dict.items() if k.startswith(PROJ_PREFIX)}

    return encoder, proj


def join_recogniser(encoder: Mapping[str, Tensor], proj: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_recogniser`."""
    return {
        **{ENCODER_PREFIX + k: v for k, v in encoder.items()},
        **{PROJ_PREFIX + k: v for k, v in proj.items()},
    }


def take_output_layer(state_dict: Mapping[str, Tensor], prefix: str, format_: str) -> dict[str, Tensor]:
    """Return the output layer of a recogniser, whose names begin with ``prefix``.

    :raises CheckpointError: Weight or bias is missing.
    """
    return {name: require(state_dict, prefix + name, format_) for name in ("weight", "bias")}


def has_prefix(state_dict: Mapping[str, object], *prefixes: str) -> bool:
    """Return whether a name begins with one of ``prefixes``. One name alone may be missing from a damaged file."""
    return any(key.startswith(prefixes) for key in state_dict)


def take_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the parameters whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}


def fresh_mask_embedding(config: HubertConfig, like: Tensor) -> Tensor:
    """Return a mask embedding for formats that leave it out: U[0, 1) as at the start of training, the same each time.

    Features do not depend on it; training with masks adapts it.
    """
    value = torch.rand(config.model_dim, generator=Generator().manual_seed(0))

    return value.to(like.dtype)


def require(state_dict: Mapping[str, Tensor], key: str, format_: str) -> Tensor:
    """Return a parameter.

    :raises CheckpointError: It is missing.
    """
    try:
        return state_dict[key]
    except KeyError:
        raise CheckpointError(f"The parameter '{key}' of {format_} is missing.") from None
