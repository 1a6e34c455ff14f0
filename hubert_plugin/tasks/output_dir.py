"""Guards a run's output folder: one folder is one run, and its last checkpoint must be whole."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Final

from fairseq2.checkpoint import CheckpointDir
from fairseq2.file_system import FileSystem
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.internal.config import _RecipeConfigHolder
from fairseq2.recipe.internal.output_dir import _OutputDirectoryCreator
from fairseq2.recipe.internal.sweep_tag import _SweepTagGenerator
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.structured import ValueConverter
from fairseq2.utils.yaml import YamlError, YamlLoader
from fairseq2.world_info import WorldInfo

from hubert_plugin.errors import CheckpointError, OutputDirError, format_problems
from hubert_plugin.files import atomic_path
from hubert_plugin.ranks import run_together
from hubert_plugin.tasks.batching import BatchingTaskConfig
from hubert_plugin.tasks.world_size import fit_checkpoint_to_ranks

DATA_RECORD: Final = "data.json"
"""The file in a run's folder that holds the fingerprints of its data (:mod:`.data_record`)."""

TEXT_RECORD: Final = "transcripts.json"
"""The file in a run's folder that holds checksums of its transcripts (:mod:`.ctc_record`)."""

_PLACES: Final = {
    "dataset.manifest_dir": DATA_RECORD,
    "dataset.label_dir": DATA_RECORD,
    "dataset.transcripts.dir": TEXT_RECORD,
    "dataset.transcripts.file": TEXT_RECORD,
}
"""Keys that say where data are, and the record that says what they were. With the record, data may be moved."""


def register_output_guard(container: DependencyContainer, *, identity: Sequence[str] = ()) -> None:
    """Refuse an output folder that holds another run, before anything is written into it.

    :param identity: The configuration sections, or keys in them, that make a training run what it is: they may not
        change while it has checkpoints; everything else (steps, learning rate, …) may. Empty for recipes that do not
        train: they may write beside each other's results, but not into a training run.
    """

    def create(resolver: DependencyResolver) -> _OutputDirectoryCreator:
        return _GuardedCreator(resolver, identity)

    # fairseq2 has no hook between reading the configuration and writing OUT/config.yaml, and its container refuses a
    # second provider; so its provider is taken out first.
    container._registrations.pop((_OutputDirectoryCreator, None), None)

    container.register(_OutputDirectoryCreator, create, singleton=True)


class _GuardedCreator(_OutputDirectoryCreator):  # type: ignore[misc]
    """Looks into an existing folder the first time it is asked for, on rank 0."""

    def __init__(self, resolver: DependencyResolver, identity: Sequence[str]) -> None:
        super().__init__(resolver.resolve(_SweepTagGenerator), resolver.resolve(FileSystem))

        self._resolver = resolver
        self._identity = identity
        self._rank = resolver.resolve(WorldInfo).rank
        self._checked: set[Path] = set()
        self._previous: dict[Path, bytes] = {}

    def create(self, output_dir: Path) -> Path:
        if output_dir.exists() and not output_dir.is_dir():
            raise OutputDirError(f"The output folder '{output_dir}' is a file. Choose another.")

        path = super().create(output_dir)

        # By rank 0 alone, which writes OUT/config.yaml: to the others it can look half-written.
        if self._rank == 0 and path not in self._checked:
            self._checked.add(path)

            self._check(path)

        return path

    def _check(self, path: Path) -> None:
        checkpoint_dir = checkpoint_folder(self._resolver, path)

        if not self._identity:
            if _step_dirs(checkpoint_dir):
                raise OutputDirError(f"The output folder '{path}' holds a training run. Choose another folder.")

            return

        file = path / "config.yaml"

        if not file.is_file():
            if _step_dirs(checkpoint_dir):
                raise OutputDirError(
                    f"The output folder '{path}' holds checkpoints, but no config.yaml that says of what. "
                    f"Choose another."
                )

            return

        try:
            previous: Any = self._resolver.resolve(YamlLoader).load(file)[0]
        except (YamlError, IndexError, OSError, UnicodeDecodeError):
            # A process that was killed while it wrote the file, which is written anew at every start. What the
            # checkpoints are of, the model's own description beside them says, too.
            log.warning("'{}' is damaged; it is taken for that of this run, and written anew.", file)

            return

        config = self._resolver.resolve(_RecipeConfigHolder).config

        current: Any = self._resolver.resolve(ValueConverter).unstructure(config)

        if previous is None and not file.stat().st_size:
            log.warning("'{}' is empty; it is taken for that of this run, and written anew.", file)

            return

        missing = [name for name in self._identity if _get(previous, name) is _NOTHING]

        if missing:
            raise OutputDirError(
                f"The output folder '{path}' holds a run of another recipe, or a damaged one: its config.yaml has no "
                f"'{missing[0]}'. Choose another folder (or, if it is this run, delete that file's contents: an empty "
                "one is written anew)."
            )

        if not _step_dirs(checkpoint_dir):
            return

        recorded = {key for key, record in _PLACES.items() if (path / record).is_file()}

        changes = [
            change
            for name in self._identity
            for change in _changes(_get(previous, name), _get(current, name), name, recorded)
        ]

        if changes:
            raise OutputDirError(
                format_problems(
                    f"The output folder '{path}' holds another run; run the same command to go on with it, or choose "
                    "another folder. What differs:",
                    changes,
                )
            )

        self._previous[file] = file.read_bytes()

    def put_config_back(self, path: Path) -> None:
        file = path / "config.yaml"

        if (data := self._previous.get(file)) is not None:
            with atomic_path(file) as tmp:
                tmp.write_bytes(data)


