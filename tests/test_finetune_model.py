"""What a recogniser takes from the layers of its encoder, and which gradients it gives back."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from ctc_builders import make_batch, run, small_config, small_model
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.config import ModelSection
from fairseq2.runtime.dependency import get_dependency_resolver

from hubert_plugin import load_hubert
from hubert_plugin.errors import CheckpointError, ConfigError
from hubert_plugin.models.export import export_hubert
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.tasks.pretrained import PretrainedSection, copy_parameters, open_pretrained, set_model
from hubert_plugin.text.vocabulary import CtcVocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


def write_run(folder: Path, model: HubertCtcModel) -> None:
    """Write what a run of ``finetune`` leaves of a model."""
    weights = folder / "checkpoints/step_1/model/pp_00/tp_00/sdp_00.pt"

    weights.parent.mkdir(parents=True)

    torch.save(model.state_dict(), weights)

    content = {"model_family": "hubert_ctc", "model_config": asdict(model.config)}

    (folder / "checkpoints/model.yaml").write_text(json.dumps(content))


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

    def test_what_a_refused_export_advises_can_be_done(self, tmp_path: Path) -> None:
        write_run(tmp_path / "probe", small_model(layer_pooling="weighted"))

        with pytest.raises(CheckpointError) as info:
            export_hubert(tmp_path / "probe", tmp_path / "out.pt", format="fairseq")

        (advice,) = re.findall("`(export_hubert.*?)`", str(info.value))

        advice = advice.replace("MODEL", str(tmp_path / "probe")).replace("TARGET", str(tmp_path / "out.pt"))

        eval(advice, {"export_hubert": export_hubert, "load_hubert": load_hubert})

        assert (tmp_path / "out.pt").is_file()

    def test_output_layer_that_is_kept_keeps_them(self, tmp_path: Path) -> None:
        probe = small_model(layer_pooling="weighted").eval()

        with torch.no_grad():
            probe.layer_weights.weight.copy_(torch.tensor([2.0, -1.0, 0.5]))  # type: ignore[union-attr]

        write_run(tmp_path / "probe", probe)

        section, gangs = PretrainedSection(output_layer="keep"), create_fake_gangs(torch.device("cpu"))

        pretrained = open_pretrained(str(tmp_path / "probe"), section, gangs)

        assert pretrained is not None and pretrained.layer_pooling == "weighted"

        torch.manual_seed(1)

        model = create_hubert_ctc_model(small_config(layer_pooling="weighted")).eval()

        copy_parameters(model, pretrained, section)

        waveforms = make_batch([0]).waveforms

        assert torch.equal(model(waveforms)[0], probe(waveforms)[0])

    @pytest.mark.parametrize("kept", ["last", "weighted"])
    def test_output_layer_that_is_kept_reads_what_it_learned_to_read(self, kept: str) -> None:
        def model_with(pooling: str | None, **overrides: object) -> dict[str, Any]:
            section = ModelSection(family="hubert_ctc", arch="tiny", config_overrides=overrides)

            set_model(
                get_dependency_resolver(),
                section,
                CtcVocabulary(("<s>", "|", "A")),
                None,
                train_convolutions=False,
                layer_pooling=pooling,
            )

            return cast("dict[str, Any]", section.config_overrides)

        assert model_with(kept)["layer_pooling"] == kept
        assert model_with(kept, layer_pooling=kept)["layer_pooling"] == kept

        # A new output layer may read anything.
        assert model_with(None, layer_pooling="weighted")["layer_pooling"] == "weighted"

        other = {"last": "weighted", "weighted": "last"}[kept]

        with pytest.raises(ConfigError, match=f"`model.config_overrides.layer_pooling` is '{other}', but .* '{kept}'"):
            model_with(kept, layer_pooling=other)

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
