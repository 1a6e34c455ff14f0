"""Features written to files, for those who want files: shard by shard, each whole or not there at all.

This package needs no such files: ``cluster`` and ``label`` compute features on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fairseq2.logging import log
from fairseq2.task import TaskStopException
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter

from hubert_plugin.data.feature_files import FeatureFormat, open_feature_writer
from hubert_plugin.data.feature_shards import (
    check_other_cuts,
    find_other_cuts,
    is_feature_shard_done,
    merge_feature_shards,
    remove_files,
    withdraw_merged,
)
from hubert_plugin.data.kaldi import check_key
from hubert_plugin.data.manifest import Manifest
from hubert_plugin.data.shards import Shard, shard_range
from hubert_plugin.data.utterance_ids import read_utterance_ids
from hubert_plugin.errors import ConfigError, UnitModelError, format_problems
from hubert_plugin.units.stream import AudioFeatureStream


def check_num_shards(manifests: Sequence[Manifest], num_shards: int) -> None:
    """Check that each of ``manifests`` can be cut in so many shards.

    :raises ConfigError: There are fewer utterances than shards; names all that have too few.
    """
    if too_few := [m for m in manifests if not 1 <= num_shards <= max(1, len(m.ids))]:
        raise ConfigError(
            format_problems(
                f"`num_shards` must be between 1 and the number of utterances of each split, but is {num_shards} "
                "instead. Lower it, or leave such splits out (`splits`):",
                [f"'{m.path}' has {len(m.ids):,} of them" for m in too_few],
            )
        )


def check_kaldi_ids(manifests: Sequence[Manifest]) -> None:
    """Check that kaldi's files can name the utterances of ``manifests``.

    :raises UnitModelError: Ids hold white space; names them all, or the first and how many more.
    """
    problems = [
        f"'{m.path}': the utterance {problem}"
        for m in manifests
        for utterance_id in read_utterance_ids(m)
        if (problem := check_key(utterance_id))
    ]

    if problems:
        raise UnitModelError(
            format_problems(
                f"Features of {len(problems):,} utterance(s) cannot be written for kaldi. Write another format "
                "(`format=fairseq`), or rename the files and make the manifest again:",
                problems,
            )
        )


def describe_dump(stream: AudioFeatureStream, num_shards: int) -> dict[str, object]:
    """Return what the records of dumped features say of their making."""
    return {"features": stream.describe(), "data": stream.describe_data(), "num_shards": num_shards}


def dump_features(
    stream: AudioFeatureStream,
    kind: FeatureFormat,
    folder: Path,
    *,
    num_shards: int = 1,
    shards: Sequence[int] | None = None,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Write the features of the manifest of ``stream``, or of some shards of it, to files in ``folder``.

    A shard that was finished before, with the same features of the same manifest, is left as it is. Whoever finishes
    the last shard joins them, and removes what an earlier run wrote in another number of shards.

    :param num_shards: In how many shards the manifest is cut (fairseq's contiguous ranges).
    :param shards: The shards to write; ``None``: all.
    :returns: The shards that were written now.
    :raises AudioError: An audio file cannot be used.
    :raises ConfigError: There are fewer utterances than shards.
    :raises OutputDirError: The folder holds shards of another number that are not ours to remove.
    :raises StorageError: A file cannot be written; finished shards stay.
    :raises UnitModelError: Utterance ids hold white space, which kaldi cannot have.
    """
    manifest = stream.manifest

    check_num_shards([manifest], num_shards)

    if kind == "kaldi":
        check_kaldi_ids([manifest])

    check_other_cuts(kind, folder, manifest.split, num_shards)

    ids = read_utterance_ids(manifest) if kind == "kaldi" else manifest.ids

    provenance = describe_dump(stream, num_shards)

    all_shards: list[Shard | None] = [(i, num_shards) for i in range(num_shards)] if num_shards > 1 else [None]

    written = []

    for index in range(num_shards) if shards is None else shards:
        shard = all_shards[index]

        if is_feature_shard_done(kind, folder, manifest.split, shard, provenance):
            continue

        if shard is not None:
            withdraw_merged(kind, folder, manifest.split, provenance)

        utterances = shard_range(len(manifest.ids), (index, num_shards))

        name = manifest.split if shard is None else f"{manifest.split} {index}/{num_shards}"

        with (
            progress.create_task(f"features {name}", total=len(utterances)) as task,
            open_feature_writer(
                kind, folder, manifest.split, dim=stream.dim, rate=stream.rate, shard=shard, provenance=provenance
            ) as writer,
        ):
            for idx, features in stream.read(utterances):
                if should_stop():
                    raise TaskStopException()

                writer.write(ids[idx], features)

                task.step()

        written.append(index)

    # Joining replaces the record that says whose kaldi's archive in one piece is.
    others = find_other_cuts(kind, folder, manifest.split, num_shards)

    if num_shards > 1:
        merge_feature_shards(kind, folder, manifest.split, num_shards)

    if others and all(is_feature_shard_done(kind, folder, manifest.split, shard, provenance) for shard in all_shards):
        remove_files(others)

        log.info(
            "Features of '{}' in {} are whole in {} shard(s); removed the {} file(s) of another number of shards.",
            manifest.split,
            folder,
            num_shards,
            len(others),
        )

    return written
