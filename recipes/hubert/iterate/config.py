"""The configuration of ``iterate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hubert_plugin.refinement.config import RefinementConfig


@dataclass(kw_only=True)
class HubertIterateConfig(RefinementConfig):
    """Configures ``fairseq2 recipe hubert iterate``: what is refined, and how much of it is done now."""

    plan: bool = False
    """If ``True``, the steps, their sizes and estimated costs are shown, and nothing is run (``--plan``)."""

    until: str | None = None
    """The last step that is done, such as ``round1/cluster`` (``--until``). ``null``: all."""

    emit_slurm: Path | None = None
    """The folder that batch scripts for SLURM are written to; nothing is run (``--emit-slurm``)."""
