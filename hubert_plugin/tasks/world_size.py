"""Goes on with a run on another number of ranks.

fairseq2 keeps two files for each rank in a checkpoint: the trainer's state (step, schedule, random numbers, metrics)
and the data reader's. Ranks that join take copies of rank 0's, with random numbers of their own and empty sums; ranks
that leave take with them what they had counted, so totals (hours of audio) then begin lower. Model and optimizer are
the same on all ranks unless they are sharded (FSDP): then the number must stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq2.gang import Gangs
from fairseq2.logging import log
from torch import Tensor

from hubert_plugin.data.reader import NUM_RANKS_KEY
from hubert_plugin.errors import CheckpointError
from hubert_plugin.files import atomic_path
from hubert_plugin.models.interop.sources import check_no_shard_missing
from hubert_plugin.ranks import run_on_first


def fit_checkpoint_to_ranks(step_dir: Path, gangs: Gangs, *, keeps_batch: bool = False) -> None:
    """Give a checkpoint the files of every rank that runs now; call it on all ranks.

    Killed in the middle and called again, it does the rest. The files of the ranks that wrote it stay as they are.

    :param keeps_batch: Whether the batch of an update does not depend on the number of ranks.
    :raises CheckpointError: The model is sharded over another number of ranks, or lacks shards.
    """
    # Refused by all ranks, so that none waits for another.
    _check_shards(step_dir, gangs.sdp.size)

    run_on_first(gangs.root, lambda: _fit(step_dir, gangs.root.size, keeps_batch))


def _check_shards(step_dir: Path, num_processes: int) -> None:
    check_no_shard_missing(step_dir)

    num_shards = len(list((step_dir / "model").rglob("sdp_*.pt")))

    if num_shards == num_processes:
        return

    def describe(count: int) -> str:
        return f"sharded over {count} processes (FSDP)" if count > 1 else "whole"

    raise CheckpointError(
        f"The model in '{step_dir}' is {describe(num_shards)}, but is to be {describe(num_processes)} now. Go on with "
        "the `trainer.data_parallelism` and the number of processes that wrote it, or start anew from it in another "
        "folder (`init.source` of `pretrain`, `pretrained` of `finetune`)."
    )


def _fit(step_dir: Path, world_size: int, keeps_batch: bool) -> None:
    # The run's own files, in a pickle protocol that PyTorch's restricted mode cannot read; fairseq2 reads them so, too.
    reader_state = torch.load(step_dir / "data_reader" / "dp_00.pt", map_location="cpu", weights_only=False)

    num_files = len(_rank_files(step_dir / "trainer"))

    old_size = int(reader_state.get(NUM_RANKS_KEY, num_files))

    if old_size == world_size:
        return

    step = step_dir.name.removeprefix("step_")

    changed = f"The checkpoint of step {step} was written by {old_size} process(es), but {world_size} run now"

    if keeps_batch:
        log.info("{}; the batch of an update stays (`task.config.global_batch_seconds`).", changed)
    else:
        log.warning(
            "{}: an update covers {:g} times as much audio now, unless `trainer.grad_accumulation.num_batches` evens "
            "it out. `task.config.global_batch_seconds` keeps the batch in new runs.",
            changed,
            world_size / old_size,
        )

    trainer_state = torch.load(step_dir / "trainer" / "rank_00.pt", map_location="cpu", weights_only=False)

    for rank in range(old_size, world_size):
        with atomic_path(step_dir / "data_reader" / f"dp_{rank:02d}.pt") as tmp:
            torch.save({**reader_state, NUM_RANKS_KEY: old_size}, tmp)

        with atomic_path(step_dir / "trainer" / f"rank_{rank:02d}.pt") as tmp:
            torch.save(_state_of_new_rank(trainer_state, rank), tmp)


def _rank_files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if re.fullmatch(r"rank_\d+\.pt", p.name)]


def _state_of_new_rank(state: Mapping[str, Any], rank: int) -> dict[str, Any]:
    generators = [_reseed(g, rank) for g in state["_rng_bag"]["generators"]]

    # Every metric of a training step is a sum or a ratio of sums; what rank 0 has summed is not summed twice.
    metrics = {name: {k: _zero(v) for k, v in m.items()} for name, m in state["_metric_bag"].items()}

    return {**state, "_rng_bag": {**state["_rng_bag"], "generators": generators}, "_metric_bag": metrics}


def _reseed(generator_state: Tensor, rank: int) -> Tensor:
    """Return a state that depends on rank 0's and on the rank. *Shape:* that of ``generator_state``."""
    seed = int(generator_state.double().mul(torch.arange(1, generator_state.numel() + 1)).sum().item()) + rank

    if generator_state.numel() == torch.Generator().get_state().numel():
        return torch.Generator().manual_seed(seed).get_state()

    # A CUDA generator's state: 8 bytes of seed, 8 bytes of offset.
    return torch.cat([torch.tensor([seed & 0x7FFFFFFF, 0], dtype=torch.int64).view(torch.uint8)])


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else type(value)()
