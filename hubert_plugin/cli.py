"""The ``fairseq2`` command: parse and dispatch.

Nothing here imports torch, numpy or fairseq2 before a recipe (or fairseq2's asset command) really runs, so that help
and lists answer at once. ``discovery.py`` says how recipes are found.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hubert_plugin.arguments import parse_verb_args, to_fairseq2_args, unknown_name
from hubert_plugin.config_check import ConfigSource, check_config_keys, read_config_file
from hubert_plugin.deferred import import_fairseq2
from hubert_plugin.discovery import (
    Group,
    find_groups,
    find_package_spec,
    find_presets,
    first_doc_line,
    get_folder,
)
from hubert_plugin.error_sentences import ErrorSentences
from hubert_plugin.errors import ConfigError, HubertError

if TYPE_CHECKING:
    from fairseq2.recipe.base import Recipe

_HELP: Final = """\
usage: fairseq2 [--help] [--version] COMMAND ...

commands:
  recipe list                            show the installed recipes
  recipe GROUP list                      show the recipes of a group, with their presets
  recipe GROUP VERB OUTPUT_DIR ...         run a recipe (VERB --help tells its arguments)
  assets {list,show} ...                   fairseq2's own asset command: models, datasets, tokenizers

for example:
  fairseq2 recipe hubert pretrain runs/demo
"""

_ASSETS_HELP: Final = """\
usage: fairseq2 assets list [--kind {all,model,dataset,tokenizer}]
       fairseq2 assets show NAME

fairseq2's own asset command: lists the asset cards, or shows one.
"""

_COMMAND_FILE: Final = "command.py"
"""Marks a verb that is no recipe of fairseq2's: its ``__main__.py`` calls :func:`run_command`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` and return the exit code."""
    with _answering_errors():
        _dispatch(list(sys.argv[1:] if argv is None else argv))

        sys.stdout.flush()

    return 0


def _dispatch(argv: list[str]) -> None:
    command, rest = (argv[0], argv[1:]) if argv else ("--help", [])

    if command in ("-h", "--help", "help"):
        print(_HELP, end="")
    elif command in ("-V", "--version"):
        print(_version())
    elif command == "recipe":
        _dispatch_recipe(rest)
    elif command == "assets":
        _run_assets(rest)
    else:
        raise unknown_name("command", command, ["recipe", "assets"])


def _dispatch_recipe(argv: list[str]) -> None:
    groups = find_groups()

    if not argv or argv[0] in ("-h", "--help", "list"):
        if not argv or argv[0] != "list":
            print("usage: fairseq2 recipe GROUP VERB OUTPUT_DIR ...\n\ninstalled recipes:")

        for group in groups.values():
            _print_group(group)

        return

    group = groups.get(argv[0]) or _raise(unknown_name("recipe group", argv[0], list(groups)))

    if len(argv) == 1 or argv[1] in ("-h", "--help", "list"):
        if len(argv) == 1 or argv[1] != "list":
            print(f"usage: fairseq2 recipe {group.name} VERB OUTPUT_DIR ...\n")

        _print_group(group, with_presets=True)

        return

    verb = group.verbs.get(argv[1]) or _raise(unknown_name(f"recipe of '{group.name}'", argv[1], list(group.verbs)))

    prog = f"fairseq2 recipe {group.name} {verb.name}"

    if verb.folder is not None and (verb.folder / _COMMAND_FILE).is_file():
        # It has arguments of its own, so it parses them itself.
        _run_as_main(verb.module, [prog, *argv[2:]])

        return

    args = parse_verb_args(prog, argv[2:], verb.description, verb.presets)

    _run_as_main(verb.module, [prog, *to_fairseq2_args(args)])


def _print_group(group: Group, with_presets: bool = False) -> None:
    print(f"{group.name}: {group.description}" if group.description else group.name)

    width = max((len(v) for v in group.verbs), default=0)

    for name, verb in sorted(group.verbs.items()):
        print(f"  {name:<{width}}  {verb.description}".rstrip())

        if with_presets and (presets := verb.presets):
            print(f"  {'':<{width}}  presets: {', '.join(presets)}")


