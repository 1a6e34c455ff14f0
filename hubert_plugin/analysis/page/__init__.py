"""The page that shows a refinement to others: ``index.html``, which needs nothing else, and the numbers as JSON."""

from __future__ import annotations

from hubert_plugin.analysis.page.data import PageData as PageData
