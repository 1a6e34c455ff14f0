"""HuBERT for fairseq2: units, masked prediction, refinement, fine-tuning.

Importing this package imports no torch. The public names below are loaded when they are first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubert_plugin._native import preload_libsndfile

__version__ = "0.1.0"

preload_libsndfile()

# In the root of a checkout this folder is found before an installation, and `recipes` and `assets` lie beside it.
if not Path(__file__).with_name("recipes").is_dir() and Path(__file__).parents[1].joinpath("recipes/hubert").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

_PUBLIC = {
    "CtcVocabulary": "hubert_plugin.text.vocabulary",
    "HubertConfig": "hubert_plugin.models.hubert.config",
    "HubertCtcConfig": "hubert_plugin.models.hubert_ctc.config",
    "HubertCtcModel": "hubert_plugin.models.hubert_ctc.model",
    "HubertModel": "hubert_plugin.models.hubert.model",
    "export_hubert": "hubert_plugin.models.export",
    "load_hubert": "hubert_plugin.models.hubert.hub",
    "load_hubert_ctc": "hubert_plugin.models.hubert_ctc.hub",
    "load_units": "hubert_plugin.units.model",
    "register_criterion": "hubert_plugin.registry",
    "register_feature_source": "hubert_plugin.registry",
    "register_target_head": "hubert_plugin.registry",
    "register_task": "hubert_plugin.registry",
    "register_unit_model": "hubert_plugin.registry",
    "setup_fairseq2_extension": "hubert_plugin.extension",
}

__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604

if TYPE_CHECKING:
    from hubert_plugin.extension import setup_fairseq2_extension as setup_fairseq2_extension
    from hubert_plugin.models.export import export_hubert as export_hubert
    from hubert_plugin.models.hubert.config import HubertConfig as HubertConfig
    from hubert_plugin.models.hubert.hub import load_hubert as load_hubert
    from hubert_plugin.models.hubert.model import HubertModel as HubertModel
    from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig as HubertCtcConfig
    from hubert_plugin.models.hubert_ctc.hub import load_hubert_ctc as load_hubert_ctc
    from hubert_plugin.models.hubert_ctc.model import HubertCtcModel as HubertCtcModel
    from hubert_plugin.registry import register_criterion as register_criterion
    from hubert_plugin.registry import register_feature_source as register_feature_source
    from hubert_plugin.registry import register_target_head as register_target_head
    from hubert_plugin.registry import register_task as register_task
    from hubert_plugin.registry import register_unit_model as register_unit_model
    from hubert_plugin.text.vocabulary import CtcVocabulary as CtcVocabulary
    from hubert_plugin.units.model import load_units as load_units


def __getattr__(name: str) -> Any:
    if (module := _PUBLIC.get(name)) is None:
        raise AttributeError(f"module 'hubert_plugin' has no attribute '{name}'")

    from importlib import import_module

    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
