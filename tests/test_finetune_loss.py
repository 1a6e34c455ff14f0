"""The loss of recognition against an oracle that sums all paths, fairseq's emissions, and PyTorch's own loss."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_MODEL, one_thread  # noqa: F401 - a fixture
from fairseq2.metrics import MetricBag
from numpy.typing import NDArray
from torch import Tensor

from hubert_plugin import HubertCtcConfig, HubertCtcModel, load_hubert_ctc
from hubert_plugin.criteria.ctc import CtcConfig, CtcCriterion
from hubert_plugin.data.ctc_batch import CtcBatch, collate_ctc
from hubert_plugin.data.ctc_loader import CtcMaskConfig
from hubert_plugin.data.masks import MaskConfig, sample_mask
from hubert_plugin.errors import CheckpointError, TextError
from hubert_plugin.models.export import export_hubert
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.tasks.tri_stage import TriStageStepsConfig, create_tri_stage

SYMBOLS = ["<s>", "|", "A", "B", "C"]

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


def small_config(**overrides: Any) -> HubertCtcConfig:
    encoder = HubertConfig(
        **{**TINY_MODEL, "conv_layers": [tuple(layer) for layer in TINY_MODEL["conv_layers"]]},
        dropout_p=0.0,
        attn_dropout_p=0.0,
        input_dropout_p=0.0,
        layer_drop_p=0.0,
        feature_grad_scale=0.0,
    )

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


class TestLayerWeights:
    def test_sum_starts_as_the_mean_of_all_layers(self) -> None:
        model, batch = small_model(layer_pooling="weighted").eval(), make_batch([0])

        with torch.no_grad():
            features = model.hubert.encode(batch.waveforms, taps=(0, 1, 2), num_layers=2)

            expected = model.final_proj(torch.stack([features.layers[i] for i in range(3)]).mean(0))

            logits, _ = model(batch.waveforms)

        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

    def test_weights_learn_while_the_encoder_rests(self) -> None:
        model, batch = small_model(layer_pooling="weighted").train(), make_batch([0, 1])

        model.hubert.requires_grad_(False)

        run(model, batch)[0].backward()

        assert model.layer_weights is not None and model.layer_weights.weight.grad is not None
        assert model.layer_weights.weight.grad.abs().sum() > 0
        assert all(p.grad is None for p in model.hubert.parameters())

    def test_export_is_refused(self, tmp_path: Path) -> None:
        for format in ("huggingface", "torchaudio", "fairseq"):
            with pytest.raises(CheckpointError, match="no place for a weighted sum of layers"):
                export_hubert(small_model(layer_pooling="weighted"), tmp_path / format, format=format)

    def test_options_are_checked(self) -> None:
        config = small_config(layer_pooling="mean", symbol_scores=[0.0])

        assert "`layer_pooling` must be 'last' or 'weighted'" in str(config.validate())
        assert "`symbol_scores` must be 5 numbers" in str(config.validate())


class TestFrozenPass:
    def test_encoder_without_gradient_gets_none_or_zeros(self) -> None:
        model, batch = small_model().train(), make_batch([0], masked=True)

        for zero_grads in (False, True):
            model.zero_grad()

            logits, _ = model(
                batch.waveforms, temporal_mask=batch.temporal_mask, encoder_grad=False, zero_grads=zero_grads
            )

            logits.sum().backward()

            grads = [p.grad for p in model.hubert.parameters()]

            assert all(g is None for g in grads) != zero_grads
            assert all(g is None or not g.any() for g in grads)
            assert model.final_proj.weight.grad is not None and model.final_proj.weight.grad.any()

    @pytest.mark.parametrize("pooling", ["last", "weighted"])
    def test_data_parallel_reduction_gets_every_gradient(self, pooling: str) -> None:
        """What is trained but has no part in the result gets zeros: no wrapper waits for ever."""
        model = small_model(layer_pooling=pooling).train()

        model.hubert.encoder_frontend.feature_extractor.requires_grad_(False)

        logits, _ = model(make_batch([0]).waveforms, zero_grads=True)

        logits.sum().backward()

        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_tri_stage_by_updates_is_fairseqs_schedule_of_base_10h() -> None:
    """fairseq ``tri_stage_lr_scheduler.py``: linear, flat, exponential; base_10h.yaml ends at 0.49 of the peak. A
    hundred times shorter."""
    param = torch.nn.Parameter(torch.zeros(1))

    optimizer = torch.optim.AdamW([param], lr=2e-5)

    schedule = create_tri_stage(optimizer, TriStageStepsConfig(num_warmup_steps=80, num_decay_steps=720))

    rates = []

    for _ in range(251):
        rates.append(schedule.get_last_lr()[0])

        optimizer.step()

        schedule.step()

    def expected(step: int) -> float:
        if step < 80:
            return 2e-7 + (2e-5 - 2e-7) / 80 * step

        return 2e-5 * math.exp(math.log(0.05) / 720 * (step - 80))

    for step in (0, 1, 40, 79, 80, 81, 250):
        assert rates[step] == pytest.approx(expected(step), rel=1e-9), step

    assert rates[-1] / 2e-5 == pytest.approx(0.49, abs=0.005)  # after 25,000 of fairseq's updates
