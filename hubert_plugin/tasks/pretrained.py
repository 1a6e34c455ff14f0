"""Starts a recogniser from a pretrained HuBERT: its architecture, its parameters, and what it wants of audio.

The architecture is the checkpoint's; what fine-tuning changes (dropout, layer drop, masks) is the configuration's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.config import ModelSection
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.structured import ValueConverter
from fairseq2.utils.validation import Validatable, ValidationResult
from fairseq2.utils.yaml import YamlError, YamlLoader
from torch import Tensor
from typing_extensions import override

from hubert_plugin.errors import CheckpointError, ConfigError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.models.interop.fit import encoder_of
from hubert_plugin.models.interop.keys import LAYER_WEIGHTS_KEY, split_recogniser
from hubert_plugin.models.interop.resolve import resolve_source
from hubert_plugin.ranks import run_on_first
from hubert_plugin.text.vocabulary import CtcVocabulary

REGULARIZATION: Final = frozenset(
    {
        "feature_grad_scale",
        "dropout_p",
        "attn_dropout_p",
        "ffn_inner_dropout_p",
        "input_dropout_p",
        "layer_drop_p",
    }
)
"""What fine-tuning sets anew."""

_OF_PRETRAINING: Final = frozenset(
    {
        "final_dim",
        "logit_temp",
        "tie_final_proj",
        "codeword_init",
        "heads",
        "head_layers",
        "num_dropped_heads",
        "swap",
        "swap_loss",
    }
)
"""What only target heads and their training use."""


@dataclass(kw_only=True)
class PretrainedSection(Validatable):
    """How a pretrained model is taken over."""

    step: int | str = "last"
    """Which checkpoint of a run folder: ``last``, ``best`` or the number of a step."""

    output_layer: str = "new"
    """``new``: the output layer starts at random. ``keep``: that of a fine-tuned model is taken over, with the weights
    of layers that it reads (``layer_pooling``); its symbols must be those of the tokenizer."""

    required: bool = False
    """If true, ``pretrained`` must be named: for presets that make no sense without."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.step not in ("last", "best") and not str(self.step).isdigit():
            result.add_error(f"`step` must be 'last', 'best' or a number, but is '{self.step}' instead.")

        if self.output_layer not in ("new", "keep"):
            result.add_error(f"`output_layer` must be 'new' or 'keep', but is '{self.output_layer}' instead.")

        return result


@dataclass
class PretrainedModel:
    """A checkpoint to start from."""

    source: str

    config: HubertConfig

    state_dict: dict[str, Tensor]
    """The encoder's parameters."""

    vocabulary: CtcVocabulary | None
    """The symbols, where it is a recogniser that says them."""

    output_layer: dict[str, Tensor] | None
    """``weight`` and ``bias``, where it is a recogniser."""

    layer_pooling: str | None = None
    """What the output layer reads (:attr:`HubertCtcConfig.layer_pooling`), where it is a recogniser."""

    layer_weights: Tensor | None = None
    """The weights of the layers, where the output layer reads their weighted sum."""


def open_pretrained(source: str | None, section: PretrainedSection, gangs: Gangs) -> PretrainedModel | None:
    """Return the checkpoint that ``source`` names; ``None``: none is named, the model starts at random.

    Call on all ranks: the first one fetches what has to be fetched.

    :raises ConfigError: A source is needed, and none is named.
    :raises CheckpointError: It cannot be loaded.
    """
    if not source:
        if section.required:
            raise ConfigError(
                "This configuration fine-tunes a pretrained model, but names none. Set `pretrained` to a run folder, a "
                "checkpoint file, the name of an asset card or a hub id (or `pretraining.required=false` to start at "
                "random)."
            )

        return None

    step: int | Literal["last", "best"] = int(section.step) if str(section.step).isdigit() else section.step  # type: ignore[assignment]

    model = run_on_first(gangs.root, lambda: _open(source, step))

    return model or _open(source, step)


