"""Several ranks (gloo, CPU) train as one rank that accumulates as many batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from builders import NO_DROPOUT, load_weights, make_corpus, make_labels, pretrain_config, read_metrics, write_config
from processes import command_server, free_port, pretrain_args, start_pretrain_ranks, wait_for_all, wait_until

from hubert_plugin.data.manifest import write_manifest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("ranks"))


def train_on_one_and_two_ranks(tmp_path: Path, config: Mapping[str, Any]) -> None:
    """Train on one rank that accumulates two batches into ``tmp_path/one``, on two ranks into ``tmp_path/two``; the
    weights must be the same."""
    file = write_config(tmp_path / "config.yaml", config)

    one = command_server().start(*pretrain_args(tmp_path / "one", file, "trainer.grad_accumulation.num_batches=2"))

    wait_for_all([one, *start_pretrain_ranks(tmp_path / "two", file, 2)])

    step = config["regime"]["num_steps"]

    weights = [load_weights(tmp_path / name / f"checkpoints/step_{step}") for name in ("one", "two")]

    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda m, k=name: f"{k}: {m}")


def test_two_ranks_equal_one_rank_that_accumulates_two_batches(corpus: Path, tmp_path: Path) -> None:
    """Trap T12: gradients are divided by the masked frames of all ranks, not by each rank's own."""
    # Muon rounds to bfloat16, so that gradients which differ in the last digit may give updates that differ more.
    config = pretrain_config(
        corpus, model={"config_overrides": NO_DROPOUT}, optimizer={"name": "adamw"},
        regime={"num_steps": 10, "checkpoint_every_n_steps": 10,
                                                                "validate_every_n_steps": 5}
    )  # fmt: skip

    train_on_one_and_two_ranks(tmp_path, config)

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


def test_a_rank_with_nothing_to_predict_neither_hangs_nor_counts(tmp_path: Path) -> None:
    """Batches of one-frame utterances have no masked frame; the other rank's gradients are divided by its own alone."""
    corpus, rng = tmp_path / "corpus", np.random.default_rng(0)

    (corpus / "wav").mkdir(parents=True)

    for split in ("train", "valid"):
        rows = [(f"{split}{i}.wav", 700 if i % 2 == 0 else 24_000) for i in range(12)]

        for name, num_samples in rows:
            sf.write(corpus / "wav" / name, 0.1 * rng.standard_normal(num_samples), 16_000)

        write_manifest(corpus / f"{split}.tsv", "wav", rows)

        make_labels(corpus, split)

    config = pretrain_config(
        corpus,
        model={"config_overrides": NO_DROPOUT},
        task={"config": {"batching": {"min_seconds": 0.025, "max_examples": 2}}},
        criterion={"config": {"alpha": 1.0}},
        optimizer={"name": "adamw"},
        regime={"num_steps": 6, "checkpoint_every_n_steps": 6, "validate_every_n_steps": 6},
    )

    train_on_one_and_two_ranks(tmp_path, config)

    ours, theirs = read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one")

    counts = [r["Masked Frames"] for r in theirs]

    assert [r["Masked Frames"] for r in ours] == counts

    # In the third update one rank has none, in the first none has any.
    assert 0 < counts[2] < 75 < counts[1] and counts[0] == 0

    for a, b in zip(ours, theirs, strict=True):
        for key in ("Loss", "Gradient Norm"):
            assert a.get(key) == pytest.approx(b.get(key), rel=1e-4), (a["Step"], key)


def test_frozen_convolutions_are_not_waited_for(corpus: Path, tmp_path: Path) -> None:
    """Data-parallel reduction waits for every parameter that asks for a gradient."""
    config = pretrain_config(
        corpus,
        model={"config_overrides": {**NO_DROPOUT, "feature_grad_scale": 0.0}},
        optimizer={"name": "adamw", "config": {"weight_decay": 0.1}},
        regime={"num_steps": 4, "checkpoint_every_n_steps": 2, "validate_every_n_steps": 2},
    )

    train_on_one_and_two_ranks(tmp_path, config)

    before, after = (load_weights(tmp_path / f"two/checkpoints/step_{step}") for step in (2, 4))

    convolutions = [name for name in before if ".feature_extractor." in name]

    assert len(convolutions) >= 7
    assert all(before[name].equal(after[name]) for name in convolutions)
    assert not before["masker.temporal_mask_embed"].equal(after["masker.temporal_mask_embed"])


@pytest.mark.parametrize("num_dropped", [0, 1])
def test_a_shared_projection_that_no_head_uses_is_not_waited_for(
    corpus: Path, tmp_path: Path, num_dropped: int
) -> None:
    """Linear heads have no use for it; and in some updates the only head that has takes no part."""
    kinds = ["linear", "cosine" if num_dropped else "linear"]

    for split in ("train", "valid"):
        make_labels(corpus, split, "k12", 12)

    overrides = {
        "tie_final_proj": True,
        "heads": [{"label_set": name, "kind": kind} for name, kind in zip(["km", "k12"], kinds, strict=True)],
        "num_dropped_heads": num_dropped,
    }

    config = pretrain_config(
        corpus,
        model={"config_overrides": {**NO_DROPOUT, **overrides}},
        dataset={"labels": ["km", "k12"]},
        optimizer={"name": "adamw"},
        regime={"num_steps": 6, "checkpoint_every_n_steps": 6, "validate_every_n_steps": 6},
    )

    train_on_one_and_two_ranks(tmp_path, config)


