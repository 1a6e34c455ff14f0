"""The data that a run was started with: fingerprints, kept in its folder and compared when the run goes on.

Where manifests and labels lie is no part of it: they may be moved, and another folder may hold others of the same
name. Nor is what was said there of the audio itself; a manifest's fingerprint is of ids, order and sizes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fairseq2.recipe.base import RecipeContext

from hubert_plugin.data.labels import LabelSet
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.errors import OutputDirError, format_problems
from hubert_plugin.files import write_text_atomic
from hubert_plugin.tasks.output_dir import DATA_RECORD, put_config_back
from hubert_plugin.text.counts import count


@final
@dataclass(frozen=True)
class UsedData:
    """The data of a split."""

    manifest: Manifest

    labels: Sequence[LabelSet] = ()
    """Its label sets; none where transcripts are trained on, of which :mod:`.ctc_record` keeps account."""

    def describe(self) -> dict[str, Any]:
        return {
            "manifest": {"fingerprint": self.manifest.fingerprint, "num_utterances": len(self.manifest)},
            "labels": {
                labels.spec.name: {
                    "unit_model": (labels.provenance or {}).get("unit_model_fingerprint"),
                    "form": labels.form,
                    "digest": labels.digest,
                }
                for labels in self.labels
            },
        }


def keep_or_check_data(context: RecipeContext, splits: Mapping[str, UsedData], *, resumed: bool) -> None:
    """Check that a run goes on with the data it was started with; keep their fingerprints where it begins.

    Runs from before there was a record go on, and have one from then on. Call it on all ranks, which all answer alike.

    :param splits: The data by split.
    :param resumed: Whether the run goes on from a checkpoint.
    :raises OutputDirError: Other data are used now, or the record is damaged. ``OUT/config.yaml`` is what it was.
    """
    try:
        keep_or_check(context.output_dir, splits, resumed=resumed, is_first=context.gangs.root.rank == 0)
    except OutputDirError:
        put_config_back(context.resolver, context.output_dir)

        raise


def keep_or_check(output_dir: Path, splits: Mapping[str, UsedData], *, resumed: bool, is_first: bool) -> None:
    """Do what :func:`keep_or_check_data` does, in any folder; rank 0 (``is_first``) writes."""
    file = output_dir / DATA_RECORD

    record = {name: used.describe() for name, used in splits.items()}

    if not resumed or not file.is_file():
        if is_first:
            write_text_atomic(file, json.dumps({"splits": record}, indent=2) + "\n")

        return

    try:
        before = json.loads(file.read_text(encoding="utf-8"))["splits"]

        changes = [
            change
            for name, used in splits.items()
            if name in before
            for change in _compare(before[name], record[name], used.manifest)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as ex:
        raise OutputDirError(
            f"'{file}', which says what data the run was started with, cannot be used ({type(ex).__name__}). "
            "Restore it, or delete it to go on with the data of now."
        ) from ex

    if changes:
        raise OutputDirError(
            format_problems(
                f"The run in '{output_dir}' was started with other data. Bring the old data back to go on with it, or "
                f"choose a new output folder. (If you know that they are as good, delete '{file}'.) What differs:",
                changes,
            )
        )


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Say what changed in a split."""
    old, new = before["manifest"], now["manifest"]

    if old["fingerprint"] != new["fingerprint"]:
        # Labels are of a manifest: of another one they are others, too.
        return [
            f"the manifest of the split '{manifest.split}' had the fingerprint {old['fingerprint']} "
            f"({count(old['num_utterances'], 'utterance')}), but '{manifest.path}' has {new['fingerprint']} "
            f"({count(new['num_utterances'], 'utterance')})"
        ]

    changes = []

    for name in before["labels"].keys() & now["labels"].keys():
        what = f"the labels '{name}' of the split '{manifest.split}'"

        old, new = before["labels"][name], now["labels"][name]

        makers, digests = (old["unit_model"], new["unit_model"]), (old["digest"], new["digest"])

        if None not in makers and makers[0] != makers[1]:
            changes.append(f"{what} came from the unit model {makers[0]}, but come from {makers[1]} now")
        elif digests[0] != digests[1] and (old["form"] == new["form"] or None in makers):
            # The digests of two forms say nothing; labels of one unit model may have been converted.
            forms = "" if old["form"] == new["form"] else f" (format `{old['form']}`, and `{new['form']}` now)"

            changes.append(f"{what} had the digest {digests[0]}, but have {digests[1]} now{forms}")

    return sorted(changes)
