"""``finetune`` as a user runs it: from a pretrained run to a recogniser that loads, resumes and exports.

CPU and float32, so equal means equal to the last bit where it says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_MODEL, load_weights, merge, pretrain_config, read_metrics, write_config
from processes import command_server, start_ranks, wait_for_all, wait_until
from transcribed import assert_ok, exact_config, finetune, finetune_args, finetune_config, make_transcribed

from hubert_plugin import export_hubert, load_hubert, load_hubert_ctc
from hubert_plugin.text.vocabulary import CtcVocabulary

COMPARED = ("Loss", "NLL Loss", "Gradient Norm", "Learning Rate", "Symbols", "Word Error Rate (WER)")


@dataclass
class World:
    """A corpus with transcripts and labels, and a model pretrained on it."""

    corpus: Path
    pretrained: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("finetune")

    corpus = make_transcribed(folder / "corpus", label_sets={"km": 8})

    config = pretrain_config(corpus, regime={"num_steps": 4}, report={"enabled": False})

    run = command_server().pretrain(folder / "pretrained", write_config(folder / "pretrain.yaml", config))

    assert_ok(run)

    return World(corpus, folder / "pretrained")


def start_from(world: World, **sections: Any) -> dict[str, Any]:
    """The configuration of a run from the pretrained model: its architecture is not said again."""
    config = finetune_config(world.corpus, pretrained=str(world.pretrained))

    config["model"] = {"config_overrides": {"encoder": {"layer_drop_p": 0.3, "dropout_p": 0.1}}}

    return merge(config, sections)


def losses(output_dir: Path, kind: str = "train") -> dict[int, list[tuple[Any, ...]]]:
    """The compared values of each step; a step that ran twice, before and after a kill, has two entries."""
    values: dict[int, list[tuple[Any, ...]]] = {}

    for record in read_metrics(output_dir, kind):
        values.setdefault(record["Step"], []).append(tuple(record.get(k) for k in COMPARED))

    return values


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configuration and the folder of an uninterrupted run: frozen at first, everything drawn that can be."""
    folder = tmp_path_factory.mktemp("reference")

    regime = {"num_steps": 24, "keep_last_n_checkpoints": None, "keep_best_n_checkpoints": None}

    config = write_config(folder / "config.yaml", start_from(world, freezing={"encoder_updates": 8}, regime=regime))

    assert_ok(finetune(folder / "out", config))

    return config, folder / "out"


def test_recogniser_loads_and_says_its_symbols(reference: tuple[Path, Path], world: World) -> None:
    _, out = reference

    model = load_hubert_ctc(out)

    assert CtcVocabulary.of_config(model.config).symbols == CtcVocabulary.named("fairseq_letters").symbols

    # The architecture is the pretrained model's, dropout the configuration's.
    assert (model.config.encoder.model_dim, model.config.encoder.dropout_p) == (TINY_MODEL["model_dim"], 0.1)

    report = json.loads((out / "report.json").read_text())

    assert report["pretrained"] == str(world.pretrained)
    assert report["data"]["train"]["num_utterances"] == 24
    assert report["wer"] == read_metrics(out, "valid")[-1]["Word Error Rate (WER)"]

    # The encoder alone loads, too.
    assert load_hubert(out).config.heads == []


def test_loss_falls(reference: tuple[Path, Path]) -> None:
    values = [entry[0][0] for entry in losses(reference[1]).values()]

    assert np.mean(values[-4:]) < 0.9 * np.mean(values[:4])


def test_frozen_is_equal_to_the_last_bit(reference: tuple[Path, Path], world: World) -> None:
    """The encoder for 8 updates, the convolutions for ever, whatever layer drop, masks and dropout do."""
    (start,) = (world.pretrained / "checkpoints").glob("step_*")

    before = {f"hubert.{k}": v for k, v in load_weights(start).items() if not k.startswith("target_heads.")}

    at_8, at_24 = (load_weights(reference[1] / f"checkpoints/step_{step}") for step in (8, 24))

    assert {k for k in at_8 if k.startswith("hubert.")} == before.keys()

    for name, value in before.items():
        assert torch.equal(at_8[name], value), name

        is_conv = ".feature_extractor." in name

        # A key projection's bias has no effect on attention, and so no gradient but noise.
        if not name.endswith("k_proj.bias"):
            assert torch.equal(at_24[name], value) == is_conv, name

    assert not torch.equal(at_8["final_proj.weight"], at_24["final_proj.weight"])


