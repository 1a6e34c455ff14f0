"""ABX discriminability: are two tokens of one phone closer to each other than to a token of another?

The conventions are those of the ZeroSpeech challenge (Schatz et al., 2013; libri-light ``eval/ABX_src``), with the
frame span of ABXpy and fastabx: see the modules.
"""

from __future__ import annotations

from hubert_plugin.analysis.abx.items import Items as Items
from hubert_plugin.analysis.abx.items import read_items as read_items
from hubert_plugin.analysis.abx.score import AbxCollector as AbxCollector
from hubert_plugin.analysis.abx.score import AbxScore as AbxScore
from hubert_plugin.analysis.abx.score import abx_score as abx_score
from hubert_plugin.analysis.abx.task import AbxTask as AbxTask
from hubert_plugin.analysis.abx.task import make_task as make_task

__all__ = ["AbxCollector", "AbxScore", "AbxTask", "Items", "abx_score", "make_task", "read_items"]
