"""Reads the golden data that real fairseq produced (tests/data/fairseq; classes are offset by 4: see the golden
README)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.interop.fairseq import import_fairseq_config, import_fairseq_state_dict

FAIRSEQ = Path(__file__).parent / "data" / "fairseq"

CASES = ("tiny_post", "tiny_pre", "tiny_tied", "tiny_rate100")


class _Dictionary:
    """Stands in for fairseq's class of that name while a golden checkpoint is read."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_Dictionary.__module__ = "fairseq.data.dictionary"
_Dictionary.__qualname__ = _Dictionary.__name__ = "Dictionary"


def load_checkpoint(case: str) -> dict[str, Any]:
    with torch.serialization.safe_globals([(_Dictionary, "fairseq.data.dictionary.Dictionary")]):
        return torch.load(FAIRSEQ / f"{case}.pt", weights_only=True)  # type: ignore[no-any-return]


class Golden:
    """One golden case: description, arrays and checkpoint."""

    def __init__(self, case: str) -> None:
        self.info = json.loads((FAIRSEQ / f"{case}.json").read_text())
        self.arrays = np.load(FAIRSEQ / f"{case}.npz")
        self.state_dict: dict[str, Tensor] = load_checkpoint(case)["model"]
        self.num_classes: list[int] = self.info["num_classes_with_specials"]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def config(self, **overrides: Any) -> HubertConfig:
        """The configuration with fairseq's class counts (specials included) and its padding in group norm."""
        config = import_fairseq_config(self.info["model_cfg"], self.info["task_cfg"], self.num_classes)

        for head, size in zip(config.heads, self.num_classes, strict=True):
            head.size = size

        return replace(config, group_norm_includes_padding=True, **overrides)

    def model(self, **overrides: Any) -> HubertModel:
        config = self.config(**overrides)

        model = create_hubert_model(config)

        model.load_state_dict(import_fairseq_state_dict(self.state_dict, config, keep_special_rows=True))

        return model

    def waveforms(self, batch: str) -> tuple[Tensor, list[int]]:
        source = self.tensor("unpadded.source").clone()

        lengths: list[int] = self.tensor(f"{'unpadded' if batch == 'short_labels' else batch}.lengths").tolist()

        for row, length in zip(source, lengths, strict=True):
            row[length:] = 0.0

        return source, lengths

    def batch(self, name: str) -> HubertBatch:
        source, lengths = self.waveforms(name)

        mask, padding = self.tensor(f"{name}.mask"), self.tensor(f"{name}.frame_padding_mask")

        masked = (mask & ~padding).flatten().nonzero().squeeze(1)
        unmasked = (~mask & ~padding).flatten().nonzero().squeeze(1)

        targets = [self.tensor(f"{name}.aligned_target_{i}").flatten() for i in range(len(self.num_classes))]

        return HubertBatch(
            waveforms=source,
            num_samples=lengths,
            temporal_mask=mask,
            masked_indices=masked,
            unmasked_indices=unmasked,
            masked_targets=[t[masked] for t in targets],
            unmasked_targets=[t[unmasked] for t in targets],
            ids=["a", "b"],
        )


def golden_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn fairseq's (S, 1 + C) logits, positive first and -inf in its own column, into plain (S, C) scores."""
    scores = logits[:, 1:].clone()

    scores[torch.arange(len(scores)), targets] = logits[:, 0]

    return scores
