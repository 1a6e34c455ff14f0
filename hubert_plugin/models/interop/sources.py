"""Finds and reads the checkpoint that a path names: a file, a Hugging Face folder, a training run."""

from __future__ import annotations

import re
from numbers import Integral
from pathlib import Path
from typing import Any, Final, Literal, cast

from fairseq2.gang import create_fake_gangs
from fairseq2.model_checkpoint import CorruptModelCheckpointError, ModelCheckpointLoader, ModelCheckpointLoadOptions
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import StructureError, ValueConverter
from fairseq2.utils.yaml import YamlError, YamlLoader
from torch import Tensor, device

from hubert_plugin.errors import CheckpointError, format_problems
from hubert_plugin.models.hubert.config import HUBERT_FAMILY, HubertConfig
from hubert_plugin.models.hubert_ctc.config import HUBERT_CTC_FAMILY, HubertCtcConfig
from hubert_plugin.models.interop.keys import AnyConfig
from hubert_plugin.models.interop.reader import read_checkpoint, read_json
from hubert_plugin.models.interop.recognize import Checkpoint, Recognised, recognize

Step = int | Literal["last", "best"]
"""Which checkpoint of a run; ``best`` is the one with the highest validation score."""

_WEIGHT_FILES: Final = ("model.safetensors", "pytorch_model.bin")

_SUFFIXES: Final = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")


def recognize_path(path: Path | str, *, step: Step = "last", hint: HubertConfig | None = None) -> Recognised:
    """Return the checkpoint at ``path``.

    :param path: A file, a Hugging Face folder, a folder with one checkpoint file, the output folder of a training run,
        its ``checkpoints`` or ``step_N`` folder.
    :param hint: What formats without a configuration do not say.
    :raises CheckpointError: There is none, or it cannot be used.
    """
    path, step = Path(path), parse_step(step)

    if path.is_dir() and is_run_folder(path):
        return _read_run(path, step)

    if isinstance(step, int):
        raise CheckpointError(
            f"Step {step} was asked for, but '{path}' is no training run with checkpoints to choose from. Leave the "
            "step out, or name the output folder of a run."
        )

    return recognize(open_checkpoint(path), hint)


def parse_step(step: object) -> Step:
    """Return the step that is asked for; a number may be written as text, as command lines and files have it.

    :raises CheckpointError: It is neither a number nor ``best`` or ``last``.
    """
    if step == "best" or step == "last":
        return cast(Step, step)

    # Those of NumPy are integers, too; true and false are not meant as such.
    if (isinstance(step, Integral) and not isinstance(step, bool)) or (isinstance(step, str) and step.isdecimal()):
        return int(step)

    raise CheckpointError(f"`step` must be 'best', 'last' or the number of a step, but is {step!r}.")


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a file or a Hugging Face folder, and what lies beside it.

    :raises CheckpointError: There is no checkpoint, or it cannot be read.
    """
    if not path.is_dir():
        plan = path.with_suffix(".json")

        # Our export to torchaudio writes how the model is built into a file of the same name.
        config = _read_plan(plan) if path.suffix in (".pth", ".pt") and plan.is_file() else None

        return Checkpoint(path, read_checkpoint(path), config)

    if (path / "config.json").is_file():
        return _open_huggingface(path)

    files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())

    if len(files) == 1:
        return Checkpoint(files[0], read_checkpoint(files[0]))

    if files:
        names = ", ".join(p.name for p in files[:10])

        raise CheckpointError(
            f"'{path}' holds {len(files)} files that could be checkpoints: {names}. Name one of them."
        )

    raise CheckpointError(
        f"'{path}' holds no checkpoint: neither 'checkpoints/step_N' nor 'step_N' folders (a training run), nor "
        f"'config.json' (Hugging Face), nor a file that ends with {', '.join(_SUFFIXES)} were found in it."
    )


def _read_plan(path: Path) -> dict[str, Any] | None:
    """Return a plan of our export to torchaudio; ``None``: the file is something else, metrics for example."""
    try:
        plan = read_json(path)
    except CheckpointError:
        return None

    return plan if isinstance(plan.get("arguments"), dict) else None


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder is one of a training run: its output, ``checkpoints``, ``step_N`` or ``step_N/model``."""
    if re.fullmatch(r"step_\d+", folder.name) and (folder / "model").is_dir():
        return True

    if (folder / "pp_00").is_dir():
        return True

    return (folder / "checkpoints").is_dir() or any(folder.glob("step_*"))


def find_checkpoint(folder: Path, step: Step = "last") -> Path:
    """Return the ``step_N`` folder of a run.

    :param folder: The output folder of the run, its ``checkpoints`` folder, a ``step_N`` folder or ``step_N/model``.
    :raises CheckpointError: There is none.
    """
    step = parse_step(step)

    if folder.name == "model" and (folder / "pp_00").is_dir():
        folder = folder.parent

    if re.fullmatch(r"step_\d+", folder.name) and (folder / "model").is_dir():
        if isinstance(step, int) and folder.name != f"step_{step}":
            raise CheckpointError(f"Step {step} was asked for, but '{folder}' is the checkpoint of another step.")

        return folder

    root = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder

    steps = {int(p.name[5:]): p for p in root.glob("step_*") if re.fullmatch(r"step_\d+", p.name)}

    if not steps:
        raise CheckpointError(
            f"'{folder}' holds no checkpoint: neither 'checkpoints/step_N' nor 'step_N' folders were found in it."
        )

    if step == "last":
        return steps[max(steps)]

    if step == "best":
        scores = _read_scores(root)

        known = {s: scores[s] for s in steps if s in scores}

        return steps[max(known, key=lambda s: (known[s], s))] if known else steps[max(steps)]

    if step not in steps:
        raise CheckpointError(
            f"'{folder}' holds no checkpoint of step {step}. There are: {', '.join(map(str, sorted(steps)))}."
        )

    return steps[step]


