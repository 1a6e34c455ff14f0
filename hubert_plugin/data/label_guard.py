"""Labels that are there already: whether others may take their place.

Labels of the same making may: they come out the same, also where a killed run left half of them. Those of another unit
model, manifest or other features would be lost, and so would somebody's own, which nothing tells of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hubert_plugin.data.label_binary import read_binary_record
from hubert_plugin.data.label_meta import read_sidecar, sidecar_problems
from hubert_plugin.data.label_writer import LabelForm, label_files
from hubert_plugin.data.provenance import comparable
from hubert_plugin.errors import LabelError
from hubert_plugin.registry import LabelSetSpec

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

BOOKKEEPING: Final = frozenset(
    (
        *("format", "format_version", "label_set", "manifest_fingerprint"),
        *("num_utterances", "num_labels", "num_bytes", "digest"),
    )
)
"""What a record says of its own file; the rest says where the labels come from, and goes with them."""

_FORMS: Final[tuple[LabelForm, ...]] = ("km", "binary")


def present_labels(label_dir: Path, split: str, name: str) -> list[tuple[Path, LabelForm]]:
    """Return the files of the labels ``<split>.<name>`` that are there, of either form."""
    paths = [(label_files(label_dir, split, name, form)[0], form) for form in _FORMS]

    return [(path, form) for path, form in paths if path.exists()]


def replacing_problems(
    label_dir: Path,
    manifest: Manifest,
    spec: LabelSetSpec,
    provenance: Mapping[str, object],
    *,
    is_half: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Return why labels of ``manifest`` must not take the place of those in ``label_dir``; nothing if they may.

    :param provenance: What the records of the new labels say of their making.
    :param is_half: Tells of labels without a record whether a run like this one, which was killed, left them.
    """
    problems = []

    for path, form in present_labels(label_dir, manifest.split, spec.name):
        try:
            record = read_sidecar(path) if form == "km" else read_binary_record(path)
        except LabelError as ex:
            problems.append(f"{path.name}: {str(ex).removesuffix('.')}")
            continue

        if record is not None:
            problems += [f"{path.name}: {p}" for p in _differences(record, path, manifest, spec, provenance)]
        elif not is_half():
            problems.append(f"{path.name}: there is no record '{path.name}.json' of what made them")

    return problems


def _differences(
    record: Mapping[str, Any],
    path: Path,
    manifest: Manifest,
    spec: LabelSetSpec,
    provenance: Mapping[str, object],
) -> list[str]:
    unit_model = provenance.get("unit_model_fingerprint")

    problems = sidecar_problems(record, path, None, manifest, None if unit_model is None else str(unit_model))

    # What was made by another unit model, or for another manifest, differs in more, which is no news.
    if problems:
        return problems

    if record["label_set"] != asdict(spec):
        problems.append(f"they are the label set {_show(record['label_set'])}, but would be {_show(asdict(spec))}")

    old = comparable({k: v for k, v in record.items() if k not in BOOKKEEPING})

    new = comparable(provenance)

    for key in sorted(old.keys() | new.keys()):
        if key == "data" and _without_files(old.get(key)) == _without_files(new.get(key)) != old.get(key):
            problems.append("they were made from features in files that were written anew since")
        elif old.get(key) != new.get(key):
            problems.append(
                f"they were made with other {key.replace('_', ' ')}: {_show(old.get(key))}, but these are "
                f"{_show(new.get(key))}"
            )

    return problems


def _without_files(data: object) -> object:
    return {k: v for k, v in data.items() if k != "files"} if isinstance(data, Mapping) else data


def _show(value: object) -> str:
    return "none" if value is None else json.dumps(value, sort_keys=True)
