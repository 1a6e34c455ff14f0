"""Labels made on the way: for corpora that have audio and a manifest, but no labels yet.

The labels are kept beside the manifest with the unit model that made them, and reused as long as all of manifest,
features, number of units, seed and labels are what their records say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairseq2.logging import log
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER, ProgressReporter

from hubert_plugin.data.label_meta import read_sidecar, sidecar_problems
from hubert_plugin.data.label_pieces import LabelPieces
from hubert_plugin.data.provenance import comparable
from hubert_plugin.data.shards import remove_leftovers
from hubert_plugin.errors import LabelError, UnitModelError
from hubert_plugin.registry import FeatureSource, LabelSetSpec, UnitModel
from hubert_plugin.units.clustering import making
from hubert_plugin.units.kmeans import SAMPLE_FRAMES, KMeansConfig, KMeansFitter
from hubert_plugin.units.label import label_manifest, label_provenance, plain
from hubert_plugin.units.model import UNIT_MODEL_FILE as UNIT_MODEL_FILE
from hubert_plugin.units.model import load_units
from hubert_plugin.units.stored import StoredFeatureStream, open_feature_stream
from hubert_plugin.units.stream import AudioFeatureStream

if TYPE_CHECKING:
    from hubert_plugin.audio.policy import AudioPolicy


def ensure_labels(
    manifest_dir: Path,
    splits: Sequence[str],
    *,
    label_dir: Path,
    name: str,
    feature_source: FeatureSource,
    num_clusters: int,
    seed: int = 0,
    audio_policy: AudioPolicy | None = None,
    max_frames: int | None = SAMPLE_FRAMES,
    num_workers: int | None = None,
    progress: ProgressReporter = NOOP_PROGRESS_REPORTER,
) -> LabelSetSpec:
    """Make sure that ``label_dir`` holds labels ``<split>.<name>`` of all ``splits``, all from one k-means.

    K-means is fitted on the **first** split only; the same unit model labels all of them (FACTS, trap T32). What is
    there and fits is kept; what does not fit is made again, and the log says why.

    What is written is renamed into place, so a process that reads meanwhile sees whole files.

    :param splits: The splits to label, the training split first.
    :param label_dir: Where labels and unit model (``units.safetensors``) are kept.
    :param name: The name of the label set.
    :raises HubertError: The manifest, the audio or the number of clusters cannot be used, or files not be written.
    """
    from hubert_plugin.data.manifest import read_manifest

    streams = [
        open_feature_stream(read_manifest(manifest_dir, s), feature_source, audio_policy, num_workers=num_workers)
        for s in splits
    ]

    # Whole passes find a lower inertia than mini-batches (by 1.6 % with 50 units of MFCC), and always the same.
    fitter = KMeansFitter(
        KMeansConfig(label_set=name, num_clusters=num_clusters, max_frames=max_frames, backend="torch")
    )

    model_path = label_dir / UNIT_MODEL_FILE

    remove_leftovers(model_path)

    unit_model, reason = _reusable_unit_model(model_path, streams[0], fitter, seed)

    if unit_model is None:
        log.info("Fitting units for '{}': {}.", label_dir, reason)

        result = fitter.fit(streams[0], seed=seed, progress=progress)

        unit_model = result.model

        log.info("{}.", result.report)

        unit_model.save(model_path)

    for stream in streams:
        if reason := _why_not_reusable(label_dir, name, stream, unit_model):
            log.info("Labelling '{}' for '{}': {}.", stream.manifest.split, label_dir, reason)

            label_manifest(stream, unit_model, label_dir, progress=progress)
        else:
            provenance = label_provenance(stream, unit_model)

            LabelPieces(label_dir, stream.manifest, unit_model.label_sets, provenance).tidy()

    return unit_model.label_sets[0]


def _reusable_unit_model(
    path: Path, stream: AudioFeatureStream | StoredFeatureStream, fitter: KMeansFitter, seed: int
) -> tuple[UnitModel | None, str]:
    """Return the unit model at ``path`` if it is what fitting it again would give, else why it is not."""
    if not path.exists():
        return None, "there is no unit model yet"

    try:
        unit_model = load_units(path)
    except UnitModelError as ex:
        return None, str(ex).removesuffix(".")

    for key, value in making(stream, fitter, seed).items():
        if comparable(unit_model.provenance.get(key)) != comparable(value):
            return None, f"its {key} was {unit_model.provenance.get(key)}, but is {plain(value)} now"

    return unit_model, ""


def _why_not_reusable(
    label_dir: Path, name: str, stream: AudioFeatureStream | StoredFeatureStream, unit_model: UnitModel
) -> str:
    """Return why the labels of a split must be made (again); nothing if they can be kept."""
    path = label_dir / f"{stream.manifest.split}.{name}"

    try:
        data = path.read_bytes()
    except OSError:
        return "there are no labels yet"

    try:
        sidecar = read_sidecar(path)
    except LabelError as ex:
        return str(ex).removesuffix(".")

    if sidecar is None:
        return "there is no record of what made the labels"

    if not (label_dir / f"dict.{name}.txt").is_file():
        return "the dictionary is missing"

    return "; ".join(sidecar_problems(sidecar, path, data, stream.manifest, unit_model.fingerprint))
