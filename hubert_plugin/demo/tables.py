"""The text files of a corpus: manifests, alignments, transcripts, items, speakers; written and read.

Utterances are named by their paths in the manifest everywhere (trap T37: base names need not be unique). Times are
seconds with seven decimals, which write a whole number of samples at 16 kHz exactly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Final

from hubert_plugin.demo.messages import Utterance
from hubert_plugin.demo.phones import SILENCE, SampleSegment, Segment
from hubert_plugin.demo.speakers import Speaker
from hubert_plugin.errors import ManifestError
from hubert_plugin.files import write_text_atomic
from hubert_plugin.frames import RECEPTIVE_FIELD, SAMPLE_RATE, seconds

SPLITS: Final = ("train", "valid")

_ITEM_HEAD: Final = "#file onset offset #phone prev-phone next-phone speaker"

_MIN_ITEM: Final = int(0.03 * SAMPLE_RATE)
"""Samples that the middle phone of an item has at least: fewer may hold no frame."""


def write_split(staging: Path, folder: Path, split: str, utterances: Sequence[Utterance]) -> None:
    """Write the tables of ``split`` into ``staging``, whose final place is ``folder``."""
    rows: dict[str, list[str]] = {
        "tsv": [str(folder)],
        "wrd": [],
        "ltr": [],
        "align.tsv": [],
        "words.tsv": [],
        "triphone.item": [_ITEM_HEAD],
        "phoneme.item": [_ITEM_HEAD],
    }

    for utterance in utterances:
        text = " ".join(utterance.text).upper()

        rows["tsv"].append(f"{utterance.id}\t{utterance.num_samples}")
        rows["wrd"].append(text)
        rows["ltr"].append(" ".join(text.replace(" ", "|")) + " |")
        rows["align.tsv"] += _segment_rows(utterance.id, utterance.phones)
        rows["words.tsv"] += _segment_rows(utterance.id, utterance.words)

        for triphone, phoneme in _items(utterance):
            rows["triphone.item"].append(triphone)
            rows["phoneme.item"].append(phoneme)

    for name, lines in rows.items():
        (staging / f"{split}.{name}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_speakers(staging: Path, speakers: Mapping[str, Sequence[Speaker]]) -> None:
    """Write ``speakers.tsv``: a head line, then one line for each of the ``speakers`` of each split."""
    records = [{"id": s.id, "split": split, **asdict(s)} for split in speakers for s in speakers[split]]

    lines = ["\t".join(records[0]), *("\t".join(map(str, record.values())) for record in records)]

    (staging / "speakers.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_alignment(corpus_dir: Path, split: str) -> dict[str, list[Segment]]:
    """Return the phones of each utterance of ``split``: ``(start, end, phone)``, in seconds, in order, without gaps.

    :returns: By utterance id, which is the path in the manifest.
    :raises ManifestError: The file is missing or malformed.
    """
    path = Path(corpus_dir) / f"{split}.align.tsv"

    alignment: dict[str, list[Segment]] = {}

    try:
        with path.open(encoding="utf-8") as fp:
            for number, line in enumerate(fp, start=1):
                try:
                    id_, start, end, phone = line.rstrip("\n").split("\t")

                    alignment.setdefault(id_, []).append((float(start), float(end), phone))
                except ValueError:
                    raise ManifestError(
                        f"'{path}', line {number}: expected utterance id, start and end in seconds and a phone, "
                        f"separated by tabs, found {line.rstrip()!r}."
                    ) from None
    except OSError as ex:
        raise ManifestError(
            f"The phone times '{path}' cannot be read: {ex.strerror}. Name the folder of a demo corpus and one of its "
            f"splits, {' or '.join(SPLITS)}."
        ) from ex

    return alignment


def update_root(folder: Path, split: str) -> None:
    """Have the manifest of ``split`` name ``folder`` as its root, if the one it names is gone: the cache was moved."""
    manifest = folder / f"{split}.tsv"

    root, _, rest = manifest.read_text(encoding="utf-8").partition("\n")

    if not os.path.isdir(root):
        write_text_atomic(manifest, f"{folder}\n{rest}")


def count_audio_bytes(folder: Path, split: str) -> int:
    """Return the size of the audio files in the manifest of ``split``.

    :raises OSError: The manifest or one of the files is missing.
    """
    lines = (folder / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]

    return sum((folder / line.partition("\t")[0]).stat().st_size for line in lines)


def _segment_rows(id_: str, segments: Sequence[SampleSegment]) -> list[str]:
    return [f"{id_}\t{_time(start)}\t{_time(end)}\t{name}" for start, end, name in segments]


def _items(utterance: Utterance) -> Iterator[tuple[str, str]]:
    """Yield the lines of phones between two others, for ABX tests: spanning all three, and the middle one alone."""
    # The last frame begins up to one window before the end.
    limit = utterance.num_samples - RECEPTIVE_FIELD - 1

    for (before, phone), (_, after) in pairwise(pairwise(utterance.phones)):
        if SILENCE in (before[2], phone[2], after[2]) or after[1] > limit or phone[1] - phone[0] < _MIN_ITEM:
            continue

        context = f"{phone[2]} {before[2]} {after[2]} {utterance.speaker}"

        yield (
            f"{utterance.id} {_time(before[0])} {_time(after[1])} {context}",
            f"{utterance.id} {_time(phone[0])} {_time(phone[1])} {context}",
        )


def _time(sample: int) -> str:
    return f"{seconds(sample):.7f}"
