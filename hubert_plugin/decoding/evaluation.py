"""Finds the references of a run of ``transcribe``, and pairs what is to be evaluated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.data.transcripts import TranscriptConfig, read_transcripts
from hubert_plugin.decoding.outputs import JSONL_FILE
from hubert_plugin.decoding.run import SUMMARY_FILE
from hubert_plugin.decoding.texts import Pair, Texts, pair_texts, read_texts
from hubert_plugin.errors import ManifestError, TextError
from hubert_plugin.text.normalization import TextConfig, normalize_text


@dataclass(frozen=True)
class Material:
    """What is evaluated."""

    pairs: list[Pair]

    references: Path

    hypotheses: Path

    real_time_factor: float | None = None
    """That of the run of ``transcribe``, if it was one."""


def find_material(
    hypotheses: Path,
    references: Path | None,
    *,
    column: str = "text",
    id_column: str = "path",
    allow_missing: bool = False,
) -> Material:
    """Read and pair references and hypotheses.

    :param hypotheses: A file, or the output folder of ``transcribe``.
    :param references: A file; ``None``: the transcripts beside the manifest that was transcribed.
    :raises TextError: A file is missing or malformed, or the two do not match.
    """
    hypotheses = hypotheses.expanduser()

    summary: dict[str, Any] = {}

    if hypotheses.is_dir():
        summary = _read_summary(hypotheses)

        hypotheses = hypotheses / JSONL_FILE

    hyps = read_texts(hypotheses, column=column, id_column=id_column)

    refs = _read_references(references, summary, hypotheses, column, id_column)

    pairs = pair_texts(refs, hyps, allow_missing=allow_missing)

    return Material(pairs, refs.path, hyps.path, summary.get("real_time_factor"))


def normalize_pairs(pairs: Sequence[Pair], config: TextConfig) -> list[Pair]:
    """Return pairs with both texts normalised."""
    return [Pair(p.id, normalize_text(p.reference, config), normalize_text(p.hypothesis, config)) for p in pairs]


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY_FILE

    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TextError(
            f"'{folder}' is not the output of a finished run of `transcribe`: there is no '{SUMMARY_FILE}' in it. Name "
            "such a folder, or a file of hypotheses."
        ) from None
    except (OSError, ValueError) as ex:
        raise TextError(f"'{path}' cannot be read: {ex}. Transcribe again.") from ex

    return summary


def _read_references(
    path: Path | None, summary: dict[str, Any], hypotheses: Path, column: str, id_column: str
) -> Texts:
    manifest = _find_manifest(summary)

    if manifest is None:
        if path is None:
            raise TextError(
                f"Nothing says what was really said in '{hypotheses}': name the file with `references=FILE`. It is "
                "found by itself where the split of a manifest was transcribed."
            )

        return read_texts(path, column=column, id_column=id_column)

    if path is not None and path.suffix != ".tsv" and path.suffix != ".text" and path.name != "text":
        return read_texts(path, column=column, id_column=id_column)

    # Here kaldi's ids of utterances are known, too.
    found = read_transcripts(manifest, TranscriptConfig(file=path, column=column, id_column=id_column))

    return Texts(found.path, [" ".join(text.split()) for text in found.texts], list(manifest.ids))


def _find_manifest(summary: dict[str, Any]) -> Manifest | None:
    name = summary.get("input", {}).get("manifest")

    if name is None:
        return None

    path = Path(name)

    manifest = read_manifest(path.parent, path.stem, check_files=False)

    if manifest.fingerprint != summary["input"].get("fingerprint"):
        raise ManifestError(f"The manifest '{path}' was changed after it was transcribed. Transcribe again.")

    return manifest
