"""Several ranks (gloo, CPU) train as one rank that accumulates as many batches."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from builders import (
    Run,
    command_server,
    load_weights,
    make_corpus,
    pretrain_args,
    pretrain_config,
    read_metrics,
    write_config,
)

NO_DROPOUT = {"layer_drop_p": 0.0, "dropout_p": 0.0, "input_dropout_p": 0.0, "attn_dropout_p": 0.0}


def start_ranks(output_dir: Path, config: Path, world_size: int, *overrides: str) -> list[Run]:
    """Start ``world_size`` ranks as torchrun does: by environment variables."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

        port = sock.getsockname()[1]

    return [
        command_server().start(
            *pretrain_args(output_dir, config, *overrides),
            env={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            },
        )
        for rank in range(world_size)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("ranks"))


def test_two_ranks_equal_one_rank_that_accumulates_two_batches(corpus: Path, tmp_path: Path) -> None:
    """Trap T12: gradients are divided by the masked frames of all ranks, not by each rank's own."""
    config = pretrain_config(
        corpus, model={"config_overrides": NO_DROPOUT}, regime={"num_steps": 10, "checkpoint_every_n_steps": 10,
                                                                "validate_every_n_steps": 5}
    )  # fmt: skip

    file = write_config(tmp_path / "config.yaml", config)

    one = command_server().start(*pretrain_args(tmp_path / "one", file, "trainer.grad_accumulation.num_batches=2"))

    two = start_ranks(tmp_path / "two", file, 2)

    for run in [one, *two]:
        assert run.wait() == 0, run.raw

    for kind in ("train", "valid"):
        ours, theirs = read_metrics(tmp_path / "two", kind), read_metrics(tmp_path / "one", kind)

        assert len(ours) == len(theirs) > 0

        for a, b in zip(ours, theirs, strict=True):
            assert a["Step"] == b["Step"]
            assert a["Masked Frames"] == b["Masked Frames"]

            for key in ("Loss", "Masked Loss (bits)", "Unmasked Loss (bits)", "Masked Accuracy"):
                assert a[key] == pytest.approx(b[key], rel=1e-5), (kind, a["Step"], key)

    # Epochs end within ten updates of two batches, so their ends are crossed, too.
    assert read_metrics(tmp_path / "two")[-1]["Data Epoch"] > 1

    assert (tmp_path / "two/report.json").exists()

    weights = [load_weights(tmp_path / name / "checkpoints/step_10") for name in ("one", "two")]

    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda m, k=name: f"{k}: {m}")


def test_layers_dropped_on_one_rank_only_neither_hang_nor_part_the_ranks(corpus: Path, tmp_path: Path) -> None:
    """Trap T19: every rank draws its own layers to drop, and the gradients are still summed over all of them."""
    config = pretrain_config(
        corpus,
        model={"config_overrides": {**NO_DROPOUT, "layer_drop_p": 0.5}},
        regime={"num_steps": 8, "checkpoint_every_n_steps": 8, "validate_every_n_steps": 8},
        trainer={"grad_accumulation": {"num_batches": 2, "no_sync": True}},
    )

    file = write_config(tmp_path / "config.yaml", config)

    for run in start_ranks(tmp_path / "out", file, 2):
        assert run.wait() == 0, run.raw

    losses = [r["Loss"] for r in read_metrics(tmp_path / "out") if "Loss" in r]

    assert len(losses) == 8
    assert losses[-1] < losses[0]
