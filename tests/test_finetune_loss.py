"""The loss of recognition against an oracle that sums all paths, fairseq's emissions, and PyTorch's own loss."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from ctc_builders import SYMBOLS, make_batch, run, small_config, small_model, utterance
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin import load_hubert_ctc
from hubert_plugin.criteria.ctc import CtcConfig, CtcCriterion
from hubert_plugin.data.ctc_batch import CtcBatch
from hubert_plugin.errors import TextError
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model

pytestmark = pytest.mark.usefixtures("one_thread")


def paths_loss(log_probs: NDArray[np.float64], symbols: list[int], blank: int) -> float:
    """-log of the sum of the probabilities of all paths that collapse to ``symbols``: Graves et al., 2006, eq. 3."""
    num_frames, vocab_size = log_probs.shape

    total = -math.inf

    for path in product(range(vocab_size), repeat=num_frames):
        collapsed = [s for i, s in enumerate(path) if s != blank and (i == 0 or path[i - 1] != s)]

        if collapsed == symbols:
            total = np.logaddexp(total, sum(log_probs[t, s] for t, s in enumerate(path)))

    return -total


def forward_loss(log_probs: NDArray[np.float64], symbols: list[int], blank: int) -> float:
    """The same by the forward variables of eq. 6-8, for long inputs."""
    states = [blank, *(s for symbol in symbols for s in (symbol, blank))]

    alpha = np.full(len(states), -math.inf)

    alpha[:2] = log_probs[0, states[:2]]

    for frame in log_probs[1:]:
        new = np.full_like(alpha, -math.inf)

        for i, state in enumerate(states):
            value = np.logaddexp(alpha[i], alpha[i - 1] if i else -math.inf)

            if i > 1 and state not in (blank, states[i - 2]):
                value = np.logaddexp(value, alpha[i - 2])

            new[i] = value + frame[state]

        alpha = new

    return -float(np.logaddexp(alpha[-1], alpha[-2]))


class TestLoss:
    @pytest.mark.parametrize("symbols", [[2], [2, 3], [2, 2], [2, 1, 2, 1]])
    def test_two_oracles_agree_with_the_criterion(self, symbols: list[int]) -> None:
        """All paths of five frames, forward variables, and what the criterion computes."""
        logits = torch.randn(1, 5, len(SYMBOLS), generator=torch.Generator().manual_seed(sum(symbols)))

        log_probs = logits[0].double().log_softmax(-1).numpy()

        expected = paths_loss(log_probs, symbols, 0)

        assert forward_loss(log_probs, symbols, 0) == pytest.approx(expected, rel=1e-9)

        batch = make_batch([0])

        batch.num_samples, batch.targets, batch.target_lengths = [400 + 4 * 320], torch.tensor(symbols), [len(symbols)]

        model = small_model()

        loss = CtcCriterion(model, model, CtcConfig()).compute_loss(logits, batch)

        assert loss.item() == pytest.approx(expected, rel=1e-5)

    def test_loss_on_fairseqs_emissions(self, data_dir: Path) -> None:
        """fairseq's logits through the criterion, and fairseq's log-probabilities through the oracle."""
        arrays = np.load(data_dir / "fairseq/tiny_ctc.npz")

        model = load_hubert_ctc(data_dir / "fairseq/tiny_ctc.pt")

        symbols = [model.config.symbols.index(c) for c in "ab|cc|h|"]

        expected = forward_loss(arrays["single.log_probs"][0].astype(np.float64), symbols, 0)

        batch = make_batch([0])

        batch.num_samples, batch.targets, batch.target_lengths = [16_000], torch.tensor(symbols), [len(symbols)]

        loss = CtcCriterion(model, model, CtcConfig()).compute_loss(torch.from_numpy(arrays["single.logits"]), batch)

        assert loss.item() == pytest.approx(expected, rel=1e-5)

        # And the whole way from the waveform.
        batch.waveforms = torch.from_numpy(arrays["padded.source"][:1])

        if arrays["padded.lengths"][0] == 16_000:
            loss, count, _ = run(model, batch)

            assert (count, loss.item()) == (1, pytest.approx(expected, rel=1e-3))

    def test_loss_is_pytorchs_summed_over_sentences(self) -> None:
        model, batch = small_model().eval(), make_batch([0, 1, 2])

        loss, count, _ = run(model, batch)

        with torch.no_grad():
            logits, layout = model(batch.waveforms, batch.num_samples)

        expected = [
            torch.nn.functional.ctc_loss(
                logits[i, : layout.seq_lens[i]].double().log_softmax(-1),
                torch.from_numpy(utterance(i)[1]),
                torch.tensor(layout.seq_lens[i]),
                torch.tensor(len(utterance(i)[1])),
                reduction="sum",
            ).item()
            for i in range(3)
        ]

        assert (count, loss.item()) == (3, pytest.approx(sum(expected), rel=1e-5))

    @pytest.mark.parametrize("conv_norm", ["group", "layer"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_loss_does_not_depend_on_batches_or_padding(self, conv_norm: str, masked: bool) -> None:
        config = small_config()

        config.encoder.conv_norm = conv_norm  # type: ignore[assignment]

        torch.manual_seed(0)

        model = create_hubert_ctc_model(config).train()

        def total(batches: list[CtcBatch]) -> tuple[float, Tensor]:
            model.zero_grad()

            losses = [run(model, batch)[0] for batch in batches]

            torch.stack(losses).sum().backward()

            grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

            return sum(loss.item() for loss in losses), grad

        alone = total([make_batch([i], masked=masked) for i in range(4)])

        for batches in (
            [make_batch([0, 1, 2, 3], masked=masked)],
            [make_batch([3, 1], masked=masked), make_batch([2, 0], masked=masked, extra=5000)],
        ):
            loss, grad = total(batches)

            assert loss == pytest.approx(alone[0], rel=2e-5)
            torch.testing.assert_close(grad, alone[1], rtol=2e-3, atol=2e-4 * alone[1].abs().max().item())

    def test_transcripts_that_cannot_be_emitted_have_no_loss(self) -> None:
        model, batch = small_model(), make_batch([0])

        batch.targets, batch.target_lengths = torch.full((200,), 2), [200]

        assert run(model, batch)[0].item() == 0.0
        assert run(model, batch, zero_infinity=False)[0].isinf()

    def test_half_precision_logits_are_scored_in_float32(self) -> None:
        model, batch = small_model(), make_batch([0, 1])

        criterion = CtcCriterion(model, model, CtcConfig())

        logits = criterion.forward(batch).detach()

        loss = criterion.compute_loss(logits.bfloat16(), batch)

        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(criterion.compute_loss(logits.bfloat16().float(), batch).item(), rel=1e-6)

    def test_models_without_symbols_are_refused(self) -> None:
        model = small_model()

        model.config.symbols = []

        with pytest.raises(TextError, match="does not say which symbols"):
            CtcCriterion(model, model, CtcConfig())
