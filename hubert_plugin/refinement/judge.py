"""Whether a step is done, and if not, why, and what has to be cleared before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from hubert_plugin.refinement.digests import Digests, checkpoint_steps
from hubert_plugin.refinement.record import Fingerprint, Record, plain
from hubert_plugin.refinement.steps import Step, Work, output_files

Action = Literal["keep", "run", "repair", "redo"]
"""``keep``: it is done. ``run``: run the verb, which goes on with what is there. ``repair``: what it left is damaged.
``redo``: what is there is of another making."""

_DEPENDENCIES: Final = ("fairseq2", "torch", "torchaudio", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Judgement:
    """What is to be done with a step."""

    action: Action

    reason: str
    """Why, as it stands behind ``again, because`` and the like."""

    note: str = ""
    """Something that a reader should know all the same."""


def fingerprint(step: Step, work: Work, code: Mapping[str, str]) -> Fingerprint:
    """Return what the result of a step depends on."""
    return Fingerprint(
        verb=step.verb,
        preset=work.preset,
        settings=plain(dict(work.settings)),
        inputs=dict(work.inputs),
        code=dict(code),
    )


def judge(
    step: Step, now: Fingerprint, record: Record | None, out: Path, digests: Digests, *, on_code_change: str
) -> Judgement:
    """Say what is to be done with a step.

    :param record: What is known of it.
    :param on_code_change: ``keep`` or ``redo``.
    """
    if record is None:
        return Judgement("run", "")

    if differences := now.differences(record.fingerprint):
        return Judgement("redo", _join(differences))

    code = now.code_differences(record.fingerprint)

    if code and on_code_change == "redo":
        return Judgement("redo", f"the code changed: {_join(code)}")

    note = f"made with {_join(now.other_versions(record.fingerprint))}" if code else ""

    if record.status == "clearing":
        return Judgement("redo", record.reason, note)

    if record.status != "done":
        what = "it had failed" if record.status == "failed" else "it was interrupted"

        return Judgement("run", what, note)

    if damage := find_damage(step, record, out, digests):
        return Judgement("repair", _join(damage), note)

    return Judgement("keep", "", note)


def find_damage(step: Step, record: Record, out: Path, digests: Digests) -> list[str]:
    """Say which files of a step are missing or were altered."""
    found = []

    for name, digest in record.outputs.items():
        path = out / name

        try:
            if digests.of_file(path) != digest:
                found.append(f"{name} was altered")
        except OSError:
            found.append(f"{name} is missing")

    if not record.outputs:
        found.append("it left nothing")

    # A later checkpoint than the recorded one, of a training that went on by hand.
    if not found and step.is_training:
        known = set(record.outputs)

        others = [f for f in output_files(step, out) if f.relative_to(out).as_posix() not in known]

        found += [f"{others[0].relative_to(out).as_posix()} came since"] if others else []

    return found


def clear_damage(step: Step, record: Record, out: Path, digests: Digests) -> None:
    """Remove what is damaged, so that the verb makes it again: of a training the checkpoint, so that it goes on from an
    earlier one; of anything else, all."""
    folder = out / step.key

    if not step.is_training:
        remove(folder)

        return

    for nr, path in checkpoint_steps(folder).items():
        names = {n: d for n, d in record.outputs.items() if f"/step_{nr}/" in n}

        if names and any(_differs(digests, out / n, d) for n, d in names.items()):
            remove(path)


def clear_all(step: Step, out: Path, *, keep: bool) -> Path | None:
    """Remove what a step left, or move it to ``OUT/replaced`` if it was a training, and return where it is.

    :param keep: Whether trainings are moved instead of deleted.
    """
    folder = out / step.key

    if not folder.exists():
        return None

    if not (keep and step.is_training and checkpoint_steps(folder)):
        remove(folder)

        return None

    name = step.key.replace("/", "-")

    nr = 1

    while (target := out / "replaced" / f"{name}-{nr}").exists():
        nr += 1

    target.parent.mkdir(exist_ok=True)

    folder.rename(target)

    return target


def remove(folder: Path) -> None:
    """Remove a folder so that, if this is killed, no half of it stands under its name."""
    if not folder.exists():
        return

    doomed = folder.with_name(f".{folder.name}.removed")

    shutil.rmtree(doomed, ignore_errors=True)

    folder.rename(doomed)

    shutil.rmtree(doomed, ignore_errors=True)


def prune_checkpoints(step: Step, out: Path) -> None:
    """Leave of a training the last model alone."""
    steps = checkpoint_steps(out / step.key)

    for nr, path in steps.items():
        if nr != max(steps):
            remove(path)

            continue

        for part in path.iterdir():
            if part.is_dir() and part.name != "model":
                remove(part)


def code_versions(package: Path, digests: Digests) -> dict[str, str]:
    """Return the versions that results depend on: of this package with a digest of its modules, and of others."""
    import hubert_plugin

    # In a checkout the recipes lie beside the package, in an installation in it.
    folders = [package] if (package / "recipes").is_dir() else [package, package.parent / "recipes"]

    files = [f for folder in folders for f in folder.rglob("*.py") if _counts(f.relative_to(folder.parent))]

    digest = digests.of_files(package.parent, files)

    versions = {"fairseq2-hubert": f"{hubert_plugin.__version__}, modules {digest[:8]}"}

    for name in _DEPENDENCIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue

    return versions


def _counts(path: Path) -> bool:
    # Not what runs the steps, and not what shows them: neither changes what they leave.
    return not {"refinement", "iterate", "page", "arguments.py", "cli.py", "discovery.py"} & set(path.parts)


def _differs(digests: Digests, path: Path, digest: str) -> bool:
    try:
        return digests.of_file(path) != digest
    except OSError:
        return True


def _join(parts: list[str]) -> str:
    shown = parts[:3]

    more = len(parts) - len(shown)

    return "; ".join(shown) + (f"; and {more} more" if more else "")
