"""What stands beside label files: fairseq dictionaries, and the sidecars that tell where labels come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.errors import LabelError, format_problems

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest

FORMAT: Final = "hubert_plugin.labels"

FORMAT_VERSION: Final = 1


def check_label_set_name(name: str) -> None:
    """Check that ``name`` can be the name of a label set, which is how its files end.

    :raises LabelError: It is a path.
    """
    if "/" in name:
        folder, _, last = name.rpartition("/")

        raise LabelError(
            f"A label set is named by how its files end ('km' is 'train.km'), but '{name}' is a path. Name the folder "
            f"'{folder or '/'}' as `label_dir`, and the label set '{last.rpartition('.')[2]}'."
        )


MAX_UNITS: Final = 10_000_000
"""The largest number of units: what a damaged file or a slip of the pen claims beyond would only fill the memory."""


def dict_text(size: int) -> str:
    """Return a fairseq dictionary of the units 0 … size - 1."""
    return "".join(f"{unit} 1\n" for unit in range(size))


def read_dict(path: Path) -> list[str]:
    """Read a fairseq dictionary: the symbols, in order. fairseq's own four special symbols are not in the file.

    :raises LabelError: The file is missing, empty or malformed. (fairseq trains on ``<unk>`` alone then.)
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise LabelError(
            f"There is no dictionary '{path}'. Write it: a line '<unit> 1' for each unit, in their order. Or let "
            "`fairseq2 recipe hubert label OUT --config manifest_dir=… labels_from=… label_size=K` check the labels "
            "and write them with a dictionary of K units."
        ) from None
    except (OSError, UnicodeDecodeError) as ex:
        raise LabelError(f"The dictionary '{path}' cannot be read: {ex}") from ex

    problems, symbols, seen = [], [], dict[str, int]()

    for nr, line in enumerate(lines, start=1):
        fields = line.split()

        if fields and fields[-1] == "#fairseq:overwrite":
            fields.pop()

        if len(fields) != 2 or not fields[1].lstrip("-").isdigit():
            problems.append(f"{path}:{nr}: must be 'symbol count', but is {line!r}")
        elif fields[0] in seen:
            problems.append(f"{path}:{nr}: '{fields[0]}' is also in line {seen[fields[0]]}")
        else:
            seen[fields[0]] = nr

            symbols.append(fields[0])

    if problems:
        raise LabelError(format_problems(f"The dictionary '{path}' is malformed.", problems))

    if not symbols:
        raise LabelError(f"The dictionary '{path}' is empty; it must have a line '<unit> 1' for each unit.")

    return symbols


def symbol_table(path: Path, symbols: Sequence[str]) -> NDArray[np.int32] | None:
    """Return which dictionary row a number in the label file stands for; ``None`` if each is its own row."""
    problems = [
        f"{path}:{nr}: '{s[:40]}' is not a unit number from 0 to {MAX_UNITS - 1}"
        for nr, s in enumerate(symbols, start=1)
        if not (s.isascii() and s.isdecimal() and len(s) < 20 and int(s) < MAX_UNITS)
    ]

    if problems:
        raise LabelError(format_problems(f"The dictionary '{path}' must hold the numbers of units.", problems))

    numbers = np.array([int(s) for s in symbols])

    if np.array_equal(numbers, np.arange(len(numbers))):
        return None

    table = np.full(int(numbers.max()) + 1, -1, np.int32)

    table[numbers] = np.arange(len(numbers))

    return table


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of the label file ``path`` is."""
    return path.with_name(path.name + ".json")


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Return the sidecar of the label file ``path``, ``None`` if it has none.

    :raises LabelError: The sidecar cannot be understood.
    """
    sidecar_file = sidecar_path(path)

    try:
        content = json.loads(sidecar_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as ex:
        raise LabelError(f"'{sidecar_file}', the record of '{path.name}', cannot be read: {ex}") from ex

    check_record(sidecar_file, content)

    return dict(content)


def check_record(path: Path, content: object) -> None:
    """Check that ``content``, which was read from ``path``, is a record of labels that this release understands.

    :raises LabelError: It is not.
    """
    keys = {"label_set", "manifest_fingerprint", "num_utterances", "num_bytes", "digest"}

    if not isinstance(content, dict) or content.get("format") != FORMAT or not keys <= content.keys():
        raise LabelError(f"'{path}' must be a record of labels (format '{FORMAT}'), but is something else.")

    if content.get("format_version") != FORMAT_VERSION:
        raise LabelError(
            f"'{path}' has the format version {content.get('format_version')}; this release reads {FORMAT_VERSION}. "
            "Update fairseq2-hubert."
        )

    label_set = content["label_set"]

    if not isinstance(label_set, dict) or any(not isinstance(label_set.get(key), int) for key in ("size", "rate")):
        raise LabelError(f"'{path}' must say the size and the rate of its label set, but says {label_set!r}.")


def sidecar_problems(
    sidecar: Mapping[str, Any],
    path: Path,
    data: bytes | None,
    manifest: Manifest,
    unit_model_fingerprint: str | None,
) -> list[str]:
    """Return why the sidecar of ``path`` does not belong to its labels, to the manifest or to the unit model.

    :param data: The labels themselves; ``None``: they are not compared.
    """
    problems = []

    if sidecar["manifest_fingerprint"] != manifest.fingerprint:
        problems.append(
            f"they were made for another manifest: fingerprint {sidecar['manifest_fingerprint']} "
            f"({sidecar['num_utterances']} utterances), but '{manifest.path}' has {manifest.fingerprint} "
            f"({len(manifest.ids)} utterances)"
        )

    made_by = sidecar.get("unit_model_fingerprint")

    if unit_model_fingerprint is not None and made_by != unit_model_fingerprint:
        problems.append(
            f"they were made by another unit model: fingerprint {made_by}, but {unit_model_fingerprint} was asked for"
        )

    if data is not None and (
        sidecar["num_bytes"] != len(data) or sidecar["digest"] != hashlib.sha256(data).hexdigest()[:16]
    ):
        problems.append(
            f"they are not the labels that '{path.name}.json' tells of ({sidecar['num_bytes']} bytes, digest "
            f"{sidecar['digest']}): the file has {len(data)} bytes, or was changed. Label again, or delete the record "
            "to use the file as it is"
        )

    return problems
