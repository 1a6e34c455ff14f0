"""The run: step by step, what is missing or changed, and why."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, final

from hubert_plugin.refinement.config import RefinementConfig
from hubert_plugin.refinement.digests import size_on_disk
from hubert_plugin.refinement.execute import Signals, run_child, tail
from hubert_plugin.refinement.failure import StepFailedError, describe_failure, log_path
from hubert_plugin.refinement.judge import (
    Judgement,
    clear_all,
    clear_damage,
    code_versions,
    fingerprint,
    judge,
    prune_checkpoints,
)
from hubert_plugin.refinement.plan import needs_choice
from hubert_plugin.refinement.precheck import check_command, check_mark, is_checked, keep_mark, problems_in
from hubert_plugin.refinement.ranks import Ranks, World, child_env, meeting_point
from hubert_plugin.refinement.record import Fingerprint, Record, read_record, write_record
from hubert_plugin.refinement.show import format_bytes, format_seconds
from hubert_plugin.refinement.steps import Step, Work, command_line, find_step, output_files, show_command
from hubert_plugin.refinement.store import open_workshop
from hubert_plugin.refinement.summary import summarize

_OTHERS_GRACE: Final = 30.0
"""Seconds that rank 0 has to fail by itself, with a better message, when another rank has failed."""


class Stopped(Exception):
    """The run was asked to stop (SIGUSR1)."""


@final
class Refinement:
    """Does what is missing."""

    def __init__(
        self,
        config: RefinementConfig,
        out: Path,
        *,
        package: Path,
        say: Callable[[str], None],
        ranks: Ranks,
        world: World,
        signals: Signals,
        on_terminal: bool,
        lock_fd: int | None = None,
        make_corpus: Callable[[Mapping[str, object]], Path] | None = None,
    ) -> None:
        """
        :param out: OUT, absolute.
        :param package: The folder of this package's modules.
        :param say: Shows a line.
        :param make_corpus: Makes the demo corpus, if it is not there, and returns its folder.
        """
        self._config = config
        self._out = out
        self._say = say
        self._ranks = ranks
        self._world = world
        self._signals = signals
        self._on_terminal = on_terminal
        self._lock_fd = lock_fd
        self._make_corpus = make_corpus

        self._shop = open_workshop(config, out)
        self._code = code_versions(package, self._shop.digests)

        self._checked: str | None = None

        self._has_other_code = False

    def run(self, until: str | None = None, *, prepare: bool = False) -> None:
        """Do all steps, or those up to ``until``.

        :param prepare: Whether ``until`` itself is not done, but only made ready for its command, which others run:
            what is there of another making is cleared away, and what it is made from is written down.
        :raises StepFailedError: A step's command failed; what was done before stays.
        :raises Stopped: SIGUSR1 came.
        """
        steps = list(self._shop.steps.values())

        if until is not None:
            steps = steps[: find_step(self._shop.steps, until) + 1]

        self._open_corpus()

        for step in steps:
            if step.round_idx is not None:
                self._choose(step)

            self._do(step, execute=not (prepare and step.key == until))

            if step.key == "manifest":
                self._shop.manifest_dir = self._out / "manifest"

            if self._is_last_of_round(step):
                self._end_round(step)

            if self._signals.stop_requested:
                raise Stopped()

        self._shop.digests.save()

        if self._has_other_code:
            self._say("What other versions of the code made is kept; `on_code_change=redo` makes it again.")

        if until is None:
            for line in summarize(self._shop):
                self._say(line)

    def _check_options(self) -> None:
        """Have the verbs look at the options of all steps, once for each configuration and code; again when there are
        manifests to hold transcripts against.

        :raises StepFailedError: Some cannot be used.
        """
        mark = check_mark(self._shop, self._code)

        if mark == self._checked or is_checked(self._out, mark):
            self._checked = mark

            return

        begin, log = time.monotonic(), self._out / "logs" / "check.log"

        argv = check_command(self._config, ".")

        code = run_child(
            argv,
            cwd=self._out,
            env=child_env(self._world, None),
            log=log,
            signals=self._signals,
            on_terminal=False,
            lock_fd=self._lock_fd,
        )

        if self._signals.stop_requested:
            raise Stopped()

        if code:
            unsaid = f"The options of the steps could not be checked: {show_command(self._out, argv)}"

            raise StepFailedError(problems_in(tail(log, 60)) or unsaid, 2 if code == 2 else 1)

        keep_mark(self._out, mark)

        self._checked = mark

        self._say(f"options of all steps: checked in {format_seconds(time.monotonic() - begin)}")

    def _open_corpus(self) -> None:
        section = self._config.dataset

        if section.demo is not None:
            assert self._make_corpus is not None

            self._shop.manifest_dir = self._make_corpus(section.demo)

            self._say(f"corpus: {self._shop.manifest_dir}")

    def _choose(self, step: Step) -> None:
        """Before a round's first step that needs it: choose the layer, and say why."""
        idx = step.round_idx

        assert idx is not None

        if step.verb != "cluster" or not needs_choice(self._config, idx):
            return

        choice = self._shop.choice(idx)

        assert choice is not None

        name = self._config.round_name(idx)

        choice.save(self._out / name)

        self._say(f"{name} / choice: {choice.reason}")

    def _do(self, step: Step, *, execute: bool) -> None:
        shop = self._shop

        work = step.make(shop)

        now = fingerprint(step, work, self._code)

        record = read_record(self._out, step.key)

        judgement = judge(step, now, record, self._out, shop.digests, on_code_change=self._config.on_code_change)

        # The digests of large files took long: they are kept even if the next step fails.
        shop.digests.save()

        if judgement.action == "keep":
            self._say(f"{step.title}: done" + (f" ({judgement.note})" if judgement.note else ""))

            self._has_other_code |= bool(judgement.note)

            return

        # Before anything is cleared, or an hour of work begins.
        self._check_options()

        self._say(f"{step.title}: {_why(judgement)}")

        if judgement.action != "redo" and step.is_training and record and record.num_ranks != self._world.size:
            self._say(f"{step.title}: of {record.num_ranks} processes before, and of {self._world.size} now")

        record = self._prepare(step, work, now, record, judgement)

        if execute:
            self._execute(step, work, record)
        else:
            self._say(f"{step.title}: is ready for its command")

    def _prepare(self, step: Step, work: Work, now: Fingerprint, record: Record | None, judgement: Judgement) -> Record:
        """Clear what must be cleared, and write down what is about to be done."""
        command = command_line(self._config.command, step, work)

        fresh = Record(
            step=step.key,
            status="running",
            fingerprint=now,
            command=command,
            reason=judgement.reason,
            started=_now(),
            num_ranks=self._world.size,
            host=platform.node(),
        )

        if judgement.action == "redo":
            # Killed while it clears, it must clear again: what is left belongs to neither.
            write_record(self._out, replace(fresh, status="clearing"))

            kept = clear_all(step, self._out, keep=self._config.keep_replaced)

            if kept is not None:
                self._say(
                    f"{step.title}: what was there is in {kept.relative_to(self._out)} now; delete it if you like"
                )
        elif judgement.action == "repair":
            assert record is not None

            clear_damage(step, record, self._out, self._shop.digests)
        elif record is not None:
            # It goes on; what it was made by so far stays on record, and the time that it took.
            fresh = replace(
                fresh,
                fingerprint=replace(now, code=record.fingerprint.code),
                started=record.started,
                seconds=record.seconds,
                attempts=record.attempts + 1,
            )

        write_record(self._out, fresh)

        return fresh

    def _execute(self, step: Step, work: Work, record: Record) -> None:
        log = log_path(self._out, step)

        shown = show_command(self._out, record.command)

        self._say(f"{step.title}: {shown}")

        plain = command_line(self._config.command, step, work, rich=False)

        argv = record.command if self._on_terminal else plain

        point = None if self._ranks.alone else meeting_point()

        self._ranks.publish({"action": "run", "argv": plain, "point": point, "step": step.key})

        begin = time.monotonic()

        code = run_child(
            argv,
            cwd=self._out,
            env=child_env(self._world, point),
            log=log,
            signals=self._signals,
            on_terminal=self._on_terminal,
            lock_fd=self._lock_fd,
            should_abort=self._make_abort(),
        )

        others = self._ranks.failed() if code else self._ranks.wait()

        code = code or others or 0

        record = replace(record, seconds=round(record.seconds + time.monotonic() - begin, 3), exit_code=code)

        if self._signals.stop_requested:
            # A verb that was asked to stop ends well, but has not finished.
            write_record(self._out, record)

            self._say(f"{step.title}: stopped as asked; the same command goes on")

            raise Stopped()

        if code:
            write_record(self._out, replace(record, status="failed"))

            raise StepFailedError(describe_failure(step, code, log, shown, self._out), 2 if code == 2 else 1)

        self._finish(step, record, shown)

    def _finish(self, step: Step, record: Record, shown: str) -> None:
        files = output_files(step, self._out)

        if not files:
            write_record(self._out, replace(record, status="failed"))

            raise StepFailedError(
                f"{step.title} ended well, but did not leave what it should in '{self._out / step.key}'. Its command "
                f"was:\n  {shown}",
                1,
            )

        digests = self._shop.digests

        outputs = {f.relative_to(self._out).as_posix(): digests.of_file(f) for f in files}

        size = size_on_disk(self._out / step.key)

        write_record(self._out, replace(record, status="done", outputs=outputs, size_bytes=size))

        digests.save()

        self._say(f"{step.title}: done in {format_seconds(record.seconds)} ({format_bytes(size)})")

    def _make_abort(self) -> Callable[[], bool]:
        """Return what says that rank 0's process should be ended, since another one has failed."""
        since: list[float] = []

        def should_abort() -> bool:
            if self._ranks.alone or not self._ranks.failed():
                return False

            since.append(time.monotonic())

            return since[-1] - since[0] > _OTHERS_GRACE

        return should_abort

    def _is_last_of_round(self, step: Step) -> bool:
        keys = [s.key for s in self._shop.steps.values() if s.round_idx == step.round_idx]

        return step.round_idx is not None and keys[-1] == step.key

    def _end_round(self, step: Step) -> None:
        idx = step.round_idx

        assert idx is not None

        if self._config.rounds[idx].keep == "model":
            prune_checkpoints(self._shop.steps[f"{self._config.round_name(idx)}/pretrain"], self._out)


def _why(judgement: Judgement) -> str:
    note = f" ({judgement.note})" if judgement.note else ""

    match judgement.action:
        case "run":
            return (f"goes on, since {judgement.reason}" if judgement.reason else "is missing") + note
        case _:
            return f"again, because {judgement.reason}{note}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