def test_layers_dropped_on_one_rank_only_neither_hang_nor_part_the_ranks(corpus: Path, tmp_path: Path) -> None:
    """Trap T19: every rank draws its own layers to drop, and the gradients are still summed over all of them."""
    config = pretrain_config(
        corpus,
        model={"config_overrides": {**NO_DROPOUT, "layer_drop_p": 0.5}},
        regime={"num_steps": 8, "checkpoint_every_n_steps": 8, "validate_every_n_steps": 8},
        trainer={"grad_accumulation": {"num_batches": 2, "no_sync": True}},
    )

    file = write_config(tmp_path / "config.yaml", config)

    wait_for_all(start_pretrain_ranks(tmp_path / "out", file, 2))

    losses = [r["Loss"] for r in read_metrics(tmp_path / "out") if "Loss" in r]

    assert len(losses) == 8
    assert losses[-1] < losses[0]


def test_a_rank_does_not_judge_what_rank_0_is_still_writing(corpus: Path, tmp_path: Path) -> None:
    """Rank 0 writes OUT/config.yaml while the others start: half a file is not another run's."""
    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": 4}))

    out = tmp_path / "out"

    out.mkdir()

    (out / "config.yaml").write_text("model:\n  na")

    port = free_port()

    late = start_pretrain_ranks(out, file, 2, ranks=[1], port=port)

    wait_until(lambda: (out / "logs/rank_1.log").exists() or late[0].poll() is not None, run=late[0])

    assert late[0].poll() is None, late[0].raw

    (out / "config.yaml").unlink()

    wait_for_all([*late, *start_pretrain_ranks(out, file, 2, ranks=[0], port=port)])


def test_a_refusal_is_shown_on_every_rank(corpus: Path, tmp_path: Path) -> None:
    """fairseq2 shows what rank 0 logs; a rank that refuses alone says so, too."""
    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus, regime={"num_steps": "many"}))

    (run,) = start_pretrain_ranks(tmp_path / "out", file, 2, ranks=[1])

    assert run.wait() == 2
    assert "rank 1: " in run.text and "num_steps" in run.text


def test_more_ranks_than_there_is_audio_for_are_refused(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=1, num_valid=2)

    file = write_config(tmp_path / "config.yaml", pretrain_config(corpus))

    ranks = start_pretrain_ranks(tmp_path / "out", file, 2)

    assert [rank.wait() for rank in ranks] == [2, 2]

    assert "yields 0 batches for each of 2 ranks" in ranks[0].text
    assert "Run on fewer than 2 ranks" in ranks[0].text


def test_a_run_goes_on_with_other_numbers_of_ranks(corpus: Path, tmp_path: Path) -> None:
    """1 → 3 → 2 ranks: the steps go on, the epoch's remaining batches are read, and every rank has its own state."""
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(corpus, regime={"num_steps": 12, "checkpoint_every_n_steps": 3, "validate_every_n_steps": 3}),
    )

    out = tmp_path / "out"

    wait_for_all(start_pretrain_ranks(out, file, 1, "regime.num_steps=3"))

    three = start_pretrain_ranks(out, file, 3, "regime.num_steps=6")

    wait_for_all(three)

    assert "was written by 1 process(es), but 3 run now: an update covers 3 times as much" in three[0].text

    wait_for_all(start_pretrain_ranks(out, file, 2))

    records = [r for r in read_metrics(out) if "Loss" in r]

    assert [r["Step"] for r in records] == list(range(1, 13))

    # Rank 0's totals are not counted again for the ranks that joined.
    total = "Total Number of Examples"

    assert records[3][total] == records[2][total] + records[3]["Number of Examples"]

    assert all(np.isfinite(r["Loss"]) for r in records)

    states = [
        torch.load(out / f"checkpoints/step_12/trainer/rank_{r:02}.pt", weights_only=False)["_rng_bag"]["generators"][0]
        for r in range(2)
    ]

    assert not torch.equal(*states)


def test_a_batch_that_is_kept_is_not_said_to_change(corpus: Path, tmp_path: Path) -> None:
    file = write_config(
        tmp_path / "config.yaml",
        pretrain_config(
            corpus,
            task={"config": {"global_batch_seconds": 12.0}},
            regime={"num_steps": 4, "checkpoint_every_n_steps": 3, "validate_every_n_steps": 3},
        ),
    )

    out = tmp_path / "out"

    wait_for_all(start_pretrain_ranks(out, file, 2, "regime.num_steps=3"))

    (one,) = start_pretrain_ranks(out, file, 1)

    wait_for_all([one])

    assert "was written by 2 process(es), but 1 run now; the batch of an update stays" in one.text
    assert "times as much audio" not in one.text
