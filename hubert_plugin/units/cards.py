"""Unit models by the name of an asset card: cards with a section ``units`` (``assets/cards/units/``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq2.assets import AssetCardError, AssetCardNotValidError

from hubert_plugin.errors import CheckpointError, UnitModelError
from hubert_plugin.models.interop.cards import fetch_card, open_card_store


@dataclass(frozen=True)
class CardUnits:
    """What a card says of its unit model."""

    path: Path
    """Where the file is on this machine."""

    label_set: str
    """The name of the label set."""

    rate: int
    """Labels per second: 50 or 100."""


def find_card_units(name: str, *, trust_pickle: bool) -> CardUnits | None:
    """Return the unit model that an asset card names, downloaded if need be; ``None``: there is no such card.

    :raises UnitModelError: It is a card of something else, its file is a pickle that nobody has said to trust, or it
        cannot be fetched; says which file to put where.
    """
    try:
        card = open_card_store().maybe_retrieve_card(name)

        if card is None:
            return None

        field = card.maybe_get_field("units")

        section: Any = None if field is None else field.value
    except CheckpointError as ex:
        raise UnitModelError(str(ex)) from ex
    except (AssetCardError, AssetCardNotValidError) as ex:
        raise UnitModelError(f"The asset card '{name}' cannot be read: {ex}") from ex

    if not isinstance(section, Mapping):
        raise UnitModelError(f"The asset card '{name}' is not one of a unit model: it has no section 'units'.")

    # Before anything is fetched that cannot be used.
    if section.get("trust_pickle_required") and not trust_pickle:
        raise UnitModelError(
            f"The unit model of the asset card '{name}' is a pickle (a scikit-learn joblib file), which can run code "
            "when it is read. If you trust its publisher, set `trust_pickle: true` (`load_units(name, "
            "trust_pickle=True)`)."
        )

    rate = card.maybe_get_field("unit_rate")

    try:
        path = fetch_card(card)
    except CheckpointError as ex:
        raise UnitModelError(str(ex)) from ex

    return CardUnits(path, str(section.get("label_set", "km")), 50 if rate is None else rate.as_(int))
