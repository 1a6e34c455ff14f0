"""Ways to train large models give the losses of the plain way: layers recomputed, sharded, compiled."""

from __future__ import annotations

from pathlib import Path
from shutil import which

import pytest
from builders import NO_DROPOUT, load_weights, make_corpus, pretrain_config, read_metrics, write_config
from processes import assert_answer, command_server, pretrain_args, start_pretrain_ranks, wait_for_all, wait_until

from hubert_plugin import load_hubert
from hubert_plugin.errors import CheckpointError

SHARDED = ["trainer.data_parallelism=fsdp", "optimizer.name=adamw"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("scale"))


def losses(output_dir: Path) -> list[float]:
    return [r["Loss"] for r in read_metrics(output_dir) if "Loss" in r]


def test_activation_checkpointing_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    """Dropout and layer drop included: what is recomputed draws the same."""
    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 4}))

    for name, overrides in (("plain", []), ("ac", ["trainer.activation_checkpointing.mode=layerwise"])):
        run = command_server().pretrain(tmp_path / name, file, *overrides)

        assert run.poll() == 0, run.raw[-3000:]

    assert losses(tmp_path / "ac") == losses(tmp_path / "plain")

    weights = [load_weights(tmp_path / name / "checkpoints/step_4") for name in ("plain", "ac")]

    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name


def test_sharded_parameters_give_the_losses_of_whole_ones(corpus: Path, tmp_path: Path) -> None:
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(corpus, model={"config_overrides": NO_DROPOUT}, regime={"num_steps": 4}),
    )

    wait_for_all(start_pretrain_ranks(tmp_path / "ddp", file, 2, "optimizer.name=adamw"))
    wait_for_all(start_pretrain_ranks(tmp_path / "fsdp", file, 2, *SHARDED))

    assert len(losses(tmp_path / "fsdp")) == 4
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-3)

    # The other way round is refused: the checkpoint is in two parts.
    (run, other) = start_pretrain_ranks(tmp_path / "fsdp", file, 2, "optimizer.name=adamw", "regime.num_steps=8")

    assert run.wait() == 2 and other.wait() == 2
    assert "sharded over 2 processes (FSDP), but is to be whole" in run.text
    assert "(`init.source` of `pretrain`, `pretrained` of `finetune`)" in run.text

    # A part that was lost is named, to who goes on with the run and to who reads its model.
    (lost,) = (tmp_path / "fsdp/checkpoints/step_4/model").rglob("sdp_01.pt")

    lost.unlink()

    (run, other) = start_pretrain_ranks(tmp_path / "fsdp", file, 2, *SHARDED, "regime.num_steps=8")

    assert run.wait() == 2 and other.wait() == 2

    assert_answer(run, [f"'{lost}' is missing", "lacks 1 of the 2 shards that its optimizer's state has"])

    with pytest.raises(CheckpointError, match="lacks 1 of the 2 shards"):
        load_hubert(tmp_path / "fsdp")


def test_shards_that_sum_gradients_once_an_update_give_the_losses_of_whole_parameters(
    corpus: Path, tmp_path: Path
) -> None:
    """All presets set ``no_sync``, for which fairseq2 calls a method that PyTorch has under another name."""
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus,
            model={"config_overrides": NO_DROPOUT},
            regime={"num_steps": 4},
            trainer={"grad_accumulation": {"num_batches": 2, "no_sync": True}},
        ),
    )

    whole = pretrain_args(tmp_path / "whole", file, "optimizer.name=adamw", "trainer.grad_accumulation.num_batches=4")

    wait_for_all([command_server().start(*whole), *start_pretrain_ranks(tmp_path / "fsdp", file, 2, *SHARDED)])

    assert len(losses(tmp_path / "fsdp")) == 4
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "whole"), rel=1e-3)


def test_sharded_parameters_go_with_layers_that_one_rank_only_drops(corpus: Path, tmp_path: Path) -> None:
    """Every rank draws its own; all must gather the parts of all layers, or they wait for each other for ever."""
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus, model={"config_overrides": {**NO_DROPOUT, "layer_drop_p": 0.5}}, regime={"num_steps": 8}
        ),
    )

    wait_for_all(start_pretrain_ranks(tmp_path / "out", file, 2, *SHARDED))

    assert len(losses(tmp_path / "out")) == 8


def test_muon_refuses_sharded_parameters(corpus: Path, tmp_path: Path) -> None:
    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 4}))

    (run, other) = start_pretrain_ranks(tmp_path / "out", file, 2, "trainer.data_parallelism=fsdp")

    assert run.wait() == 2 and other.wait() == 2

    assert_answer(run, ["needs whole matrices", "Set `optimizer.name=adamw`"])


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_give_the_losses_of_plain_ones(corpus: Path, tmp_path: Path) -> None:
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(corpus, model={"config_overrides": NO_DROPOUT}, regime={"num_steps": 8}),
    )

    # Muon rounds to bfloat16, which makes more of differences in rounding than there is.
    run = command_server().pretrain(tmp_path / "plain", file, "optimizer.name=adamw")

    assert run.poll() == 0, run.raw[-3000:]

    run = command_server().start(
        *pretrain_args(tmp_path / "compiled", file, "model.compile=true", "optimizer.name=adamw")
    )

    wait_until(lambda: run.poll() is not None, 400.0, run)

    assert run.poll() == 0, run.raw[-3000:]

    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
