"""A tiny recogniser, batches of random utterances for it, and its criterion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from builders import tiny_config
from fairseq2.metrics import MetricBag
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin import HubertCtcConfig, HubertCtcModel
from hubert_plugin.criteria.ctc import CtcConfig, CtcCriterion
from hubert_plugin.data.ctc_batch import CtcBatch, collate_ctc
from hubert_plugin.data.ctc_loader import CtcMaskConfig
from hubert_plugin.data.masks import MaskConfig, sample_mask
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model

SYMBOLS = ["<s>", "|", "A", "B", "C"]


def small_config(**overrides: Any) -> HubertCtcConfig:
    encoder = tiny_config(feature_grad_scale=0.0, heads=[])

    return HubertCtcConfig(encoder=encoder, vocab_size=len(SYMBOLS), symbols=list(SYMBOLS), **overrides)


def small_model(**overrides: Any) -> HubertCtcModel:
    torch.manual_seed(0)

    return create_hubert_ctc_model(small_config(**overrides))


def utterance(idx: int) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    rng = np.random.default_rng([5, idx])

    words = ["".join(rng.choice(list("ABC"), rng.integers(1, 4))) for _ in range(rng.integers(1, 4))]

    symbols = [SYMBOLS.index(c) for word in words for c in (*word, "|")]

    waveform = 0.1 * rng.standard_normal(int(rng.integers(12_000, 30_000))).astype(np.float32)

    return waveform, np.array(symbols, dtype=np.int64), " ".join(words)


def make_batch(indices: list[int], *, masked: bool = False, extra: int = 0) -> CtcBatch:
    """:param extra: Samples of padding beyond the longest utterance."""
    waveforms, targets, texts = zip(*map(utterance, indices), strict=True)

    def rng(idx: int) -> np.random.Generator:
        return np.random.default_rng([9, idx])

    mask = CtcMaskConfig(channel=MaskConfig(prob=0.5, span_len=4, min_spans=0))

    batch = collate_ctc(
        waveforms,
        targets,
        texts,
        [f"u{i}" for i in indices],
        temporal_masks=[
            sample_mask((w.size - 400) // 320 + 1, mask.time, rng(i)) for w, i in zip(waveforms, indices, strict=True)
        ]
        if masked
        else None,
        channel_masks=[sample_mask(32, mask.channel, rng(i)) for i in indices] if masked else None,
    )

    if extra:
        batch.waveforms = torch.nn.functional.pad(batch.waveforms, (0, extra))

        if batch.temporal_mask is not None:
            width = (batch.waveforms.size(1) - 400) // 320 + 1

            batch.temporal_mask = torch.nn.functional.pad(batch.temporal_mask, (0, width - batch.temporal_mask.size(1)))

    return batch


def run(model: HubertCtcModel, batch: CtcBatch, **config: Any) -> tuple[Tensor, int, MetricBag]:
    criterion = CtcCriterion(model, model, CtcConfig(**config))

    bag = MetricBag(torch.device("cpu"))

    criterion.prepare_metric_bag(bag)

    criterion.set_step_nr(1)

    loss, count = criterion(batch, bag)

    return loss, count, bag


def values_of(model: HubertCtcModel, bag: MetricBag) -> dict[str, Any]:
    values: dict[str, Any] = {name: metric.compute() for name, metric in bag.metrics.items()}

    CtcCriterion(model, model, CtcConfig()).process_metric_values(values)

    return values
