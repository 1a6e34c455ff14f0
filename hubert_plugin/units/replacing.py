"""Unit models that are there already: whether others may take their place.

One of the same making may: it comes out the same. Labels made by another would no longer be told what made them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from hubert_plugin.data.provenance import comparable
from hubert_plugin.errors import OutputDirError, UnitModelError, format_problems
from hubert_plugin.units.model import load_units


def raise_if_unit_model_lost(path: Path, making: Mapping[str, object]) -> None:
    """Refuse to replace the unit model at ``path``, unless it was made in the same way.

    :param making: What the record of the new unit model will say, as far as it is known before the fit.
    :raises OutputDirError: There is another, or a file that is none.
    """
    if not path.exists():
        return

    try:
        record = load_units(path).provenance
    except UnitModelError as ex:
        problems = [str(ex).removesuffix(".")]
    else:
        problems = [
            f"it was made with other `{key}`: {_show(record.get(key))}, but the new one would be with {_show(value)}"
            for key, value in sorted(making.items())
            if comparable(record.get(key)) != comparable(value)
        ]

    if problems:
        raise OutputDirError(
            format_problems(
                f"'{path}' is of another making, and would be lost. Choose another output folder, or set "
                "`overwrite=true` to replace it:",
                problems,
            )
        )


def _show(value: object) -> str:
    return "none are recorded" if value is None else json.dumps(comparable(value), sort_keys=True)
