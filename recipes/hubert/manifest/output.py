"""What the recipe leaves in its output folder: manifests, the list of skipped files, and how they were made."""

from __future__ import annotations

import filecmp
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hubert_plugin import __version__
from hubert_plugin.data.kaldi_manifest import KaldiScan
from hubert_plugin.data.manifest import SKIPPED_NAME, Manifest, field_problem, manifest_aside
from hubert_plugin.data.scan import ScanResult, Utterance
from hubert_plugin.data.utterance_ids import utterance_ids_path, write_utterance_ids
from hubert_plugin.errors import ManifestError, OutputDirError, printable
from hubert_plugin.files import write_text_atomic

SUMMARY_NAME = "manifest.json"
TRAIN_SPLIT = "train"
VALID_SPLIT = "valid"


@dataclass(frozen=True)
class ManifestOutput:
    """The output folder."""

    path: Path

    options: Mapping[str, object]
    """All that decides what is written, as plain JSON values."""

    def check(self, overwrite: bool) -> None:
        """Make sure that nothing of another origin is overwritten.

        :raises OutputDirError: The folder holds manifests made in another way, or by something else.
        """
        if overwrite:
            return

        present = [self._path(s).name for s in (TRAIN_SPLIT, VALID_SPLIT) if self._path(s).exists()]
        recorded = self._read_options()

        if recorded is None:
            if present:
                raise OutputDirError(
                    f"'{self.path}' already holds {' and '.join(present)}, but no '{SUMMARY_NAME}' that says how they "
                    "were made. Choose another output folder, or set `overwrite=true` to replace them."
                )

            return

        if changed := [k for k in sorted({*recorded, *self.options}) if recorded.get(k) != self.options.get(k)]:
            differences = "; ".join(f"`{k}` was {recorded.get(k)!r}, is {self.options.get(k)!r}" for k in changed)

            raise OutputDirError(
                f"'{self.path}' already holds manifests that were made in another way: {differences}. Choose another "
                "output folder, or set `overwrite=true` to replace them (labels beside them will no longer fit)."
            )

    def write(
        self,
        scan: ScanResult,
        train: Sequence[Utterance],
        valid: Sequence[Utterance],
        valid_scan: ScanResult | None = None,
        kaldi: Mapping[str, KaldiScan] | None = None,
        **more: object,
    ) -> None:
        """Write everything, each file atomically, and the manifests aside before anything else is touched.

        ``manifest.json`` comes first, so that a run that was killed in between is known as the same when started again;
        the manifests come last, and those of two runs are never there together.

        :raises ManifestError: A folder of audio has a name that a manifest cannot express; nothing is written.
        :param valid_scan: What ``valid`` comes from, if not from ``scan``.
        :param kaldi: The kaldi data folder that each split comes from, if it does.
        """
        sides = {TRAIN_SPLIT: train, VALID_SPLIT: valid}
        roots = {TRAIN_SPLIT: scan.root, VALID_SPLIT: (valid_scan or scan).root}
        manifests = {s: self._to_manifest(s, roots[s], u) for s, u in sides.items() if u}

        for manifest in manifests.values():
            if problem := field_problem(str(manifest.root)):
                raise ManifestError(f"The folder {problem}")

        summary = {
            "version": __version__,
            "options": self.options,
            "root": str(scan.root),
            "splits": {
                split: {
                    "utterances": len(manifest),
                    "hours": round(manifest.hours, 4),
                    "fingerprint": manifest.fingerprint,
                }
                for split, manifest in manifests.items()
            },
            "too_short": scan.num_too_short,
            "too_long": scan.num_too_long,
            "skipped": len(scan.skipped),
            "sample_rates": scan.sample_rates,
            "multichannel": scan.num_multichannel,
            **more,
        }

        asides: dict[str, Path] = {}

        with ExitStack() as stack:
            # Left in reverse: the training part is the last to be there.
            for split in (TRAIN_SPLIT, VALID_SPLIT):
                if m := manifests.get(split):
                    rows = zip(m.ids, m.sizes.tolist(), strict=True)

                    asides[split] = stack.enter_context(manifest_aside(m.path, m.root, rows))

            write_text_atomic(self.path / SUMMARY_NAME, json.dumps(summary, indent=2, ensure_ascii=True) + "\n")

            self._write_skipped([*scan.skipped, *(valid_scan.skipped if valid_scan is not None else [])])

            for split in (VALID_SPLIT, TRAIN_SPLIT):
                self._write_companions(split, sides[split], (kaldi or {}).get(split))

            for split in (TRAIN_SPLIT, VALID_SPLIT):
                path = self._path(split)

                if path.exists() and not (split in asides and filecmp.cmp(asides[split], path, shallow=False)):
                    path.unlink()

    def _write_companions(self, split: str, utterances: Sequence[Utterance], kaldi: KaldiScan | None) -> None:
        """Write kaldi's utterance ids and words, one line an utterance; remove those of earlier manifests."""
        path = self._path(split)

        had_ids = utterance_ids_path(path).exists()

        if kaldi is not None and utterances:
            write_utterance_ids(path, [u.name for u in utterances])
        else:
            utterance_ids_path(path).unlink(missing_ok=True)

        words = path.with_suffix(".wrd")

        if kaldi is not None and utterances and (texts := kaldi.texts) is not None:
            write_text_atomic(words, "".join(f"{texts[u.name]}\n" for u in utterances))
        elif had_ids:
            words.unlink(missing_ok=True)  # ours, of a kaldi folder; others' words are not touched

    def _write_skipped(self, skipped: Sequence[tuple[str, str]]) -> None:
        path = self.path / SKIPPED_NAME

        if not skipped:
            path.unlink(missing_ok=True)

            return

        # A file may be left out because its name holds what would break the lines of this list.
        text = "".join(f"{show_ref(ref)}\t{' '.join(reason.split())}\n" for ref, reason in skipped)

        write_text_atomic(path, text)

    def _read_options(self) -> dict[str, Any] | None:
        try:
            options = json.loads((self.path / SUMMARY_NAME).read_text(encoding="utf-8"))["options"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as ex:
            raise OutputDirError(
                f"'{self.path / SUMMARY_NAME}' is not a record of this recipe ({ex}). Choose another output folder, or "
                "set `overwrite=true` to replace what is there."
            ) from ex

        return options if isinstance(options, dict) else {}

    def _to_manifest(self, split: str, root: Path, utterances: Sequence[Utterance]) -> Manifest:
        sizes = np.array([u.num_samples for u in utterances], dtype=np.int64)

        return Manifest(self._path(split), split, root, [u.ref for u in utterances], sizes)

    def _path(self, split: str) -> Path:
        return self.path / f"{split}.tsv"


def show_ref(ref: str) -> str:
    """Return a manifest entry as it stands in a line: what would break the line, or is no UTF-8, is escaped."""
    return printable(ref) if field_problem(ref) is None else repr(ref)[1:-1]


def to_absolute(path: Path) -> Path:
    """Make ``path`` absolute without following links: users know their folders by these names."""
    return Path(os.path.abspath(path.expanduser()))
