"""Steps: what is to be done, on which command line, and which files tell that it is done."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hubert_plugin.errors import ConfigError
from hubert_plugin.refinement.digests import last_checkpoint
from hubert_plugin.refinement.settings import flow_yaml

if TYPE_CHECKING:
    from hubert_plugin.refinement.workshop import Workshop

OWN_COMMAND: Final = (sys.executable, "-m", "hubert_plugin")
"""How verbs are started unless the configuration says otherwise."""

TRAININGS: Final = ("pretrain", "finetune")
"""Verbs whose results took long, and which go on from a checkpoint."""

_HOW: Final = {
    "": ("common", "gang", "num_workers"),
    "cluster": ("features.config.device", "features.config.max_batch_seconds", "units.config.device"),
    "label": ("num_shards", "overwrite", "shard", "features.config.device", "features.config.max_batch_seconds"),
    "analyze": ("plots",),
    "pretrain": (
        "dataset.on_bad_audio",
        "model.compile",
        "model.compile_options",
        "regime.checkpoint_every_n_steps",
        "regime.keep_best_n_checkpoints",
        "regime.keep_last_n_checkpoints",
        "regime.publish_metrics_every_n_steps",
        "regime.validate_every_n_steps",
        "report",
        "task.config.batching.batch_seconds",
        "task.config.max_valid_batches",
        "task.config.num_prefetch",
        "task.config.num_workers",
        "task.config.valid_batch_seconds",
        "trainer.activation_checkpointing",
        "trainer.data_parallelism",
    ),
}
"""Options that say how something is computed, not what: a change is no reason to do it again. What `pretrain` lets a
run go on with is among them."""


@dataclass(frozen=True)
class Work:
    """A step whose options are known."""

    options: Mapping[str, Any]
    """What the command line says, by dotted key. Places are relative to OUT, or absolute."""

    settings: Mapping[str, Any]
    """What of it counts for the result. Places do not: what lies there does."""

    inputs: Mapping[str, str]
    """Digests of what the step reads."""

    preset: str | None = None


@dataclass(frozen=True)
class Step:
    """Something to be done, once what it needs is there."""

    key: str
    """Such as ``round1/cluster``: also its folder below OUT."""

    verb: str

    round_idx: int | None

    make: Callable[[Workshop], Work]
    """Says what to do. Raises ``NotYet`` where an earlier step has not told yet what is needed."""

    flags: Sequence[str] = ()
    """Options of the verb's own."""

    @property
    def title(self) -> str:
        """The step's name for people."""
        return self.key.replace("/", " / ")

    @property
    def is_training(self) -> bool:
        """Whether it goes on from checkpoints, and is worth keeping when it is replaced."""
        return self.verb in TRAININGS


def is_how(verb: str, key: str) -> bool:
    """Return whether an option only says how something is computed."""
    of_verb = _HOW.get("pretrain" if verb in TRAININGS else verb, ())

    return any(key == how or key.startswith(f"{how}.") for how in (*_HOW[""], *of_verb))


def command_line(prefix: Sequence[str], step: Step, work: Work, *, rich: bool = True) -> list[str]:
    """Return the command that does a step, to be run in OUT.

    :param rich: Whether it may draw colours and progress bars.
    """
    argv = [*(prefix or OWN_COMMAND), "recipe", "hubert", step.verb]

    argv.append("." if step.verb == "iterate" else step.key)

    argv += step.flags

    if work.preset is not None:
        argv += ["--preset", work.preset]

    if not rich and step.verb != "iterate":
        argv.append("--no-rich")

    if work.options:
        argv.append("--config")

        argv += [f"{key}={flow_yaml(value)}" for key, value in work.options.items()]

    return argv


def show_command(out: Path, argv: Sequence[str]) -> str:
    """Return a command line as it can be typed anywhere."""
    return f"cd {shlex.quote(str(out))} && {shlex.join(argv)}"


def find_step(steps: Mapping[str, Step], name: str) -> int:
    """Return the place of a step.

    :raises ConfigError: There is none of that name.
    """
    keys = list(steps)

    if name not in keys:
        from difflib import get_close_matches

        near = get_close_matches(name, keys, n=2)

        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

        raise ConfigError(f"There is no step '{name}'.{hint} The steps: {', '.join(keys)}.")

    return keys.index(name)


def output_files(step: Step, out: Path) -> list[Path]:
    """Return the files that a step left and that are looked after; empty if what it should leave is not there."""
    folder = out / step.key

    match step.verb:
        case "cluster":
            return _all_there(folder, ("units.safetensors", "units.json"))
        case "analyze":
            return _all_there(folder, ("analysis.json",))
        case "manifest":
            files = sorted(folder.glob("*.tsv"))

            return files if files else []
        case "label":
            return sorted(f for f in _label_files(folder))
        case "iterate":
            return _all_there(folder, ("index.html", "report.json"))
        case _:
            return _model_files(folder)


def result_files(step: Step, out: Path) -> list[Path]:
    """Return those of :func:`output_files` that later steps depend on: records of versions and times are not."""
    files = output_files(step, out)

    match step.verb:
        case "cluster":
            return [f for f in files if f.suffix == ".safetensors"]
        case "label":
            return [f for f in files if f.suffix != ".json"]
        case _:
            return files


def _all_there(folder: Path, names: Iterable[str]) -> list[Path]:
    files = [folder / name for name in names]

    return files if all(f.is_file() for f in files) else []


def _label_files(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        return

    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith(".") and file.suffix not in (".yaml", ".log", ".lock", ".tmp"):
            yield file


def _model_files(folder: Path) -> list[Path]:
    step = last_checkpoint(folder)

    if step is None:
        return []

    files = [f for f in (step / "model").rglob("*") if f.is_file()]

    description = step.parent / "model.yaml"

    if not files or not description.is_file():
        return []

    return sorted([description, *files])
