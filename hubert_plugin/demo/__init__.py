"""The embedded demo corpus: synthesised speech of many speakers with exact phone times.

Importing this package imports numpy, but no torch, and never the speech synthesiser (GPL-3), which lives in worker
processes only: see :mod:`hubert_plugin.demo.espeak`.
"""

from __future__ import annotations

from hubert_plugin.demo.corpus import DemoCorpusConfig as DemoCorpusConfig
from hubert_plugin.demo.corpus import ensure_demo_corpus as ensure_demo_corpus
from hubert_plugin.demo.phones import PHONES as PHONES
from hubert_plugin.demo.phones import SILENCE as SILENCE
from hubert_plugin.demo.phones import Segment as Segment
from hubert_plugin.demo.phones import frame_phones as frame_phones
from hubert_plugin.demo.tables import read_alignment as read_alignment

__all__ = [
    "PHONES",
    "SILENCE",
    "DemoCorpusConfig",
    "Segment",
    "ensure_demo_corpus",
    "frame_phones",
    "read_alignment",
]
