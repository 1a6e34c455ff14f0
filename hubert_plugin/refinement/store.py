"""OUT: the configuration that it was last run with, and what steps are made from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Final

from hubert_plugin.files import write_text_atomic
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.digests import Digests
from hubert_plugin.refinement.load import IN_OUT, move
from hubert_plugin.refinement.plan import plan_steps
from hubert_plugin.refinement.record import STATE_FOLDER
from hubert_plugin.refinement.settings import dump_yaml, unstructure
from hubert_plugin.refinement.workshop import Workshop

CONFIG_FILE: Final = "refinement.yaml"
"""Below OUT: the configuration of the last run."""


def open_workshop(config: RefinementConfig, out: Path, *, dry: bool = False) -> Workshop:
    """Return what steps are made from, with all steps."""
    shop = Workshop(config, out, Digests(out, out / STATE_FOLDER / "digests.json"), dry=dry)

    shop.steps = {s.key: s for s in plan_steps(config)}

    if config.dataset.manifest_dir is not None:
        shop.manifest_dir = config.dataset.manifest_dir
    elif config.dataset.source is not None and (out / "manifest").is_dir():
        shop.manifest_dir = out / "manifest"

    return shop


def config_text(config: RefinementConfig, out: Path) -> str:
    """Return the configuration as YAML, without what only says how much of it is done now, and without OUT's place."""
    plain = move(unstructure(config), str(out), IN_OUT)

    return "# What `fairseq2 recipe hubert iterate` is to do.\n" + dump_yaml(
        {f.name: plain[f.name] for f in fields(RefinementConfig)}
    )


def save_config(config: RefinementConfig, out: Path) -> None:
    """Write the configuration to OUT, for the report and for whoever runs the folder again."""
    text = config_text(config, out)

    path = out / CONFIG_FILE

    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text_atomic(path, text)
