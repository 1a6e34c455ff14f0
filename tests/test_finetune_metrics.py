"""What recognition tells of its training and its errors."""

from __future__ import annotations

import math

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from ctc_builders import SYMBOLS, make_batch, run, small_model, values_of
from fairseq2.metrics import MetricBag

from hubert_plugin.criteria.ctc import CtcConfig, CtcCriterion

pytestmark = pytest.mark.usefixtures("one_thread")


class TestMetrics:
    def test_loss_is_told_in_bits_by_sentence_and_by_symbol(self) -> None:
        model, batch = small_model().train(), make_batch([0, 1, 2])

        loss, _, bag = run(model, batch)

        values = values_of(model, bag)

        assert values["loss"] == pytest.approx(loss.item() / 3 / math.log(2), rel=1e-6)
        assert values["nll_loss"] == pytest.approx(loss.item() / batch.num_symbols / math.log(2), rel=1e-6)
        assert values["audio_seconds"] == pytest.approx(batch.audio_seconds)
        assert values["padding_share"] == pytest.approx(batch.padded_seconds / (batch.waveforms.numel() / 16_000))

        # In training nothing is decoded.
        assert "wer" not in values and "cer" not in values and not any("edits" in k for k in values)

    def test_error_rates_are_those_of_the_best_path(self) -> None:
        model, batch = small_model().eval(), make_batch([0, 1])

        batch.texts = ["AB C", "B"]

        criterion = CtcCriterion(model, model, CtcConfig())

        def path(text: str) -> list[int]:
            return [i for c in text for i in (SYMBOLS.index(c), 0)]

        # One letter wrong and one word too many; the second is right. What stands in padding is no text.
        hypotheses = [path("AA|C|B|"), path("B|")]

        logits = torch.zeros(2, max(batch.num_frames), len(SYMBOLS))

        for row, hypothesis in enumerate(hypotheses):
            frames = hypothesis + [0] * (batch.num_frames[row] - len(hypothesis)) + [SYMBOLS.index("C")] * 999

            for t in range(logits.size(1)):
                logits[row, t, frames[t]] = 5.0

        assert criterion.transcribe(logits, batch.num_frames) == ["AA C B", "B"]

        bag = MetricBag(torch.device("cpu"))

        criterion.prepare_metric_bag(bag)

        criterion._compare(bag, batch, logits)

        values = values_of(model, bag)

        # Words: AB -> AA, B inserted, of 3. Characters: B -> A, " B" inserted, of 5 ("AB C", "B").
        assert values["wer"] == pytest.approx(100 * 2 / 3)
        assert values["cer"] == pytest.approx(100 * 3 / 5)
