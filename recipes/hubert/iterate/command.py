"""``iterate``: what the command line asks for, handed to the refinement."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from hubert_plugin.arguments import parse_verb_args
from hubert_plugin.errors import ConfigError
from hubert_plugin.recipes.hubert.iterate.config import HubertIterateConfig
from hubert_plugin.refinement.load import load_config
from hubert_plugin.refinement.ranks import World
from hubert_plugin.refinement.settings import dump_yaml, unstructure
from hubert_plugin.refinement.store import CONFIG_FILE

DEFAULT_PRESET = "demo"
"""What is done where nothing is said, and nothing was done before."""


def iterate(prog: str, argv: Sequence[str], description: str, presets: dict[str, Path]) -> int:
    """Run ``iterate`` and return the exit code."""
    args = parse_verb_args(prog, argv, description, presets, add_arguments=_add_arguments)

    if args.checkpoint_dir is not None:
        raise ConfigError("`iterate` has no --checkpoint-dir: checkpoints lie in the folders of their rounds.")

    out = Path(args.output_dir or ".").expanduser().absolute()

    config = _read_config(args, out, presets)

    if args.dump_config:
        print(dump_yaml(unstructure(config)), end="")

        return 0

    package = Path(sys.modules["hubert_plugin"].__path__[0])

    if args.report:
        from hubert_plugin.refinement.report import write_report

        write_report(config, out)

        return 0

    if args.check:
        from hubert_plugin.refinement.check import check_commands

        return check_commands(config, out)

    from hubert_plugin.refinement.session import NOT_DONE, emit_slurm, print_command, run_session, show_plan, tell_done

    if args.is_done is not None:
        return 0 if tell_done(config, out, package, args.is_done) else NOT_DONE

    if args.print_command is not None:
        print_command(config, out, args.print_command)

        return 0

    if args.plan or config.plan:
        show_plan(config, out, package)

        return 0

    if config.emit_slurm is not None:
        emit_slurm(config, out, config.emit_slurm.expanduser().absolute(), package)

        return 0

    prepare = args.prepare is not None

    until = args.prepare if prepare else config.until

    return run_session(config, out, package, until=until, prepare=prepare, plain=args.no_rich)


def _read_config(args: Namespace, out: Path, presets: dict[str, Path]) -> HubertIterateConfig:
    file = Path(args.config_file) if args.config_file is not None else None

    if file is None:
        # A folder that has begun goes on as it was; it must not become a demo.
        former = out / CONFIG_FILE

        if former.is_file():
            file = former
        else:
            file = presets[DEFAULT_PRESET]

            _say_default(args, out)

    items = [item for items in args.config_overrides or [] for item in items]

    if args.until is not None:
        items.append(f"until={args.until}")

    config = load_config(HubertIterateConfig, file, items, out)

    if args.emit_slurm is not None:
        config.emit_slurm = Path(args.emit_slurm)

    return config


def _say_default(args: Namespace, out: Path) -> None:
    """Say that the default preset is taken: the folder may be mistyped."""
    # On other ranks it would be said again, and beside the report's error it would be wrong.
    if args.report or World.of_env().rank > 0:
        return

    # Standard output is for configurations and commands, which others read.
    print(
        f"'{out}' holds no refinement yet, and neither --preset nor --config-file is given, so the preset "
        f"`{DEFAULT_PRESET}` is taken. To go on with an earlier refinement, name its folder.",
        file=sys.stderr,
        flush=True,
    )


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--plan", action="store_true", help="show the steps, their sizes and estimated costs, and run nothing"
    )
    parser.add_argument("--until", metavar="STEP", help="do the steps up to this one, such as round1/cluster")
    parser.add_argument("--emit-slurm", metavar="DIR", help="write batch scripts for SLURM into DIR, and run nothing")
    parser.add_argument("--print-command", metavar="STEP", help="print the command of a step, and run nothing")
    parser.add_argument(
        "--prepare",
        metavar="STEP",
        help="do the steps before this one, and clear away what is there of it of another making, for its command to "
        "be run by others",
    )
    parser.add_argument(
        "--is-done", metavar="STEP", help="say whether a step and those before it are done, by exit code (0, else 75)"
    )
    parser.add_argument(
        "--report", action="store_true", help="write OUT/report from what the steps left so far, and run nothing else"
    )
    parser.add_argument(
        "--check", action="store_true", help="check the options of every step against its verb, and run nothing else"
    )