def _read_scores(root: Path) -> dict[int, float]:
    scores = {}

    for file in (root / "scores").glob("step_*.txt"):
        try:
            scores[int(file.stem[5:])] = float(file.read_text())
        except ValueError:
            continue

    return scores


def _read_run(folder: Path, step: Step) -> Recognised:
    step_dir = find_checkpoint(folder, step)

    config = _read_description(step_dir.parent / "model.yaml")

    files = sorted((step_dir / "model").rglob("*.pt"))

    if not files:
        raise CheckpointError(f"'{step_dir / 'model'}' must hold the model, but no '.pt' file was found in it.")

    check_no_shard_missing(step_dir)

    if len(files) == 1:
        return Recognised(files[0], "fairseq2", config, read_checkpoint(files[0]), states_normalization=True)

    return Recognised(step_dir, "fairseq2", config, _join_shards(step_dir / "model"), states_normalization=True)


def check_no_shard_missing(step_dir: Path) -> None:
    """Check that all shards of a model are there, by those of the optimizer's state, which is cut alike.

    Of a checkpoint without the optimizer's state nothing is known.

    :param step_dir: The ``step_N`` folder of a run.
    :raises CheckpointError: Shards are missing; names them.
    """
    optimizer = step_dir / "optimizer"

    shards = sorted(p.relative_to(optimizer) for p in optimizer.rglob("sdp_*.pt"))

    if missing := [p for p in shards if not (step_dir / "model" / p).is_file()]:
        raise CheckpointError(
            format_problems(
                f"The model in '{step_dir}' lacks {len(missing)} of the {len(shards)} shards that its optimizer's "
                "state has. Bring them back, or use another step:",
                [f"'{step_dir / 'model' / p}' is missing" for p in missing],
            )
        )


def _join_shards(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint of a sharded run: fairseq2 puts the shards together."""
    loader = get_dependency_resolver().resolve(ModelCheckpointLoader)

    options = ModelCheckpointLoadOptions(gangs=create_fake_gangs(device("cpu")), restrict=True)

    try:
        return dict(loader.lazy_load(folder, {}, options))
    except (CorruptModelCheckpointError, OSError, RuntimeError, EOFError, ValueError) as ex:
        reason = str(ex).splitlines()[0] if str(ex) else type(ex).__name__

        raise CheckpointError(
            f"The shards in '{folder}' cannot be read: they are cut off or damaged ({reason}). Load another step."
        ) from ex


def _read_description(file: Path) -> AnyConfig:
    resolver = get_dependency_resolver()

    if not file.is_file():
        raise CheckpointError(
            f"The model's description '{file}' is missing; training writes it beside its checkpoints."
        )

    kinds: dict[str, type[Any]] = {HUBERT_FAMILY: HubertConfig, HUBERT_CTC_FAMILY: HubertCtcConfig}

    try:
        content: Any = resolver.resolve(YamlLoader).load(file)[0]

        family = content["model_family"]

        if family not in kinds:
            raise CheckpointError(
                f"'{file}' describes a model of the family '{family}', not of {' or '.join(map(repr, kinds))}."
            )

        return resolver.resolve(ValueConverter).structure(content["model_config"], kinds[family])  # type: ignore[no-any-return]
    except (YamlError, StructureError, KeyError, IndexError, TypeError) as ex:
        raise CheckpointError(f"'{file}' is not a description of a HuBERT model ({type(ex).__name__}: {ex}).") from None


def _open_huggingface(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")

    extras = [folder / "preprocessor_config.json", folder / "vocab.json"]

    preprocessor, vocab = (read_json(p) if p.is_file() else None for p in extras)

    return Checkpoint(folder, _read_weights(folder), config, preprocessor, _order_symbols(vocab or {}))


def _read_weights(folder: Path) -> dict[str, Any]:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return read_checkpoint(folder / name)

        if (index := folder / f"{name}.index.json").is_file():
            return _read_parts(folder, index)

    raise CheckpointError(
        f"'{folder}' has a 'config.json', but no parameters: {' or '.join(map(repr, _WEIGHT_FILES))} was looked for. "
        "Fetch that file into the folder."
    )


def _read_parts(folder: Path, index: Path) -> dict[str, Any]:
    weight_map = read_json(index).get("weight_map")

    if not isinstance(weight_map, dict):
        raise CheckpointError(f"'{index}' must have an entry 'weight_map' that says which file holds which parameter.")

    names = sorted(set(map(str, weight_map.values())))

    # A file of a stranger must not point anywhere else.
    if outside := [n for n in names if Path(n).name != n]:
        raise CheckpointError(f"'{index}' must name files of its own folder, but names {outside[0]!r}.")

    if missing := [n for n in names if not (folder / n).is_file()]:
        raise CheckpointError(
            f"{len(missing)} of the {len(names)} files that '{index}' lists are missing: {', '.join(missing[:20])}. "
            "Fetch them into the folder."
        )

    result: dict[str, Any] = {}

    for name in names:
        result.update(read_checkpoint(folder / name))

    return result


def _order_symbols(vocab: dict[str, Any]) -> list[str]:
    """Return the symbols of ``vocab.json`` by index; none if the indices have gaps."""
    by_index = {idx: symbol for symbol, idx in vocab.items() if isinstance(idx, int)}

    if sorted(by_index) != list(range(len(by_index))):
        return []

    return [by_index[idx] for idx in range(len(by_index))]
