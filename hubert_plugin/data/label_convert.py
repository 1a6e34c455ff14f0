"""Labels from one form to another: text, binary, and kaldi's tables of integer vectors (such as alignments)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hubert_plugin.data.kaldi import (
    KaldiFormatError,
    check_key,
    open_table,
    read_int_vector,
    write_int_vector,
)
from hubert_plugin.data.label_check import expected_counts, fits, infer_rate, length_problem
from hubert_plugin.data.label_guard import BOOKKEEPING, present_labels, replacing_problems
from hubert_plugin.data.label_meta import check_label_set_name
from hubert_plugin.data.label_writer import LabelForm, write_labels
from hubert_plugin.data.labels import NO_LABEL_SETS, LabelSet, open_labels
from hubert_plugin.data.shards import remove_leftovers
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import LabelError, format_problems
from hubert_plugin.files import atomic_path
from hubert_plugin.frames import SUPPORTED_LABEL_RATES
from hubert_plugin.registry import LabelSetSpec

if TYPE_CHECKING:
    from hubert_plugin.data.manifest import Manifest


def convert_labels(
    source: Path,
    label_dir: Path,
    name: str,
    manifest: Manifest,
    *,
    form: LabelForm,
    size: int | None = None,
    rate: int | None = None,
    allow_pipes: bool = False,
) -> LabelSetSpec:
    """Write the labels ``name`` of a manifest, which ``source`` has in any form, to ``label_dir`` in ``form``.

    :param source: A folder with labels ``<split>.<name>`` (text or binary), or a kaldi table of integer vectors (script
        file or archive); it may be ``label_dir``, where the labels then change their form.
    :param size: The number of units, where ``source`` does not tell; of a kaldi table ``None`` is the largest plus 1.
    :param rate: Labels per second, where ``source`` does not tell; ``None`` infers it from the lengths.
    :param allow_pipes: Whether a kaldi script file may hold commands, which are run to read labels.
    :raises LabelError: The labels are missing, damaged, or do not fit the manifest.
    :raises StorageError: They cannot be written; what was there stays.
    """
    labels = _read_source(source, name, manifest, size, rate, allow_pipes)

    # Mapped labels are read while they are written, which is no matter: the file is replaced at the end.
    units = (labels[i] for i in range(len(labels)))

    write_labels(label_dir, manifest.split, labels.spec, units, manifest, _origin(labels), form=form, exact=False)

    return labels.spec


def conversion_problems(
    source: Path,
    label_dir: Path,
    name: str,
    manifest: Manifest,
    *,
    size: int | None = None,
    rate: int | None = None,
    allow_pipes: bool = False,
) -> list[str]:
    """Return why :func:`convert_labels` must not replace the labels that ``label_dir`` has; nothing if it may.

    Nothing is lost where ``source`` is ``label_dir``, or where the labels are the same ones and their records agree.

    :raises LabelError: There are labels to replace, but none in ``source`` that could be written.
    """
    check_label_set_name(name)

    present = present_labels(label_dir, manifest.split, name)

    if not present or (Path(source).is_dir() and os.path.samefile(source, label_dir)):
        return []

    new = _read_source(source, name, manifest, size, rate, allow_pipes)

    try:
        old = open_labels(label_dir, manifest.split, name, manifest, size=new.spec.size, rate=new.spec.rate)
    except LabelError:
        old = None  # damaged, or of another manifest: their record decides

    is_same = old is not None and all(np.array_equal(old[i], new[i]) for i in range(len(new)))

    # A killed run may have left its labels before their record.
    problems = replacing_problems(label_dir, manifest, new.spec, _origin(new), is_half=lambda: is_same)

    if not problems and old is not None and not is_same:
        problems = [f"{path.name}: they are other labels than those in '{source}'" for path, _ in present]

    return problems


def _read_source(
    source: Path, name: str, manifest: Manifest, size: int | None, rate: int | None, allow_pipes: bool
) -> LabelSet:
    if Path(source).is_dir():
        return open_labels(source, manifest.split, name, manifest, size=size, rate=rate)

    return read_kaldi_labels(source, name, manifest, size=size, rate=rate, allow_pipes=allow_pipes)


def _origin(labels: LabelSet) -> dict[str, object]:
    return {k: v for k, v in (labels.provenance or {}).items() if k not in BOOKKEEPING}


def read_kaldi_labels(
    path: Path,
    name: str,
    manifest: Manifest,
    *,
    size: int | None = None,
    rate: int | None = None,
    allow_pipes: bool = False,
) -> LabelSet:
    """Read the labels of a manifest from a kaldi table of integer vectors, by utterance id.

    The parameters, and what is raised, are those of :func:`convert_labels`; utterances that only the table has are
    passed over.
    """
    check_label_set_name(name)

    path = Path(path)

    try:
        table = {e.key: e for e in open_table(path, allow_pipes=allow_pipes)}
    except KaldiFormatError as ex:
        raise LabelError(str(ex)) from ex

    ids = read_utterance_ids(manifest)

    head = f"The labels in '{path}' do not fit the manifest '{manifest.path}'."

    if missing := [i for i in ids if i not in table]:
        others = len(table.keys() - set(ids))

        head += f" {len(missing):,} of {len(ids):,} utterances are missing, {others:,} others are there."

        raise LabelError(format_problems(head, [f"'{i}' is missing" for i in missing]))

    vectors: list[NDArray[np.int32]] = []
    problems: list[str] = []

    for utterance in ids:
        try:
            vector = read_int_vector(table[utterance])
        except KaldiFormatError as ex:
            problems.append(str(ex))
            continue

        vectors.append(vector)

        if len(vector) and (vector.min() < 0 or (size is not None and vector.max() >= size)):
            allowed = "0 or more" if size is None else f"0 … {size - 1}"

            problems.append(f"'{utterance}' has the labels {vector.min()} … {vector.max()}, but units are {allowed}")

    if problems:
        raise LabelError(format_problems(head, problems))

    counts = np.array([len(v) for v in vectors], np.int64)

    if rate is None:
        rate = infer_rate(counts, manifest.sizes)

        if rate is None:
            per_second = counts.sum() / max(manifest.hours * 3600, 1e-9)

            raise LabelError(
                f"{head} It has {per_second:.1f} labels per second on the average, for few utterances "
                f"{' or '.join(map(str, SUPPORTED_LABEL_RATES))}; were they made from this audio?"
            )

    expected = expected_counts(manifest.sizes, rate)

    if wrong := np.flatnonzero(~fits(counts, expected, rate)).tolist():
        raise LabelError(
            format_problems(
                head,
                [f"'{ids[i]}': {length_problem(int(counts[i]), int(expected[i]), rate, manifest, i)}" for i in wrong],
            )
        )

    values = np.concatenate(vectors)

    if size is None:
        size = int(values.max(initial=0)) + 1

    offsets = np.cumsum(counts) - counts

    return LabelSet(LabelSetSpec(name, size, rate), values, offsets, np.minimum(counts, expected), {"kaldi": path.name})


def kaldi_label_files(folder: Path, split: str, name: str) -> tuple[Path, Path]:
    """Return where :func:`write_kaldi_labels` writes: the archive and its script file."""
    ark = Path(folder) / f"{split}.{name}.ark"

    return ark, ark.with_suffix(".scp")


def write_kaldi_labels(labels: LabelSet, manifest: Manifest, folder: Path) -> Path:
    """Write ``<split>.<name>.ark`` and ``.scp``: a vector of integers for each utterance, by its kaldi id.

    :returns: The script file.
    :raises LabelError: Utterance ids hold white space, which kaldi cannot have.
    :raises StorageError: A file cannot be written.
    """
    ids = read_utterance_ids(manifest)

    if problems := [f"the utterance {problem}" for i in ids if (problem := check_key(i))]:
        raise LabelError(format_problems("The labels cannot be written for kaldi:", problems))

    ark, scp = kaldi_label_files(folder, manifest.split, labels.spec.name)

    for path in (ark, scp):
        remove_leftovers(path)

    # Left in reverse: the script file, which others read, is renamed last.
    with (
        atomic_path(scp) as scp_tmp,
        atomic_path(ark) as ark_tmp,
        scp_tmp.open("w", encoding="utf-8", errors="surrogateescape") as lines,
        ark_tmp.open("wb", buffering=1 << 20) as fp,
    ):
        for idx, key in enumerate(ids):
            lines.write(f"{key} {os.path.abspath(ark)}:{write_int_vector(fp, key, labels[idx])}\n")

    return scp


def list_label_sets(label_dir: Path, split: str) -> Iterator[str]:
    """Yield the names of the label sets of ``split`` in a folder, in either form, sorted."""
    names = set()

    for path in Path(label_dir).glob(f"{split}.*"):
        name = path.name.removeprefix(f"{split}.").removesuffix(".safetensors")

        if path.is_file() and "." not in name and name not in NO_LABEL_SETS:
            names.add(name)

    yield from sorted(names)