def _run_assets(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(_ASSETS_HELP, end="")
    else:
        import_fairseq2()

        with _wording_errors():
            _run_as_main("fairseq2.assets", ["fairseq2 assets", *argv])


def _run_as_main(module: str, argv: list[str]) -> None:
    """Run ``module`` as ``python -m`` would, with the command line ``argv``."""
    from runpy import run_module

    sys.argv = argv

    # `sys.argv[0]` stays what the user typed: argparse shows it.
    run_module(module, run_name="__main__", alter_sys=False)


def run_recipe(package: str | None, recipe: str | type[Recipe] | Recipe) -> None:
    """Run a recipe from the ``__main__.py`` of its package, with the arguments in ``sys.argv``.

    Does what ``fairseq2.recipe.cli.main`` does, and more: ``--preset``, help without torch, unknown configuration keys
    named before anything starts, and errors a user can mend answered with a sentence and exit code 2.

    :param package: The package of the verb: pass ``__package__``.
    :param recipe: The recipe class, or where it is as ``"module:Class"``. A module is looked up in ``package``. Prefer
        this form, since it lets ``--help`` answer without importing the recipe.
    """
    with _answering_errors():
        _run_recipe(package or "", recipe)


def run_command(package: str | None, command: str) -> None:
    """Run a verb that is no recipe of fairseq2's, with the arguments in ``sys.argv``, and exit with its code.

    :param package: The package of the verb: pass ``__package__``.
    :param command: The function, as ``"module:function"``; the module is looked up in ``package``. It is called with
        the name of the program, the arguments, the verb's description and its presets, and returns the exit code.
    """
    with _answering_errors():
        from importlib import import_module

        prog, description, presets = _describe_verb(package or "")

        module, _, name = command.partition(":")

        code: int = getattr(import_module(f"{package}.{module}"), name)(prog, sys.argv[1:], description, presets)

        sys.stdout.flush()

        sys.exit(code)


def _describe_verb(package: str) -> tuple[str, str, dict[str, Path]]:
    """Return what the verb's package says: the name of the program, the verb's description and its presets."""
    # Run through `fairseq2 recipe …`, `sys.argv[0]` is that text; otherwise it is the path of a file.
    prog = sys.argv[0] if sys.argv[0].startswith("fairseq2 recipe ") else f"python -m {package}"

    spec = find_package_spec(package) if package else None

    folder = get_folder(spec) if spec is not None else None

    description = first_doc_line(folder / "__init__.py") if folder is not None else ""

    return prog, description, find_presets(folder)


def _run_recipe(package: str, recipe: str | type[Recipe] | Recipe) -> None:
    prog, description, presets = _describe_verb(package)

    args = parse_verb_args(prog, sys.argv[1:], description, presets)

    sys.argv = [prog, *to_fairseq2_args(args)]

    sources = [read_config_file(Path(args.config_file))] if args.config_file else []

    import_fairseq2()

    instance = _load_recipe(package, recipe)

    from fairseq2.recipe.cli import main as fairseq2_main

    sources += _read_overrides(args.config_overrides or [])

    check_config_keys(instance.config_kls, sources)

    _silence_own_warning_of_fairseq2()

    if args.no_exit_on_error:  # for debugging: whatever happens is shown as it is
        try:
            fairseq2_main(instance)
        except HubertError:
            traceback.print_exc()

            sys.exit(1)

        return

    # A key that is not set is no crash that wandb's makers should be told of, again and again without a network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

    with _wording_errors(instance.config_kls):
        fairseq2_main(instance)


@contextmanager
def _wording_errors(config_kls: type | None = None) -> Iterator[None]:
    """Let fairseq2, which logs errors and exits, answer those that a user can mend with a sentence and exit code 2."""
    from fairseq2.logging import log

    sentences = ErrorSentences(config_kls)

    log.logger.addFilter(sentences)

    try:
        yield
    except SystemExit:
        if sentences.exit_code is not None:
            sys.exit(sentences.exit_code)

        raise
    finally:
        log.logger.removeFilter(sentences)


def _silence_own_warning_of_fairseq2() -> None:
    # fairseq2 0.8 shows deprecations to users, among them one of a call in its own code that no user can change. It
    # sets the filters itself when it starts; so what is left is the hook that shows.
    show = warnings.showwarning

    def show_others(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if not str(message).startswith("`hg_exporter` is deprecated"):
            show(message, *args, **kwargs)

    warnings.showwarning = show_others


def _load_recipe(package: str, recipe: str | type[Recipe] | Recipe) -> Recipe:
    if isinstance(recipe, str):
        from importlib import import_module

        module, _, name = recipe.partition(":")

        kls: type[Recipe] = getattr(import_module(f"{package}.{module}" if package else module), name)

        return kls()

    return recipe() if isinstance(recipe, type) else recipe


def _read_overrides(groups: Sequence[Sequence[str]]) -> list[ConfigSource]:
    """Parse ``--config`` values with fairseq2's own action."""
    from argparse import ArgumentError

    from fairseq2.utils.argparse import ConfigAction

    action = ConfigAction(["--config"], "config")

    namespace = Namespace(config=None)

    for items in groups:
        try:
            action(ArgumentParser(), namespace, items, "--config")
        except ArgumentError as ex:
            raise ConfigError(f"--config: {ex.message}.") from None

    return [ConfigSource("--config", values) for values in namespace.config or []]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    from hubert_plugin import __version__

    def get(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "missing"

    python = ".".join(str(v) for v in sys.version_info[:3])

    return f"fairseq2-hubert {__version__} (fairseq2 {get('fairseq2')}, PyTorch {get('torch')}, Python {python})"


def _raise(ex: Exception) -> Any:
    raise ex


@contextmanager
def _answering_errors() -> Iterator[None]:
    """Answer errors a user can mend with a sentence, and let interruption and closed pipes end quietly."""
    try:
        yield
    except HubertError as ex:
        print(f"fairseq2: error: {ex}", file=sys.stderr)

        sys.exit(2)
    except KeyboardInterrupt:
        # Die of the signal, as the shell and torchrun expect, but without a stack trace.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

        signal.raise_signal(signal.SIGINT)
    except BrokenPipeError:
        # `fairseq2 recipe list | head`: nobody listens any more, and the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        sys.exit(128 + 13)
