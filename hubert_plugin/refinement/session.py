"""One run of the command: lock, ranks, signals, and what is shown."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from hubert_plugin.errors import ConfigError, HubertError, OutputDirError
from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.execute import Signals, Terminated
from hubert_plugin.refinement.failure import StepFailedError
from hubert_plugin.refinement.follow import follow
from hubert_plugin.refinement.judge import code_versions, fingerprint, judge
from hubert_plugin.refinement.lock import lock_folder
from hubert_plugin.refinement.overview import make_plan
from hubert_plugin.refinement.precheck import check_before_plan
from hubert_plugin.refinement.ranks import Ranks, World
from hubert_plugin.refinement.record import STATE_FOLDER, read_record
from hubert_plugin.refinement.run import Refinement, Stopped
from hubert_plugin.refinement.slurm import write_scripts
from hubert_plugin.refinement.steps import command_line, find_step, show_command
from hubert_plugin.refinement.store import CONFIG_FILE, open_workshop, save_config
from hubert_plugin.refinement.workshop import NotYet, Workshop

LOCK_FILE: Final = f"{STATE_FOLDER}/lock"

NOT_DONE: Final = 75
"""The exit code that says that a step is yet to be done: ``EX_TEMPFAIL`` of ``sysexits.h``."""


def run_session(
    config: RefinementConfig, out: Path, package: Path, *, until: str | None, prepare: bool = False, plain: bool
) -> int:
    """Run a refinement, on each of its processes, and return the exit code.

    :param out: OUT, absolute.
    :param package: The folder of this package's modules.
    :param until: The last step to do; ``None``: all.
    :param prepare: Whether this step is only made ready.
    :param plain: Whether terminals get plain lines, too.
    :raises HubertError: Something is wrong that a user can mend.
    """
    if out.exists() and not out.is_dir():
        raise OutputDirError(f"The output folder '{out}' is a file. Choose another.")

    world = World.of_env()

    ranks = Ranks(out / STATE_FOLDER / "ranks", world)

    with Signals() as signals:
        try:
            if world.rank > 0:
                return follow(out, ranks, world, signals)

            _check_folder(out)

            with lock_folder(out / LOCK_FILE, out) as fd:
                return _lead(config, out, package, until, prepare, plain, world, ranks, signals, fd)
        except Terminated:
            return 128 + signal.SIGTERM


def show_plan(config: RefinementConfig, out: Path, package: Path) -> None:
    """Show what a run would do.

    :raises ConfigError: It would refuse the options of its steps.
    """
    shop = _checked_workshop(config, out, package)

    for line in make_plan(shop, package, World.of_env().size).lines():
        print(line)


def print_command(config: RefinementConfig, out: Path, name: str) -> None:
    """Print the command of a step, as it will be run.

    :raises ConfigError: There is no such step, or what it needs is not there yet.
    """
    shop = open_workshop(config, out)

    if config.dataset.demo is not None:
        shop.manifest_dir = _find_corpus(config.dataset.demo)

    find_step(shop.steps, name)

    step = shop.steps[name]

    try:
        work = step.make(shop)
    except NotYet as ex:
        raise ConfigError(f"The command of '{name}' is not known yet: {ex}. Run the steps before it first.") from None

    print(show_command(out, command_line(config.command, step, work)))


def tell_done(config: RefinementConfig, out: Path, package: Path, name: str) -> bool:
    """Return whether a step and all before it are done, after saying which is not; nothing is run or written.

    :param package: The folder of this package's modules.
    :raises ConfigError: There is no such step.
    """
    shop = open_workshop(config, out)

    last = find_step(shop.steps, name)

    record = read_record(out, name)

    # Of one that was stopped nothing else needs to be known: reading takes time, of which little may be left.
    if record is None or record.status != "done":
        _say(f"{shop.steps[name].title} is not done yet.")

        return False

    if config.dataset.demo is not None:
        shop.manifest_dir = _find_corpus(config.dataset.demo)

    code = code_versions(package, shop.digests)

    for step in list(shop.steps.values())[: last + 1]:
        try:
            now = fingerprint(step, step.make(shop), code)
        except NotYet as ex:
            _say(f"{step.title} is not done yet: {ex}.")

            return False

        judgement = judge(
            step, now, read_record(out, step.key), out, shop.digests, on_code_change=config.on_code_change
        )

        if judgement.action != "keep":
            _say(f"{step.title} is not done yet" + (f": {judgement.reason}." if judgement.reason else "."))

            return False

        if step.key == "manifest":
            shop.manifest_dir = out / "manifest"

    return True


def emit_slurm(config: RefinementConfig, out: Path, folder: Path, package: Path) -> None:
    """Write batch scripts, after looking at the options: a job that waits for hours should not end over one of them.

    :param package: Where this package is.
    :raises ConfigError: Options of steps cannot be used.
    """
    _checked_workshop(config, out, package)

    for path in write_scripts(config, out, folder):
        print(path)


def _checked_workshop(config: RefinementConfig, out: Path, package: Path) -> Workshop:
    shop = open_workshop(config, out, dry=True)

    if config.dataset.demo is not None:
        shop.manifest_dir = _find_corpus(config.dataset.demo)

    check_before_plan(shop, code_versions(package, shop.digests))

    return shop


def _lead(
    config: RefinementConfig,
    out: Path,
    package: Path,
    until: str | None,
    prepare: bool,
    plain: bool,
    world: World,
    ranks: Ranks,
    signals: Signals,
    lock_fd: int | None,
) -> int:
    """Run on rank 0; the others are told how it ended, whatever happens."""
    code = 1

    try:
        if until is not None:
            find_step(open_workshop(config, out).steps, until)

        save_config(config, out)

        ranks.gather()

        refinement = Refinement(
            config,
            out,
            package=package,
            say=_say,
            ranks=ranks,
            world=world,
            signals=signals,
            on_terminal=sys.stdout.isatty() and not plain,
            lock_fd=lock_fd,
            make_corpus=_make_corpus,
        )

        refinement.run(until, prepare=prepare)

        code = 0

        if until is None:
            _say(f"All steps are done. The report: {out / 'report/index.html'}")
        else:
            _say(f"All steps {'before' if prepare else 'up to'} {until} are done.")
    except StepFailedError as ex:
        print(f"fairseq2: error: {ex}", file=sys.stderr, flush=True)

        code = ex.exit_code
    except Stopped:
        code = 0
    except HubertError:
        code = 2

        raise
    finally:
        with suppress(OSError, HubertError):
            ranks.publish({"action": "end", "code": code})

    return code


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else.

    :raises OutputDirError: It does.
    """
    if not out.is_dir() or (out / STATE_FOLDER).is_dir() or (out / CONFIG_FILE).is_file():
        return

    if (out / "checkpoints").is_dir() or (out / "config.yaml").is_file():
        raise OutputDirError(f"The output folder '{out}' holds a run of another recipe. Choose another folder.")


def _make_corpus(options: Mapping[str, object]) -> Path:
    from hubert_plugin.demo import ensure_demo_corpus
    from hubert_plugin.refinement.demo import demo_config

    last = -1

    def progress(done: int, total: int) -> None:
        nonlocal last

        if done * 10 // max(total, 1) > last:
            last = done * 10 // max(total, 1)

            _say(f"corpus: {done} of {total} s of speech are made")

    return ensure_demo_corpus(demo_config(options), progress=progress)


def _find_corpus(options: Mapping[str, object]) -> Path | None:
    """Return the folder of the demo corpus if it is there."""
    from hubert_plugin.refinement.demo import find_demo

    return find_demo(options)


def _say(line: str) -> None:
    print(line, flush=True)
