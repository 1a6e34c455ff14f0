"""From what a user names - a path, an asset card, a hub id - to a configuration and the parameters that fit it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from fairseq2.utils.uri import Uri

from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.cards import (
    card_config,
    fetch_card,
    fetch_from_hub,
    fetch_uri,
    find_card,
    is_hub_id,
    looks_like_path,
    unknown_source_error,
)
from hubert_plugin.models.interop.fit import encoder_of, fit_state_dict
from hubert_plugin.models.interop.keys import AnyConfig, encoder_config
from hubert_plugin.models.interop.recognize import Recognised
from hubert_plugin.models.interop.sources import Step, recognize_path


def resolve_source(source: str | Path, *, step: Step = "last", config: AnyConfig | None = None) -> Recognised:
    """Return the checkpoint that ``source`` names.

    :param source: A path, the name of an asset card, the id of a Hugging Face repository, or an address on the web.
    :param step: Which checkpoint of a training run.
    :param config: What the model must be, where that is known; also says what some formats do not.
    :raises CheckpointError: There is none, or it cannot be used.
    :raises ConfigError: ``config`` is no configuration of a model.
    """
    if config is not None and not isinstance(config, (HubertConfig, HubertCtcConfig)):
        raise ConfigError(
            "`config` must be a `HubertConfig`, or the `HubertCtcConfig` of a recogniser, but is of the type "
            f"{type(config).__name__}. Leave it out where the checkpoint says what the model is."
        )

    if not str(source).strip():
        raise CheckpointError(
            "No checkpoint is named: a path, the name of an asset card or the id of a repository was expected, but the "
            "name is empty."
        )

    path = Path(source).expanduser()

    if path.exists():
        return _recognise(path, step, config, "the given configuration")

    name = str(source)

    if (card := find_card(name)) is not None:
        asked = config or card_config(card)

        asker = "the given configuration" if config else f"the asset card '{name}'"

        path = fetch_card(card)

        try:
            return _recognise(path, step, asked, asker)
        except CheckpointError as ex:
            raise CheckpointError(f"The checkpoint of the asset card '{name}' cannot be loaded: {ex}") from ex

    if name.startswith(("https://", "http://")):
        path = fetch_uri(Uri.parse(name), "The checkpoint")
    elif isinstance(source, str) and is_hub_id(name) and (name.startswith("hg://") or not looks_like_path(name)):
        path = fetch_from_hub(
            name.removeprefix("hg://"),
            f"'{name}' is neither a folder, nor a file, nor the name of an asset card; as a repository it",
        )
    else:
        raise unknown_source_error(name)

    return _recognise(path, step, config, "the given configuration")


def _recognise(path: Path, step: Step, config: AnyConfig | None, asker: str) -> Recognised:
    if config is None:
        return recognize_path(path, step=step)

    recognised = recognize_path(path, step=step, hint=encoder_config(config))

    # Whoever asks for an encoder gets that of a recogniser.
    if isinstance(config, HubertConfig):
        recognised = encoder_of(recognised)

    config = _with_heads(config, recognised)

    state_dict = fit_state_dict(recognised, config, asker)

    return replace(recognised, config=config, state_dict=state_dict)


def _with_heads(config: AnyConfig, recognised: Recognised) -> AnyConfig:
    """Return ``config`` with what only the checkpoint says: its heads, or its symbols."""
    config, found = deepcopy(config), recognised.config

    if isinstance(config, HubertCtcConfig):
        if isinstance(found, HubertCtcConfig) and not config.symbols:
            config.symbols, config.blank = list(found.symbols), found.blank
    elif isinstance(found, HubertConfig) and not config.heads:
        for name in ("heads", "final_dim", "logit_temp", "tie_final_proj", "head_layers"):
            setattr(config, name, deepcopy(getattr(found, name)))

    return config