def _open(source: str, step: int | Literal["last", "best"]) -> PretrainedModel:
    recognised = resolve_source(source, step=step)

    vocabulary, output_layer, layer_pooling = None, None, None

    if isinstance(recognised.config, HubertCtcConfig):
        _, output_layer = split_recogniser(recognised.state_dict)

        layer_pooling = recognised.config.layer_pooling

        if recognised.config.symbols:
            vocabulary = CtcVocabulary.of_config(recognised.config)

    encoder = encoder_of(recognised)

    assert isinstance(encoder.config, HubertConfig)

    state_dict = {k: v for k, v in encoder.state_dict.items() if not k.startswith("target_heads.")}

    layer_weights = recognised.state_dict.get(LAYER_WEIGHTS_KEY)

    return PretrainedModel(source, encoder.config, state_dict, vocabulary, output_layer, layer_pooling, layer_weights)


def check_output_layer(pretrained: PretrainedModel | None, section: PretrainedSection, ours: CtcVocabulary) -> None:
    """Check that an output layer that is to be kept is there and scores the symbols of the tokenizer.

    :raises CheckpointError: It is not, or does not.
    """
    if section.output_layer == "new":
        return

    if pretrained is None or pretrained.output_layer is None:
        what = "no model is named" if pretrained is None else f"'{pretrained.source}' was not fine-tuned"

        raise CheckpointError(
            f"`pretraining.output_layer=keep` takes over the output layer of a fine-tuned model, but {what}. Set it to "
            "'new'."
        )

    theirs, count = pretrained.vocabulary, len(pretrained.output_layer["bias"])

    if theirs is None:
        if count == len(ours):
            return

        found = f"scores {count} symbols that it does not name"
    elif (theirs.symbols, theirs.blank) == (ours.symbols, ours.blank):
        return
    else:
        found = f"has the vocabulary {describe_vocabulary(theirs)}"

    raise CheckpointError(
        f"The output layer of '{pretrained.source}' cannot be kept: it {found}, but that of the tokenizer "
        f"is {describe_vocabulary(ours)}. Take the tokenizer that it was trained with, or start a new output layer: "
        "`pretraining.output_layer=new`."
    )


def describe_vocabulary(vocabulary: CtcVocabulary) -> str:
    """Say what distinguishes a vocabulary."""
    symbols = " ".join(vocabulary.symbols[:10])

    return (
        f"of {len(vocabulary)} {vocabulary.kind} ({symbols}{' …' if len(vocabulary) > 10 else ''}; blank "
        f"'{vocabulary.symbols[vocabulary.blank]}')"
    )


def set_model(
    resolver: DependencyResolver,
    section: ModelSection,
    vocabulary: CtcVocabulary,
    pretrained: HubertConfig | None,
    *,
    train_convolutions: bool,
    layer_pooling: str | None = None,
) -> None:
    """Complete ``model``: the outputs are the vocabulary's, the architecture is that of the pretrained encoder.

    :param layer_pooling: What the output layer reads, where one is kept: it has learned to read nothing else.
    :raises ConfigError: ``model.config_overrides`` says another architecture than the pretrained encoder has, other
        outputs than the tokenizer, or that an output layer that is kept reads something else.
    """
    overrides: dict[str, Any] = dict(section.config_overrides or {})  # type: ignore[call-overload]

    encoder: dict[str, Any] = dict(overrides.get("encoder") or {})

    if train_convolutions:
        encoder.setdefault("feature_grad_scale", 1.0)

    if pretrained is not None:
        encoder = _merge_encoder(resolver, encoder, pretrained)

    outputs: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "symbols": list(vocabulary.symbols),
        "blank": vocabulary.blank,
        "symbol_scores": list(vocabulary.scores),
    }

    if wrong := [k for k, v in outputs.items() if overrides.get(k) not in (None, v)]:
        raise ConfigError(
            f"`model.config_overrides` sets {', '.join(wrong)}, which follow from the tokenizer ({len(vocabulary)} "
            "symbols). Leave them out, and choose another tokenizer if need be."
        )

    if layer_pooling is not None:
        if (asked := overrides.get("layer_pooling", layer_pooling)) != layer_pooling:
            raise ConfigError(
                f"`model.config_overrides.layer_pooling` is '{asked}', but the output layer that "
                f"`pretraining.output_layer=keep` takes over has learned to read '{layer_pooling}'. Leave the key out "
                "(or choose a preset without it), or start a new output layer: `pretraining.output_layer=new`."
            )

        outputs["layer_pooling"] = layer_pooling

    section.config_overrides = {**overrides, **outputs, "encoder": encoder}


