"""The arguments of a verb: those of fairseq2's recipe interface, ``--preset``, and what a verb adds. No torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hubert_plugin.discovery import first_comment_line
from hubert_plugin.errors import ConfigError


def parse_verb_args(
    prog: str,
    argv: Sequence[str],
    description: str,
    presets: dict[str, Path],
    *,
    add_arguments: Callable[[ArgumentParser], None] | None = None,
) -> Namespace:
    """Parse the arguments of a verb: those of fairseq2's recipe interface and ``--preset``.

    A preset becomes the configuration file. Arguments that are not known here are left to fairseq2.

    :param add_arguments: Adds a verb's own arguments; then there are no others.
    :raises ConfigError: If the preset is not known, or if both a preset and a configuration file are given.
    """
    parser = _make_verb_parser(prog, description, presets)

    if add_arguments is not None:
        add_arguments(parser)

    args, unknown = parser.parse_known_args(argv)

    _check_unknown(unknown, [name for action in parser._actions for name in action.option_strings])

    if add_arguments is not None and unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")

    args.unknown = unknown

    for item in (i for items in args.config_overrides or [] for i in items):
        if "=" not in item and not item.strip().startswith("del:"):
            raise ConfigError(
                f"'{item}' after --config is not of the form KEY=VALUE. (Put OUTPUT_DIR before --config: everything "
                "after it, up to the next option, is read as configuration.)"
            )

        key, equals, value = item.partition("=")

        # The default would be taken in its place: for that of the manifests, the demo corpus.
        if equals and key.endswith("_dir") and not value.strip():
            raise ConfigError(
                f"'{item}' after --config names no folder. (Is a variable of the shell not set?) Where the default is "
                f"meant, leave it out or write `{key}=null`."
            )

    if args.output_dir is None and not args.dump_config and not args.unknown:
        parser.error("OUTPUT_DIR is missing: name the folder that the results go to.")

    if len(args.presets) > 1:
        raise ConfigError(
            f"--preset was given {len(args.presets)} times ({', '.join(args.presets)}), but a run starts from one. "
            "Change single values of it by `--config KEY=VALUE`."
        )

    args.preset = args.presets[0] if args.presets else None

    if args.preset is not None:
        if args.config_file is not None:
            raise ConfigError("--preset and --config-file exclude each other: a preset is a configuration file.")

        if args.preset not in presets:
            raise unknown_name("preset", args.preset, list(presets))

        args.config_file = str(presets[args.preset])

    return args


def _check_unknown(unknown: Sequence[str], options: Sequence[str]) -> None:
    """Answer slips of the pen; other arguments that are not known are fairseq2's to judge.

    :raises ConfigError: An option is nearly one that there is, or ``--config`` is missing.
    """
    for item in unknown:
        name = item.partition("=")[0]

        if name.startswith("--") and (near := get_close_matches(name, options, n=1, cutoff=0.75)):
            raise ConfigError(f"'{name}' is not a known option. Did you mean '{near[0]}'?")

    if unknown and "=" in unknown[0] and not unknown[0].startswith("-"):
        raise ConfigError(f"'{unknown[0]}' is read as configuration only after --config: put `--config` before it.")


def _make_verb_parser(prog: str, description: str, presets: dict[str, Path]) -> ArgumentParser:
    lines = [f"  {name:<16} {first_comment_line(path)}".rstrip() for name, path in presets.items()]

    parser = ArgumentParser(
        prog=prog,
        description=description,
        epilog="\n".join(["presets:", *lines]) if lines else None,
        formatter_class=RawDescriptionHelpFormatter,
    )

    def add(*names: str, **kwargs: Any) -> None:
        parser.add_argument(*names, **kwargs)

    add("output_dir", metavar="OUTPUT_DIR", nargs="?", help="folder that the results go to")
    add(
        "--preset",
        dest="presets",
        metavar="NAME",
        action="append",
        default=[],
        help="start from the preset NAME (below) instead of the default configuration",
    )
    add("--config-file", metavar="FILE", help="start from the configuration in this YAML file")
    add(
        "--config",
        dest="config_overrides",
        metavar="KEY=VALUE",
        nargs="*",
        action="append",
        help="set single keys (a.b=VALUE, VALUE is YAML) or remove them (del:a.b)",
    )
    add("--dump-config", action="store_true", help="print the whole configuration as YAML and stop")
    add("--checkpoint-dir", metavar="DIR", help="folder for checkpoints (default: OUTPUT_DIR/checkpoints)")
    add("--no-rich", action="store_true", help="plain log lines, no colours and progress bars")
    add("--no-exit-on-error", action="store_true", help="let errors through with their stack trace, for debugging")

    return parser


def to_fairseq2_args(args: Namespace) -> list[str]:
    """Write parsed arguments as fairseq2's own parser reads them."""
    # The folder comes first: after `--config`, which takes any number of values, it would be read as one of them.
    argv: list[str] = [] if args.output_dir is None else [args.output_dir]

    if args.config_file is not None:
        argv += ["--config-file", args.config_file]

    for items in args.config_overrides or []:
        argv += ["--config", *items]

    if args.checkpoint_dir is not None:
        argv += ["--checkpoint-dir", args.checkpoint_dir]

    for flag in ("dump_config", "no_rich", "no_exit_on_error"):
        if getattr(args, flag):
            argv.append(f"--{flag.replace('_', '-')}")

    return [*argv, *args.unknown]


def unknown_name(kind: str, name: str, known: Sequence[str]) -> ConfigError:
    """Return the error that answers an unknown name with the nearest known ones."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

    return ConfigError(f"'{name}' is not a known {kind}.{hint} Known: {', '.join(sorted(known)) or 'none'}.")
