"""Names of cards in the configuration of a training run: fairseq2 says that one is not known, but neither where it
stands nor which are."""

from __future__ import annotations

from fairseq2.recipe.config import DatasetSection, ModelSection
from fairseq2.runtime.dependency import DependencyResolver

from hubert_plugin.data.dataset import HUBERT_DATASET
from hubert_plugin.models.interop.cards import list_cards, open_card_store
from hubert_plugin.registry import unknown_name_error


def check_card_names(resolver: DependencyResolver, model: ModelSection, dataset: DatasetSection) -> None:
    """Check ``model.name`` and ``dataset.name``.

    :raises CheckpointError: The folders of cards cannot be read.
    :raises ConfigError: There is no such card; names the nearest.
    """
    store = open_card_store(resolver)

    def is_unknown(name: str | None) -> bool:
        return name is not None and store.maybe_retrieve_card(name) is None

    if is_unknown(model.name):
        raise unknown_name_error("model (`model.name`)", str(model.name), list_cards())

    # A folder of manifests takes the place of the name.
    if getattr(dataset, "manifest_dir", None) is None and is_unknown(dataset.name):
        names = list_cards("dataset_family", [HUBERT_DATASET])

        raise unknown_name_error("dataset (`dataset.name`)", str(dataset.name), names)
