"""What a recogniser takes from the layers of its encoder, and which gradients it gives back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from ctc_builders import make_batch, run, small_config, small_model

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.export import export_hubert

pytestmark = pytest.mark.usefixtures("one_thread")


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
