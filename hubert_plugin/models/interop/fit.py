"""Fits a recognised checkpoint to the configuration that somebody asks for, or says why that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fairseq2.logging import log
from torch import Tensor
from torch.nn import Module

from hubert_plugin.errors import CheckpointError, format_problems
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.keys import AnyConfig, encoder_config, join_recogniser, split_recogniser
from hubert_plugin.models.interop.peers import add_projection, fit_projection
from hubert_plugin.models.interop.recognize import Recognised
from hubert_plugin.models.interop.shapes import compare_architectures, describe_size, list_sizes


def encoder_of(recognised: Recognised) -> Recognised:
    """Return the encoder of a recogniser, or the checkpoint as it is."""
    if not isinstance(recognised.config, HubertCtcConfig):
        return recognised

    encoder, _ = split_recogniser(recognised.state_dict)

    notes = [*recognised.notes, "The output layer of the recogniser was left out."]

    return replace(recognised, config=recognised.config.encoder, state_dict=encoder, notes=notes)


def fit_state_dict(recognised: Recognised, config: AnyConfig, asker: str) -> dict[str, Tensor]:
    """Return the parameters for a model of ``config``.

    :param asker: Who says ``config``, for errors, such as ``the asset card 'x'``.
    :raises CheckpointError: The checkpoint is of another size or kind, or was trained on other audio.
    """
    expected = encoder_config(config)
    found = encoder_config(recognised.config)

    _check_architecture(recognised, found, expected, asker)

    if recognised.states_normalization and found.normalize_audio != expected.normalize_audio:
        raise CheckpointError(
            f"'{recognised.path}' holds a model that was trained on waveforms "
            f"{'with' if found.normalize_audio else 'without'} normalisation, but {asker} says `normalize_audio: "
            f"{str(expected.normalize_audio).lower()}`. Set it to {str(found.normalize_audio).lower()}."
        )

    if isinstance(config, HubertCtcConfig):
        return _fit_recogniser(recognised, config, asker)

    heads_wanted = list(expected.heads)

    encoder = encoder_of(recognised)

    assert isinstance(encoder.config, HubertConfig)

    if heads_wanted:
        _check_heads(recognised, encoder.config, expected, asker)

        state_dict = dict(encoder.state_dict)
    else:
        state_dict = {k: v for k, v in encoder.state_dict.items() if not k.startswith("target_heads.")}

    _fit_feature_projection(state_dict, expected)

    return state_dict


def check_head_available(recognised: Recognised) -> None:
    """
    :raises CheckpointError: The checkpoint has no target heads.
    """
    if recognised.kind == "pretrained":
        return

    raise CheckpointError(
        f"'{recognised.path}' has no target heads, which were asked for: it is {recognised.describe()}. Take the "
        "checkpoint of pretraining, before fine-tuning or conversion."
    )


def load_into(model: Module, recognised: Recognised) -> None:
    """Put parameters into a model on the meta device.

    :raises CheckpointError: Keys are missing or unexpected, of another shape, or hold NaN; all are said.
    """
    expected, state_dict, show = model.state_dict(), recognised.state_dict, recognised.show_key

    missing = [show(key) for key in sorted(expected.keys() - state_dict.keys())]
    unexpected = [show(key) for key in sorted(state_dict.keys() - expected.keys())]

    shapes = [
        f"{show(key)} (expected {tuple(expected[key].shape)}, found {tuple(value.shape)})"
        for key, value in state_dict.items()
        if isinstance(value, Tensor) and key in expected and value.shape != expected[key].shape
    ]

    types = [
        f"{show(key)} ({value.dtype})"
        for key, value in state_dict.items()
        if key in expected and not value.dtype.is_floating_point
    ]

    if missing or unexpected or shapes or types:
        parts = [
            f"{label}: {_first(items)}"
            for label, items in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
                ("not of floating point", types),
            )
            if items
        ]

        raise CheckpointError(
            f"The parameters in '{recognised.path}' do not fit the model they describe; {'; '.join(parts)}."
        )

    if not_finite := [show(key) for key, value in state_dict.items() if not _is_finite(value)]:
        raise CheckpointError(
            f"Parameters in '{recognised.path}' are not finite numbers: {_first(not_finite)}. The file is damaged, or "
            "its training diverged; take another checkpoint."
        )

    for note in recognised.notes:
        log.info("'{}': {}", recognised.path, note)

    model.load_state_dict(dict(state_dict), assign=True)


def _first(items: Sequence[str]) -> str:
    return f"{', '.join(items[:10])}{f' … ({len(items)} in all)' if len(items) > 10 else ''}"


def _is_finite(value: Tensor) -> bool:
    # One pass without a copy: NaN and infinity come through as an extreme.
    return value.numel() == 0 or all(bool(extreme.isfinite()) for extreme in value.aminmax())


def _check_architecture(recognised: Recognised, found: HubertConfig, expected: HubertConfig, asker: str) -> None:
    problems = compare_architectures(found, expected)

    if problems:
        raise CheckpointError(
            format_problems(
                f"'{recognised.path}' holds {recognised.describe()}, but {asker} describes one of "
                f"{describe_size(expected)}. Use the architecture that belongs to the file, or another file:",
                problems,
            )
        )


def _check_heads(recognised: Recognised, found: HubertConfig, expected: HubertConfig, asker: str) -> None:
    check_head_available(recognised)

    sizes = [h.size for h in found.heads], [h.size for h in expected.heads]

    if sizes[0] != sizes[1] or found.tie_final_proj != expected.tie_final_proj:
        raise CheckpointError(
            f"'{recognised.path}' has target heads for {list_sizes(found.heads)}"
            f"{' that share a projection' if found.tie_final_proj else ''}, but {asker} asks for "
            f"{list_sizes(expected.heads)}{' that share one' if expected.tie_final_proj else ''}. Ask for those of the "
            "checkpoint, or for none (`heads: []`)."
        )


def _fit_recogniser(recognised: Recognised, config: HubertCtcConfig, asker: str) -> dict[str, Tensor]:
    found: Any = recognised.config

    if not isinstance(found, HubertCtcConfig):
        raise CheckpointError(
            f"'{recognised.path}' was not fine-tuned for recognition: it is {recognised.describe()}. Fine-tune it "
            "first, or load it with `load_hubert`."
        )

    if found.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"'{recognised.path}' scores {found.vocab_size} symbols, but {asker} says "
            f"`vocab_size: {config.vocab_size}`."
        )

    encoder, proj = split_recogniser(recognised.state_dict)

    _fit_feature_projection(encoder, config.encoder)

    return join_recogniser(encoder, proj)


def _fit_feature_projection(state_dict: dict[str, Tensor], config: HubertConfig) -> None:
    if config.always_project_features:
        add_projection(state_dict, config)
    else:
        fit_projection(state_dict, config)
