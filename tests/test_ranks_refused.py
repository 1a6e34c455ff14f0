"""What rank 0 alone finds wrong ends all ranks (gloo, CPU) with exit code 2: none waits in vain or says an untruth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import make_labels, pretrain_config, write_config
from fairseq2.gang import FakeGang, ReduceOperation
from processes import pretrain_args, start_ranks, wait_until
from transcribed import finetune_args, finetune_config, make_transcribed

from hubert_plugin.errors import ConfigError, HubertError
from hubert_plugin.ranks import run_on_first, run_together


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_transcribed(tmp_path_factory.mktemp("corpus"), num_train=4, num_valid=2, seconds=(0.5, 1.0))

    for split in ("train", "valid"):
        make_labels(folder, split)

    return folder


def verb(name: str, *overrides: str) -> Callable[[Path, Path], list[str]]:
    def args(folder: Path, corpus: Path) -> list[str]:
        return ["recipe", "hubert", name, str(folder / "out"), "--no-rich", "--config", *overrides]

    return args


def training(name: str, *overrides: str) -> Callable[[Path, Path], list[str]]:
    def args(folder: Path, corpus: Path) -> list[str]:
        make_config, make_args = {
            "pretrain": (pretrain_config, pretrain_args),
            "finetune": (finetune_config, finetune_args),
        }[name]

        return make_args(folder / "out", write_config(folder / "config.yaml", make_config(corpus)), *overrides)

    return args


@pytest.mark.parametrize(
    ("args", "phrase"),
    [
        (verb("evaluate", "hypotheses=no_such_file", "references=none_either"), "no_such_file"),
        (verb("export", "model=no_such_model"), "no_such_model"),
        (verb("analyze", "labels=[km]", "manifest_dir=no_such_folder"), "no_such_folder"),
        (training("pretrain", "init.source=no_such_model"), "no_such_model"),
        (training("finetune", "pretrained=no_such_model"), "no_such_model"),
        (training("finetune", "tokenizer.sentencepiece={vocab_size: 5000}"), "SentencePiece"),
    ],
    ids=["evaluate", "export", "analyze", "init", "pretrained", "tokenizer"],
)
def test_a_mistake_is_told_by_one_rank_and_ends_all_with_code_2(
    args: Callable[[Path, Path], list[str]], phrase: str, corpus: Path, tmp_path: Path
) -> None:
    runs = start_ranks(args(tmp_path, corpus), 2)

    wait_until(lambda: all(r.poll() is not None for r in runs), run=runs[0])

    assert [r.poll() for r in runs] == [2, 2], "\n".join(r.raw[-3000:] for r in runs)

    # What rank 1 says may be in its log only.
    logs = [p.read_text() for p in (tmp_path / "out/logs").rglob("rank_*.log")]

    said = " ".join(" ".join([*(r.raw for r in runs), *logs]).split())

    assert phrase in runs[0].text and "Another process of this job failed" in said, said

    assert "collective communication" not in said and "Traceback" not in said, said


class _GangOfTwo(FakeGang):
    """Rank ``rank`` of two; the other fails where ``other_fails``."""

    def __init__(self, rank: int, *, other_fails: bool = False) -> None:
        super().__init__(torch.device("cpu"), rank=rank, size=2)

        self.other_fails, self.num_waits = other_fails, 0

    def all_reduce(self, tensor: torch.Tensor, op: ReduceOperation) -> None:
        self.num_waits += 1

        tensor += float(self.other_fails)


def test_a_step_of_the_first_rank_is_waited_for_by_all_also_where_it_fails() -> None:
    def fail() -> str:
        raise ConfigError("A sentence.")

    first, second = _GangOfTwo(0), _GangOfTwo(1)

    assert (run_on_first(first, lambda: "made"), run_on_first(second, fail)) == ("made", None)

    with pytest.raises(ConfigError, match="A sentence"):
        run_on_first(first, fail)

    assert (first.num_waits, second.num_waits) == (2, 1)

    # Its own work was done; another's was not.
    with pytest.raises(HubertError, match="Another process"):
        run_together(_GangOfTwo(1, other_fails=True), lambda: "made")