def _merge_encoder(
    resolver: DependencyResolver, overrides: Mapping[str, Any], pretrained: HubertConfig
) -> dict[str, Any]:
    found: Any = resolver.resolve(ValueConverter).unstructure(pretrained)

    architecture = {k: v for k, v in found.items() if k not in REGULARIZATION | _OF_PRETRAINING}

    problems = [
        f"`model.config_overrides.encoder.{name}` is {value}, but {architecture[name]} in the checkpoint"
        for name, value in overrides.items()
        if name in architecture and _plain(value) != _plain(architecture[name])
    ]

    if problems:
        raise ConfigError(
            format_problems(
                "The architecture is that of the pretrained model; leave these keys out, or start at random "
                "(`pretrained=null`):",
                problems,
            )
        )

    return {**overrides, **architecture}


def _plain(value: object) -> object:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def copy_parameters(model: HubertCtcModel, pretrained: PretrainedModel, section: PretrainedSection) -> None:
    """Copy the encoder's parameters, and the output layer's where it is kept, into ``model``.

    :raises CheckpointError: They do not fit.
    """
    own = model.hubert.state_dict()

    missing = sorted(own.keys() - pretrained.state_dict.keys())
    unexpected = sorted(pretrained.state_dict.keys() - own.keys())

    shapes = [k for k, v in pretrained.state_dict.items() if k in own and own[k].shape != v.shape]

    if problems := [*(f"{k} is missing" for k in missing), *(f"{k} has no place" for k in unexpected), *shapes]:
        raise CheckpointError(format_problems(f"Parameters of '{pretrained.source}' do not fit the model:", problems))

    model.hubert.load_state_dict(pretrained.state_dict)

    kept = section.output_layer == "keep" and pretrained.output_layer is not None

    if kept:
        assert pretrained.output_layer is not None

        model.final_proj.load_state_dict(pretrained.output_layer)

        if model.layer_weights is not None and pretrained.layer_weights is not None:
            model.layer_weights.load_state_dict({"weight": pretrained.layer_weights})

    log.info("The encoder starts from {}; the output layer {}.", pretrained.source, "is kept" if kept else "is new")


def read_model_config(resolver: DependencyResolver, checkpoint_dir: Path) -> HubertCtcConfig:
    """Return the configuration of the model whose training goes on: the pretrained model may be gone by now.

    :raises CheckpointError: It is missing or damaged.
    """
    file = checkpoint_dir / "model.yaml"

    try:
        content: Any = resolver.resolve(YamlLoader).load(file)[0]

        return resolver.resolve(ValueConverter).structure(content["model_config"], HubertCtcConfig)  # type: ignore[no-any-return]
    except (YamlError, OSError, IndexError, KeyError, TypeError, ValueError) as ex:
        raise CheckpointError(
            f"'{file}', which describes the model of the checkpoints beside it, cannot be used ({type(ex).__name__}). "
            "Restore it, or start another run in a new output folder."
        ) from ex


def check_resumed_vocabulary(before: HubertCtcConfig, now: CtcVocabulary, checkpoint_dir: Path) -> None:
    """Check that the symbols are those of the checkpoint from which the run goes on.

    :raises CheckpointError: They are not.
    """
    symbols: Sequence[str] = before.symbols

    if (tuple(symbols), before.blank) != (now.symbols, now.blank):
        theirs = describe_vocabulary(CtcVocabulary(tuple(symbols), before.blank)) if symbols else "of unknown symbols"

        raise CheckpointError(
            f"The checkpoints in '{checkpoint_dir}' have the vocabulary {theirs}, but that of the tokenizer "
            f"is {describe_vocabulary(now)} now. Go on with the tokenizer that the run was started with, or start "
            f"another run in a new output folder (`pretrained={checkpoint_dir.parent}` gives it this encoder)."
        )
