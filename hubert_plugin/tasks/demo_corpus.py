"""The embedded corpus in a run of one or more processes: rank 0 makes it, the others wait."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.utils.progress import ProgressReporter, ProgressTask

from hubert_plugin.demo import DemoCorpusConfig, ensure_demo_corpus
from hubert_plugin.ranks import run_on_first


def make_demo_corpus(config: DemoCorpusConfig, gangs: Gangs, reporter: ProgressReporter) -> Path:
    """Return the folder of the corpus, which is made if it is not in the cache. Call on all ranks."""

    def make() -> None:
        # Whoever meant data of their own should not wonder at the results of an evening.
        log.info("No manifest is named (`dataset.manifest_dir`): training on the embedded demo corpus.")

        with reporter:
            ensure_demo_corpus(config, progress=ProgressBar(reporter, "corpus"))

    run_on_first(gangs.root, make)

    # In the cache by now.
    return ensure_demo_corpus(config)


@final
class ProgressBar:
    """A progress callback ``(done, total)`` that draws fairseq2's progress bar."""

    def __init__(self, reporter: ProgressReporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._task: ProgressTask | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._done >= total:
            return

        if self._task is None:
            self._task = self._reporter.create_task(self._name, total)

        self._task.step(done - self._done)

        self._done = done

        if done >= total:
            self._task.close()
