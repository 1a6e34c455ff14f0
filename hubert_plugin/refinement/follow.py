"""The run on other ranks than the first: what rank 0 decides is done, each step in a process of its own."""

from __future__ import annotations

from pathlib import Path

from hubert_plugin.errors import ConfigError
from hubert_plugin.refinement.execute import Signals, run_child
from hubert_plugin.refinement.ranks import Ranks, World, child_env


def follow(out: Path, ranks: Ranks, world: World, signals: Signals) -> int:
    """Run what rank 0 says, and return the exit code.

    :raises ConfigError: A command cannot be started here.
    """
    while True:
        decision = ranks.listen()

        if decision["action"] == "end":
            return int(decision["code"])

        try:
            code = run_child(
                decision["argv"],
                cwd=out,
                env=child_env(world, decision["point"]),
                log=out / "logs" / f"{decision['step'].replace('/', '-')}.rank{world.rank}.log",
                signals=signals,
                on_terminal=False,
                should_abort=ranks.is_over,
            )
        except ConfigError:
            # Of a program that only this node lacks, rank 0 would not know.
            ranks.finish(2)

            raise

        ranks.finish(code)