@pytest.mark.parametrize("format", ["huggingface", "torchaudio", "fairseq"])
def test_recogniser_is_exported(format: str, reference: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / ("hf" if format == "huggingface" else "model.pt")

    export_hubert(reference[1], target, format=format)

    ours, again = load_hubert_ctc(reference[1]), load_hubert_ctc(target)

    waveform = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected, found = ours(waveform)[0], again(waveform)[0]

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    if format == "huggingface":
        assert json.loads((target / "vocab.json").read_text())["|"] == 4
        assert again.config.symbols == ours.config.symbols


def test_killed_run_goes_on_to_the_same_losses_and_weights(
    reference: tuple[Path, Path], world: World, tmp_path: Path
) -> None:
    """Killed while the encoder is frozen and when it no longer is; the pretrained model is gone by then."""
    config_file, expected = reference

    config = json.loads(config_file.read_text())

    config["pretrained"] = str(tmp_path / "moved")

    (tmp_path / "moved").symlink_to(world.pretrained)

    file = write_config(tmp_path / "config.yaml", config)

    out = tmp_path / "out"

    for step in (6, 14):
        run = command_server().start(*finetune_args(out, file))

        def reached(step: int = step, run: Any = run) -> bool:
            try:
                return run.poll() is not None or any(r["Step"] >= step for r in read_metrics(out))
            except ValueError:  # a line is half-written
                return False

        wait_until(reached, run=run)

        assert run.poll() is None, run.raw[-3000:]

        run.kill()

    (tmp_path / "moved").unlink()

    run = finetune(out, file)

    assert_ok(run)

    assert "Resuming from step " in run.raw

    for kind in ("train", "valid"):
        theirs, ours = losses(expected, kind), losses(out, kind)

        assert ours.keys() == theirs.keys()

        for step, entries in ours.items():
            assert set(entries) == set(theirs[step]), f"{kind}, step {step}"

    assert any(len(entries) > 1 for entries in losses(out).values())

    ours, theirs = (load_weights(o / "checkpoints/step_24") for o in (out, expected))

    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_two_ranks_train_as_one_that_accumulates(world: World, tmp_path: Path) -> None:
    """Same sentences, same normaliser, while the encoder is frozen and after; nothing in the model is drawn."""
    sections: dict[str, Any] = {
        "freezing": {"encoder_updates": 2},
        "task": {"config": {"global_batch_seconds": 12.0}},
        "regime": {"num_steps": 4},
    }

    file = write_config(tmp_path / "config.yaml", exact_config(world.corpus, **sections))

    assert_ok(finetune(tmp_path / "one", file))

    wait_for_all(start_ranks(finetune_args(tmp_path / "two", file), 2))

    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))

    for a, b in zip(one, two, strict=True):
        for name in ("Loss", "NLL Loss", "Gradient Norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), (a["Step"], name)

        assert a["Number of Examples"] == b["Number of Examples"]

    valid_one, valid_two = (read_metrics(tmp_path / name, "valid")[-1] for name in ("one", "two"))

    for name in ("Loss", "Word Error Rate (WER)", "Character Error Rate (CER)", "Number of Examples"):
        assert valid_two[name] == pytest.approx(valid_one[name], rel=1e-3), name

    ours, theirs = (load_weights(tmp_path / name / "checkpoints/step_4") for name in ("two", "one"))

    for name, value in theirs.items():
        # A key projection's bias has no effect on attention: Adam makes steps of what is only rounding.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_sharded_parameters_give_the_losses_of_whole_ones(world: World, tmp_path: Path) -> None:
    """What is frozen for ever, at first and never is in the same shards; gradients are summed once an update."""
    sections: dict[str, Any] = {
        "freezing": {"encoder_updates": 2},
        "regime": {"num_steps": 5},
        "trainer": {"grad_accumulation": {"num_batches": 2, "no_sync": True}},
    }

    file = write_config(
        tmp_path / "config.yaml", exact_config(world.corpus, pretrained=str(world.pretrained), **sections)
    )

    wait_for_all(start_ranks(finetune_args(tmp_path / "ddp", file), 2))
    wait_for_all(start_ranks(finetune_args(tmp_path / "fsdp", file, "trainer.data_parallelism=fsdp"), 2))

    ddp, fsdp = (read_metrics(tmp_path / name) for name in ("ddp", "fsdp"))

    assert len(fsdp) == 5

    for a, b in zip(ddp, fsdp, strict=True):
        for name in ("Loss", "NLL Loss", "Gradient Norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-3), (a["Step"], name)


def test_sentencepiece_model_is_trained_on_the_way_and_kept(world: World, tmp_path: Path) -> None:
    tokenizer = {"sentencepiece": {"vocab_size": 20, "model_type": "bpe"}}

    config = write_config(tmp_path / "config.yaml", finetune_config(world.corpus, tokenizer=tokenizer))

    out = tmp_path / "out"

    assert_ok(finetune(out, config, "regime.num_steps=4"))

    model = (out / "tokenizer.model").read_bytes()

    vocabulary = CtcVocabulary.of_config(load_hubert_ctc(out).config)

    assert (vocabulary.kind, len(vocabulary)) == ("pieces", 20)

    assert_ok(finetune(out, config, "regime.num_steps=8"))

    assert (out / "tokenizer.model").read_bytes() == model

    # And brought along to another run.
    brought = write_config(
        tmp_path / "brought.yaml",
        finetune_config(world.corpus, tokenizer={"path": str(out / "tokenizer.model")}, regime={"num_steps": 4}),
    )

    assert_ok(finetune(tmp_path / "brought", brought))

    assert load_hubert_ctc(tmp_path / "brought").config.symbols == list(vocabulary.symbols)


def test_fine_tuned_model_is_tuned_further_with_its_output_layer(
    reference: tuple[Path, Path], world: World, tmp_path: Path
) -> None:
    sections: dict[str, Any] = {
        "pretrained": str(reference[1]),
        "pretraining": {"output_layer": "keep", "step": 24},
        "regime": {"num_steps": 4, "validate_at_start": True},
    }

    file = write_config(tmp_path / "config.yaml", start_from(world, **sections))

    assert_ok(finetune(tmp_path / "out", file))

    # Before its first update it is what the other run was in the end.
    first, last = read_metrics(tmp_path / "out", "valid")[0], read_metrics(reference[1], "valid")[-1]

    assert first["Loss"] == pytest.approx(last["Loss"], rel=1e-5)


def test_best_checkpoint_has_the_lowest_word_error_rate(reference: tuple[Path, Path]) -> None:
    from hubert_plugin.models.interop.sources import find_checkpoint

    rates = {r["Step"]: r["Word Error Rate (WER)"] for r in read_metrics(reference[1], "valid")}

    best = int(find_checkpoint(reference[1], "best").name.removeprefix("step_"))

    assert rates[best] == min(rates.values())


def test_convolutions_rest_where_they_are_pretrained(
    reference: tuple[Path, Path], world: World, tmp_path: Path
) -> None:
    """At random they are good for nothing: there they are trained, unless the configuration says otherwise."""
    assert load_hubert_ctc(reference[1]).config.encoder.feature_grad_scale == 0.0

    regime = {"num_steps": 2, "validate_every_n_steps": None, "checkpoint_every_n_steps": 1}

    dataset = {"valid_split": None}

    config = finetune_config(world.corpus, regime={**regime, "score_metric": None}, dataset=dataset)

    for name, frozen in (("free", None), ("frozen", True)):
        file = write_config(tmp_path / f"{name}.yaml", merge(config, {"freezing": {"convolutions": frozen}}))

        assert_ok(
            finetune(tmp_path / name, file, "regime.keep_last_n_checkpoints=2", "regime.keep_best_n_checkpoints=null")
        )

        first, second = (load_weights(tmp_path / name / f"checkpoints/step_{step}") for step in (1, 2))

        convolutions = [k for k in first if ".feature_extractor." in k]

        assert convolutions

        assert all(torch.equal(first[k], second[k]) for k in convolutions) == bool(frozen)


def test_minutes_are_drawn(world: World, tmp_path: Path) -> None:
    file = write_config(tmp_path / "config.yaml", finetune_config(world.corpus, regime={"num_steps": 4}))

    assert_ok(finetune(tmp_path / "out", file, "dataset.train_minutes=0.4"))

    data = json.loads((tmp_path / "out/report.json").read_text())["data"]

    assert data["train"]["num_utterances"] < 24 and data["valid"]["num_utterances"] == 4
    assert 0.4 <= data["train"]["minutes"] < 0.46
