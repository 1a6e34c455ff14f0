"""Starts a model from the parameters of another: the encoder of a published checkpoint, with new target heads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fairseq2.logging import log
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from hubert_plugin.errors import ConfigError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig, resolve_head_layers
from hubert_plugin.models.hubert.hub import load_hubert
from hubert_plugin.models.hubert.model import HubertModel

_HEADS_PREFIX: Final = "target_heads."

_ARCHITECTURE: Final = (
    "model_dim",
    "num_layers",
    "num_heads",
    "ffn_dim",
    "norm_order",
    "conv_layers",
    "conv_bias",
    "conv_norm",
    "always_project_features",
    "pos_conv_kernel",
    "pos_conv_groups",
    "normalize_audio",
    "sample_rate",
)
"""What must be alike for parameters to mean the same. Dropout and what only heads use may differ."""


@dataclass(kw_only=True)
class InitSection(Validatable):
    """Which parameters a new run starts from."""

    source: str | None = None
    """A run folder, a checkpoint file or the name of an asset card: whatever ``load_hubert`` takes. ``None``: random
    parameters."""

    required: bool = False
    """If true, ``source`` must be named: for presets that make no sense without."""

    step: int | str = "last"
    """Which checkpoint of a run folder: ``last``, ``best`` or the number of a step."""

    heads: Literal["new", "keep"] = "new"
    """``new``: target heads start at random, for new labels. ``keep``: they are taken over, too; label sets and sizes
    must be those of the source, and so must the layers that they read, and the temperature."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.step not in ("last", "best") and not str(self.step).isdigit():
            result.add_error(f"`step` must be 'last', 'best' or a number, but is '{self.step}' instead.")

        return result


def check_init(section: InitSection) -> None:
    """Check that a source is named where one is needed.

    :raises ConfigError: None is.
    """
    if section.required and section.source is None:
        raise ConfigError(
            "This configuration goes on from another model, but names none. Set `init.source` to a run folder, a "
            "checkpoint file or the name of an asset card (or `init.required=false` to start at random)."
        )


def init_model(model: HubertModel, section: InitSection) -> None:
    """Copy the parameters that ``section`` names into ``model``.

    :raises CheckpointError: The source cannot be loaded.
    :raises ConfigError: The source has another architecture or, with ``heads: keep``, other heads; all differences are
        named.
    """
    if section.source is None:
        return

    step: int | Literal["last", "best"] = int(section.step) if str(section.step).isdigit() else section.step  # type: ignore[assignment]

    source = load_hubert(_expand(section.source), step=step)

    problems = _differences(model.config, source.config)

    remedy = "set `model.arch` and `model.config_overrides` to what the source has"

    if section.heads == "keep" and (others := _head_differences(model.config, source.config)):
        mine = "train with the labels that it was trained with, or set `init.heads=new`"

        remedy = f"{remedy}, and {mine}" if problems else mine

        problems += others

    if problems:
        raise ConfigError(
            format_problems(
                f"The model cannot start from '{section.source}' (`init.source`), because they differ; {remedy}:",
                problems,
            )
        )

    state_dict = source.state_dict()

    if section.heads == "new":
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith(_HEADS_PREFIX)}

    missing, unexpected = model.load_state_dict(state_dict, strict=False)

    wrong = [k for k in missing if section.heads == "keep" or not k.startswith(_HEADS_PREFIX)] + list(unexpected)

    if wrong:
        raise ConfigError(format_problems(f"Parameters of '{section.source}' (`init.source`) do not fit:", wrong))

    log.info(
        "The model starts from {}, with {} target heads.", section.source, "new" if section.heads == "new" else "its"
    )


def is_materialized(model: HubertModel) -> bool:
    """Return whether ``model`` has memory; on all ranks but the first it may get it later, by broadcast."""
    params: list[Tensor] = list(model.parameters())

    return not any(p.is_meta for p in params)


def _expand(source: str) -> str:
    path = Path(source).expanduser()

    return str(path) if path.exists() else source


def _differences(ours: HubertConfig, theirs: HubertConfig) -> list[str]:
    return [
        f"`{name}` is {_plain(getattr(ours, name))}, but {_plain(getattr(theirs, name))} in the source"
        for name in _ARCHITECTURE
        if _plain(getattr(ours, name)) != _plain(getattr(theirs, name))
    ]


def _head_differences(ours: HubertConfig, theirs: HubertConfig) -> list[str]:
    def describe(config: HubertConfig) -> str:
        heads = ", ".join(
            f"{h.label_set} ({h.size} units, {h.kind}, layer {layer})"
            for h, layer in zip(config.heads, resolve_head_layers(config), strict=True)
        )

        # What codewords have learned is cosines of this temperature.
        return (
            f"{heads or 'none'}; dimension {config.final_dim or config.model_dim}, temperature {config.logit_temp:g}, "
            f"{'tied' if config.tie_final_proj else 'untied'}"
        )

    if describe(ours) == describe(theirs):
        return []

    return [f"the target heads are {describe(ours)}, but {describe(theirs)} in the source"]


def _plain(value: object) -> object:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
