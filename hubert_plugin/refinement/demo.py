"""The demo corpus as ``dataset.demo`` names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hubert_plugin.config_check import ConfigSource, check_config_keys
from hubert_plugin.demo import DemoCorpusConfig
from hubert_plugin.demo.cache import default_cache_dir
from hubert_plugin.demo.corpus import check_config, corpus_name
from hubert_plugin.refinement.settings import structure


def demo_config(options: Mapping[str, object]) -> DemoCorpusConfig:
    """Return the corpus's options.

    :raises ConfigError: A key or a value cannot be used.
    """
    check_config_keys(DemoCorpusConfig, [ConfigSource("dataset.demo", options)])

    config = structure(DemoCorpusConfig, options)

    check_config(config)

    return config


def find_demo(options: Mapping[str, object]) -> Path | None:
    """Return the folder of the corpus if it was made before; makes nothing."""
    config = demo_config(options)

    folder = Path(config.cache_dir or default_cache_dir()).expanduser().absolute() / corpus_name(config)

    return folder if (folder / "corpus.json").is_file() else None
