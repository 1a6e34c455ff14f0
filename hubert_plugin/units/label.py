"""Labelling: audio → features → units → label store in one go; features are never written.

The work is done in pieces (:mod:`hubert_plugin.data.label_pieces`), shared by ranks and by the jobs of an array; a
killed run goes on where it was, and the labels are the same, bit for bit, as those of one process without a break.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fairseq2.task import TaskStopException
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter

from hubert_plugin.data.label_pieces import LabelPieces, cut_pieces
from hubert_plugin.data.label_writer import LabelForm
from hubert_plugin.data.provenance import comparable
from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import UnitModel, Units
from hubert_plugin.units.stored import StoredFeatureStream
from hubert_plugin.units.stream import AudioFeatureStream, FeatureStream


def label_stream(
    stream: FeatureStream,
    unit_model: UnitModel,
    *,
    order: Sequence[int] | None = None,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "label",
) -> Iterator[list[Units]]:
    """Yield the units of each utterance, in manifest order (``order``): a list with one array for each label set.

    :raises UnitModelError: The unit model was fitted on other features.
    """
    check_features(unit_model, stream)

    with progress.create_task(name, total=len(stream.num_frames()) if order is None else len(order)) as task:
        for _, features in stream.read(order):
            yield unit_model.assign(features)

            task.step()


@dataclass(frozen=True, kw_only=True)
class LabelShare:
    """Which part of a manifest this process labels."""

    num_shards: int = 1
    """In how many shards the manifest is cut (fairseq's contiguous ranges)."""

    shard: int | None = None
    """The shard that this job labels, from 0; ``None``: all of them."""

    rank: int = 0
    """The rank of this process among those that share the job's pieces."""

    num_ranks: int = 1
    """The number of these processes."""


@final
class LabelJob:
    """Labels a split, or a share of it; the pieces of all shares are joined by whoever finishes last."""

    def __init__(
        self,
        stream: AudioFeatureStream | StoredFeatureStream,
        unit_model: UnitModel,
        label_dir: Path,
        *,
        form: LabelForm = "km",
        share: LabelShare | None = None,
    ) -> None:
        """
        :raises UnitModelError: The unit model was fitted on other features.
        :raises ConfigError: There is no such shard.
        """
        check_features(unit_model, stream)

        share = share or LabelShare()

        self.label_sets = [spec.name for spec in unit_model.label_sets]
        """The names of the label sets."""

        self._stream, self._unit_model = stream, unit_model

        self.store = LabelPieces(
            label_dir,
            stream.manifest,
            unit_model.label_sets,
            label_provenance(stream, unit_model),
            form=form,
            exact=getattr(stream, "exact", True),
        )

        shards = cut_pieces(stream.manifest, share.num_shards, num_ranks=share.num_ranks)

        self.pieces = [piece for shard in shards for piece in shard]
        """All pieces of the split."""

        if share.shard is None:
            self.mine = self.pieces[share.rank :: share.num_ranks]
        else:
            self.mine = shards[share.shard][share.rank :: share.num_ranks]

    def run(
        self,
        *,
        progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Make the pieces of this process that are not there yet.

        :returns: How many of them were there.
        :raises AudioError: An audio file cannot be used; finished pieces stay.
        :raises UnitModelError: Features cannot be used.
        :raises StorageError: A piece cannot be written, for example because the disk is full.
        :raises TaskStopException: ``should_stop`` said so; finished pieces stay.
        """
        self.store.remove_leftovers(self.mine)

        missing = [piece for piece in self.mine if not self.store.has(piece)]

        # One stream over all pieces: the workers of the features do not stand still between two of them.
        order = [idx for piece in missing for idx in piece]

        manifest = self._stream.manifest

        units = label_stream(
            self._stream, self._unit_model, order=order, progress=progress, name=f"label {manifest.split}"
        )

        for piece in missing:
            labels: list[list[Units]] = []

            for _ in piece:
                if should_stop():
                    raise TaskStopException()

                labels.append(next(units))

            self.store.write(piece, labels)

        units.close()  # type: ignore[attr-defined]

        return len(self.mine) - len(missing)

    def replacing_problems(self) -> list[str]:
        """Return why the labels must not take the place of those that are there; nothing if they may."""
        return self.store.replacing_problems(self.pieces)

    def join(self) -> bool:
        """Join the pieces if all are there.

        :returns: Whether the labels of the split are there now.
        :raises LabelError: The units do not fit the manifest.
        :raises StorageError: The labels cannot be written; the pieces, and the previous labels, stay.
        """
        return self.store.join(self.pieces)


def label_manifest(
    stream: AudioFeatureStream | StoredFeatureStream,
    unit_model: UnitModel,
    label_dir: Path,
    *,
    form: LabelForm = "km",
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> None:
    """Label the manifest of ``stream`` in this process: one label set in ``label_dir`` for each of ``unit_model``.

    Pieces that a killed process has finished are used; labels that are there are replaced.

    :raises AudioError: An audio file cannot be used.
    :raises UnitModelError: The unit model was fitted on other features.
    :raises StorageError: A file cannot be written; the previous labels are untouched.
    """
    job = LabelJob(stream, unit_model, label_dir, form=form)

    job.run(progress=progress)

    job.join()


def label_provenance(stream: FeatureStream, unit_model: UnitModel) -> dict[str, object]:
    """Return what the sidecar of labels records of their making. It holds no dates: equal work gives equal bytes."""
    return {
        "features": stream.describe(),
        "data": stream.describe_data(),
        "unit_model_fingerprint": unit_model.fingerprint,
    }


def check_features(unit_model: UnitModel, stream: FeatureStream) -> None:
    """Check that ``stream`` has the features that ``unit_model`` was fitted on, as far as the model tells.

    :raises UnitModelError: It has not.
    """
    fitted_on = unit_model.provenance.get("features")

    # First, since other features may have another rate, too: what was fitted on says what to do.
    if isinstance(fitted_on, Mapping) and comparable(fitted_on) != comparable(given := plain(stream.describe())):
        raise UnitModelError(
            f"The unit model {unit_model.fingerprint} was fitted on the features {_show(fitted_on)}, but is to be used "
            f"on {_show(given)}. Name the features that it was fitted on (`features`), or fit another unit model."
        )

    # Models from elsewhere (joblib) do not tell; then rate and, by `assign`, dimension are all that is checked.
    rates = {spec.rate for spec in unit_model.label_sets}

    if rates != {stream.rate}:
        raise UnitModelError(
            f"The unit model makes labels at {' and '.join(map(str, sorted(rates)))} Hz, but the features have "
            f"{stream.rate} frames per second. Name the features that it was fitted on (`features`)."
        )


def plain(value: object) -> object:
    """Return ``value`` as it comes back from a JSON file, so that records can be compared."""
    return json.loads(json.dumps(value))


def _show(value: object) -> str:
    return json.dumps(value, sort_keys=True)
