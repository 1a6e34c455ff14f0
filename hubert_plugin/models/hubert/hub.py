"""``load_hubert``: a HuBERT from an asset card, a run folder, or a checkpoint file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from fairseq2.assets import AssetCardError, AssetCardNotValidError, AssetDownloadError, AssetStore
from fairseq2.data_type import DataType
from fairseq2.device import Device
from fairseq2.error import OperationalError
from fairseq2.gang import create_fake_gangs
from fairseq2.models.family import ModelFamily, ModelGatedError
from fairseq2.models.hub import ModelHubAccessor
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import StructureError, ValueConverter
from fairseq2.utils.yaml import YamlError, YamlLoader
from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HUBERT_FAMILY, HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.interop.fairseq import (
    import_fairseq_config,
    import_fairseq_state_dict,
    is_fairseq_state_dict,
)
from hubert_plugin.models.interop.reader import read_checkpoint

get_hubert_model_hub = ModelHubAccessor(HUBERT_FAMILY, kls=HubertModel, config_kls=HubertConfig)


def load_hubert(
    source: str | Path,
    *,
    step: int | Literal["last", "best"] = "last",
    device: Device | str = "cpu",
    dtype: DataType = torch.float32,
) -> HubertModel:
    """Load a HuBERT, in evaluation mode.

    :param source: The output folder of a training run, its ``checkpoints`` or ``step_N`` folder, a fairseq ``.pt``
        file, or the name of an asset card.
    :param step: Which checkpoint of a run folder; ``best`` is the one with the highest validation score.
    :raises CheckpointError: Nothing usable is found; says what was looked for.
    """
    device = torch.device(device)

    path = Path(source).expanduser()

    if path.is_dir():
        model = _load_folder(path, step)
    elif path.is_file():
        model = _load_file(path)
    else:
        return _load_card(str(source), device, dtype)

    return model.to(device=device, dtype=dtype).eval()


def find_checkpoint(folder: Path, step: int | Literal["last", "best"] = "last") -> Path:
    """Return the ``step_N`` folder of a run.

    :param folder: The output folder of the run, its ``checkpoints`` folder, or a ``step_N`` folder.
    :raises CheckpointError: There is none.
    """
    if re.fullmatch(r"step_\d+", folder.name) and (folder / "model").is_dir():
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


def _load_folder(folder: Path, step: int | Literal["last", "best"]) -> HubertModel:
    step_dir = find_checkpoint(folder, step)

    config = _read_config(step_dir.parent / "model.yaml")

    files = sorted((step_dir / "model").rglob("*.pt"))

    if len(files) != 1:
        raise CheckpointError(
            f"'{step_dir / 'model'}' must hold one model file, but holds {len(files)}. Checkpoints of sharded runs are "
            "loaded with fairseq2's own loader: `get_hubert_model_hub().load_custom_model(path, config)`."
        )

    return _build(config, read_checkpoint(files[0]), files[0])


def _read_config(file: Path) -> HubertConfig:
    resolver = get_dependency_resolver()

    if not file.is_file():
        raise CheckpointError(
            f"The model's description '{file}' is missing; training writes it beside its checkpoints."
        )

    try:
        content = resolver.resolve(YamlLoader).load(file)[0]

        if content["model_family"] != HUBERT_FAMILY:  # type: ignore[index,call-overload]
            raise CheckpointError(
                f"'{file}' describes a model of the family '{content['model_family']}', not of '{HUBERT_FAMILY}'."  # type: ignore[index,call-overload]
            )

        unstructured = content["model_config"]  # type: ignore[index,call-overload]

        return resolver.resolve(ValueConverter).structure(unstructured, HubertConfig)  # type: ignore[no-any-return]
    except (YamlError, StructureError, KeyError, IndexError, TypeError) as ex:
        raise CheckpointError(f"'{file}' is not a description of a HuBERT model ({type(ex).__name__}: {ex}).") from None


def _load_file(path: Path) -> HubertModel:
    content = read_checkpoint(path)

    state_dict = content.get("model")

    if not isinstance(state_dict, Mapping) or not is_fairseq_state_dict(state_dict):
        raise CheckpointError(
            f"'{path}' is not a fairseq HuBERT pretraining checkpoint: its entry 'model' with the keys "
            f"'encoder.pos_conv.0.bias' and 'feature_extractor.conv_layers.0.0.weight' was looked for, but its "
            f"entries are "
            f"{', '.join(sorted(map(str, content))[:10])}."
        )

    cfg = content.get("cfg")

    if not isinstance(cfg, Mapping):
        raise CheckpointError(f"'{path}' has no 'cfg' entry that is plain data; its model cannot be described.")

    task_state = content.get("task_state") or {}

    num_symbols = [len(d.symbols) for d in task_state.get("dictionaries", [])]

    config = import_fairseq_config(cfg["model"], cfg["task"], num_symbols)

    return _build(config, import_fairseq_state_dict(state_dict, config), path)


def _load_card(name: str, device: Device, dtype: DataType) -> HubertModel:
    resolver = get_dependency_resolver()

    store = resolver.resolve(AssetStore)

    card = store.maybe_retrieve_card(name)

    if card is None:
        near = get_close_matches(name, _family_cards(store), n=3, cutoff=0.4)

        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""

        raise CheckpointError(f"'{name}' is neither a folder, nor a file, nor the name of an asset card.{hint}")

    family = resolver.resolve(ModelFamily, key=HUBERT_FAMILY)

    gangs = create_fake_gangs(device)

    try:
        model = family.load_model(card, gangs, dtype, config=None, load_rank0_only=False, mmap=False)
    except AssetDownloadError as ex:
        raise CheckpointError(
            f"The checkpoint of the asset card '{name}' cannot be downloaded: {_first_lines(ex)} Without a connection, "
            "download it elsewhere and give `load_hubert` the path of the file."
        ) from ex
    except (AssetCardError, ModelGatedError, OperationalError, OSError, ValueError, RuntimeError, EOFError) as ex:
        raise CheckpointError(
            f"The checkpoint of the asset card '{name}' cannot be loaded; it may be cut off or damaged: "
            f"{_first_lines(ex)}"
        ) from ex

    assert isinstance(model, HubertModel)

    return model.eval()


def _first_lines(ex: BaseException) -> str:
    """Return what an error and its cause say, a line each."""
    texts = [str(e) or type(e).__name__ for e in (ex, ex.__cause__) if e is not None]

    return " ".join(t.partition("\n")[0] for t in texts)


def _family_cards(store: AssetStore) -> list[str]:
    """Return the names of the cards of the family. One card that is damaged does not hide the others."""
    names = []

    for name in sorted({n.partition("@")[0] for n in store.asset_names}):
        with suppress(AssetCardError, AssetCardNotValidError):
            card = store.maybe_retrieve_card(name)

            field = card.maybe_get_field("model_family") if card is not None else None

            if field is not None and field.value == HUBERT_FAMILY:
                names.append(name)

    return names


def _build(config: HubertConfig, state_dict: Mapping[str, object], path: Path) -> HubertModel:
    with torch.device("meta"):
        model = create_hubert_model(config, get_dependency_resolver())

    expected = model.state_dict()

    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - expected.keys())

    shapes = [
        f"{key} (expected {tuple(expected[key].shape)}, found {tuple(value.shape)})"
        for key, value in state_dict.items()
        if isinstance(value, Tensor) and key in expected and value.shape != expected[key].shape
    ]

    if missing or unexpected or shapes:
        parts = [
            f"{label}: {', '.join(items[:10])}{' …' if len(items) > 10 else ''}"
            for label, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if items
        ]

        raise CheckpointError(f"The parameters in '{path}' do not fit the model they describe; {'; '.join(parts)}.")

    model.load_state_dict(dict(state_dict), assign=True)

    return model


def convert_state_dict(state_dict: dict[str, object], config: HubertConfig) -> dict[str, object]:
    """Convert the state dict of a card's checkpoint (fairseq's or our own) to this package's names."""
    content = state_dict.get("model", state_dict)

    assert isinstance(content, dict)

    if is_fairseq_state_dict(content):
        return dict(import_fairseq_state_dict(content, config))

    return content
