"""Labelling: audio → features → units → label store in one go; features are never written.

First form: one process, threads for audio and MFCC. Sharding by rank and resuming within a split come with issue 4; a
kill leaves the previous labels as they were.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter

from hubert_plugin.data.labels import LabelWriter
from hubert_plugin.errors import UnitModelError
from hubert_plugin.registry import UnitModel, Units
from hubert_plugin.units.stream import AudioFeatureStream, FeatureStream


def label_stream(
    stream: FeatureStream,
    unit_model: UnitModel,
    *,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
    name: str = "label",
) -> Iterator[list[Units]]:
    """Yield the units of each utterance, in manifest order: a list with one array for each label set.

    :raises UnitModelError: The unit model was fitted on other features.
    """
    check_features(unit_model, stream)

    with progress.create_task(name, total=len(stream.num_frames())) as task:
        for _, features in stream.read():
            yield unit_model.assign(features)

            task.step()


def label_manifest(
    stream: AudioFeatureStream,
    unit_model: UnitModel,
    label_dir: Path,
    *,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> None:
    """Label the manifest of ``stream`` and write one label store for each label set of ``unit_model``.

    :raises AudioError: An audio file cannot be used.
    :raises UnitModelError: The unit model was fitted on other features.
    :raises StorageError: A file cannot be written; the previous labels are untouched.
    """
    manifest = stream.manifest

    provenance = label_provenance(stream, unit_model)

    with ExitStack() as stack:
        writers = [
            stack.enter_context(LabelWriter(label_dir, manifest.split, spec, manifest, provenance))
            for spec in unit_model.label_sets
        ]

        for units in label_stream(stream, unit_model, progress=progress, name=f"label {manifest.split}"):
            for writer, u in zip(writers, units, strict=True):
                writer.write(u)


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
    rates = {spec.rate for spec in unit_model.label_sets}

    if rates != {stream.rate}:
        raise UnitModelError(
            f"The unit model makes labels at {' and '.join(map(str, sorted(rates)))} Hz, but the features have "
            f"{stream.rate} frames per second."
        )

    fitted_on = unit_model.provenance.get("features")

    # Models from elsewhere (joblib) do not tell; then the dimension is all that is checked, by `assign`.
    if not isinstance(fitted_on, Mapping):
        return

    given = plain(stream.describe())

    if plain(fitted_on) != given:
        raise UnitModelError(
            f"The unit model {unit_model.fingerprint} was fitted on the features {_show(fitted_on)}, but is to be used "
            f"on {_show(given)}. Use the same feature source, or fit another unit model."
        )


def plain(value: object) -> object:
    """Return ``value`` as it comes back from a JSON file, so that records can be compared."""
    return json.loads(json.dumps(value))


def _show(value: object) -> str:
    return json.dumps(value, sort_keys=True)
