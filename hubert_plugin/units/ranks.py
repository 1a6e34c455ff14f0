"""The name under which this room knows :func:`~hubert_plugin.ranks.raise_together`."""

from __future__ import annotations

from hubert_plugin.ranks import raise_together as raise_together