def put_config_back(resolver: DependencyResolver, output_dir: Path) -> None:
    """Give a training run that does not go on the ``config.yaml`` that it had. Rank 0 does it, others do nothing."""
    guard = resolver.resolve(_OutputDirectoryCreator)

    if isinstance(guard, _GuardedCreator):
        guard.put_config_back(output_dir)


_NOTHING = object()


def _get(config: object, name: str) -> object:
    """Return the value of a dotted key, or ``_NOTHING``."""
    for key in name.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return _NOTHING

        config = config[key]

    return config


_MAY_CHANGE = frozenset(
    {
        "dataset.on_bad_audio",
        "task.config.batching.batch_seconds",
        "task.config.max_valid_batches",
        "task.config.num_prefetch",
        "task.config.num_workers",
        "task.config.valid_batch_seconds",
    }
)
"""What says how a run is computed, not what: it is changed where memory is short, or where a file broke. With batches
of another size, what is left of an epoch is put into batches anew."""


def _changes(old: object, new: object, name: str, recorded: Set[str]) -> list[str]:
    """:param recorded: The keys of places whose contents are compared later, by a record."""
    # Without a manifest, a run is of a card: that is no place, and its corpus may have to be made to be compared.
    is_card = name == "dataset.manifest_dir" and None in (old, new)

    if name in _MAY_CHANGE or (name in recorded and not is_card):
        return []

    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            change
            for key in sorted({*old, *new}, key=str)
            for change in _changes(old.get(key), new.get(key), f"{name}.{key}", recorded)
        ]

    if _plain(old) == _plain(new):
        return []

    if name in _PLACES and None not in (old, new) and _place(old) == _place(new):
        return []

    return [f"`{name}` was {_plain(old)!r}, but is {_plain(new)!r} now"]


def _place(value: object) -> Path:
    return Path(str(value)).expanduser().resolve()


def _plain(value: object) -> object:
    """Make values comparable that YAML reads back as another type."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]

    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # Whole numbers are shown as such: 40, not 40.0.
        return int(value) if float(value).is_integer() else float(value)

    return None if value is None else str(value)


def checkpoint_folder(resolver: DependencyResolver, output_dir: Path) -> Path:
    """Return the folder of a run's checkpoints: that of ``--checkpoint-dir``, or ``OUT/checkpoints``."""
    return resolver.resolve(CheckpointDir).path or output_dir / "checkpoints"


def _step_dirs(checkpoint_dir: Path) -> dict[int, Path]:
    dirs = checkpoint_dir.glob("step_*")

    return {int(p.name[5:]): p for p in dirs if re.fullmatch(r"step_\d+", p.name) and p.is_dir()}


def check_last_checkpoint(checkpoint_dir: Path, gangs: Gangs, task_config: object) -> None:
    """Check that the checkpoint from which the run would be resumed is whole, and fit it to the ranks that run now.

    :param gangs: The processes; each must call this.
    :param task_config: The configuration of the task, which may keep the batch of an update whatever runs.
    :raises CheckpointError: A file of it is missing or is missing its end, or it is sharded over another number of
        processes.
    """
    # Without the trainer's state a checkpoint is a model only, from which nothing is resumed.
    steps = {step: path for step, path in _step_dirs(checkpoint_dir).items() if (path / "trainer").is_dir()}

    if not steps:
        return

    last = max(steps)

    others = sorted(steps.keys() - {last})

    if others:
        advice = f"Delete the folder '{steps[last]}' to go on from step {others[-1]}."
    else:
        advice = f"There is no earlier one; delete the folder '{steps[last]}' to start anew."

    def check_files() -> None:
        for part in ("trainer", "model", "optimizer", "data_reader"):
            files = sorted((steps[last] / part).rglob("*.pt"))

            if not files:
                raise CheckpointError(
                    f"The checkpoint of step {last} is damaged: there are no files in '{steps[last] / part}'. {advice}"
                )

            for file in files:
                # By one process: all of the file is read.
                if reason := _why_damaged(file, thorough=gangs.root.rank == 0):
                    raise CheckpointError(
                        f"The checkpoint of step {last} is damaged: '{file}' ({file.stat().st_size:,} bytes) {reason}. "
                        f"{advice}"
                    )

    run_together(gangs.root, check_files)

    for file in sorted((checkpoint_dir / "scores").glob("step_*.txt")):
        _check_score(file)

    keeps_batch = isinstance(task_config, BatchingTaskConfig) and task_config.global_batch_seconds is not None

    fit_checkpoint_to_ranks(steps[last], gangs, keeps_batch=keeps_batch)


def _why_damaged(file: Path, *, thorough: bool) -> str:
    """Return what is wrong with a file of PyTorch's; nothing if it is whole."""
    # They are zip archives, whose directory stands at the end: a file that was cut off has none.
    if not zipfile.is_zipfile(file):
        return "is cut off"

    if not thorough:
        return ""

    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as ex:
        # The last: damaged bytes may name a compression that there is not.
        return f"cannot be read ({ex})"

    return f"has other contents than were written (checksum of '{damaged}')" if damaged else ""


def _check_score(file: Path) -> None:
    try:
        float(text := file.read_text(encoding="utf-8", errors="replace"))
    except ValueError:
        raise CheckpointError(
            f"'{file}' must hold the score of a checkpoint, a number, but holds '{text[:40].strip()}'. Delete the "
            "file: that checkpoint then counts as one without a score."
        ) from None


def remove_unfinished_checkpoints(checkpoint_dir: Path) -> None:
    """Remove what a killed run left of a checkpoint that it had not finished writing."""
    for path in checkpoint_dir.glob("step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
