"""The configuration of ``label``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.data.label_meta import MAX_UNITS
from hubert_plugin.frames import SUPPORTED_LABEL_RATES
from hubert_plugin.registry import FeatureSourceSection
from hubert_plugin.units.mfcc import MFCC_SOURCE

FORMATS = ("km", "binary")


@dataclass(kw_only=True)
class HubertLabelConfig(Validatable):
    """Configures ``fairseq2 recipe hubert label``."""

    manifest_dir: Path | None = None
    """The folder that holds the manifests."""

    splits: list[str] | None = None
    """The splits to label; ``null`` labels every manifest (``*.tsv``) in the folder."""

    unit_model: Path | None = None
    """The unit model, as ``cluster`` writes it (``units.safetensors``)."""

    trust_pickle: bool = False
    """Also read scikit-learn joblib files, which **can run any code** when they are read: only for files you trust."""

    features: FeatureSourceSection = field(default_factory=lambda: FeatureSourceSection(name=MFCC_SOURCE))
    """The features; they must be those that the unit model was fitted on."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates, and whether waveforms are normalised (as in ``cluster``)."""

    labels_from: Path | None = None
    """In place of ``unit_model``: labels that exist, to be checked against the manifest and written in another form. A
    folder with label sets, or a kaldi table of integer vectors (``ali.scp``, ``ali.ark``)."""

    label_sets: list[str] | None = None
    """With ``labels_from``: the names of the label sets; ``null``: all in the folder, and ``km`` for a kaldi table."""

    label_size: int | None = None
    """With ``labels_from``: the number of units, where nothing tells."""

    label_rate: int | None = None
    """With ``labels_from``: labels per second, 50 or 100, where nothing tells; ``null`` infers it from the lengths."""

    allow_pipes: bool = False
    """With ``labels_from``: whether commands in a kaldi script file **are run**: only for files you trust."""

    format: str = "km"
    """``km``: fairseq's text with dictionary and record; ``binary``: one file that is mapped, for large corpora."""

    kaldi_ark: bool = False
    """Whether to write the labels as kaldi's integer vectors, too (``<split>.<label set>.ark`` and ``.scp``)."""

    overwrite: bool = False
    """Whether labels of another making in the output folder are replaced: of another unit model, another manifest or
    other features, or without a record of it. Otherwise they are refused."""

    num_shards: int = 1
    """In how many shards each split is cut for the jobs of an array: fairseq's contiguous ranges."""

    shard: int | None = None
    """The shard that this job labels, from 0; ``null``: all. The job that finishes last joins the labels."""

    num_workers: int | None = None
    """Threads that read audio and compute MFCC; ``null`` is one for each core. The labels do not depend on it."""

    # A process that is done waits for the others, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes, which share the work."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.unit_model is not None and self.labels_from is not None:
            result.add_error("`unit_model` and `labels_from` must not both be given: labels have one origin.")

        if self.labels_from is None and (self.label_sets, self.label_size, self.label_rate) != (None, None, None):
            result.add_error(
                "`label_sets`, `label_size` and `label_rate` belong to `labels_from`; a unit model tells its own."
            )

        if self.labels_from is None and self.allow_pipes:
            result.add_error(
                "`allow_pipes` belongs to `labels_from`; for features in files set `features.config.allow_pipes`."
            )

        if self.labels_from is not None and (self.num_shards != 1 or self.shard is not None):
            result.add_error(
                "`num_shards` and `shard` belong to `unit_model`: labels that exist are written by one process."
            )

        if self.format not in FORMATS:
            result.add_error(f"`format` must be {' or '.join(FORMATS)}, but is '{self.format}' instead.")

        if self.label_rate is not None and self.label_rate not in SUPPORTED_LABEL_RATES:
            result.add_error(f"`label_rate` must be 50 or 100, but is {self.label_rate} instead.")

        if self.label_size is not None and not 1 <= self.label_size <= MAX_UNITS:
            result.add_error(f"`label_size` must be from 1 to {MAX_UNITS}, but is {self.label_size} instead.")

        if self.num_shards < 1:
            result.add_error(f"`num_shards` must be 1 or greater, but is {self.num_shards} instead.")

        if self.shard is not None and not 0 <= self.shard < self.num_shards:
            result.add_error(
                f"`shard` must be at least 0 and below `num_shards` ({self.num_shards}), but is {self.shard} instead."
            )

        if self.num_workers is not None and self.num_workers < 1:
            result.add_error(f"`num_workers` must be 1 or greater, but is {self.num_workers} instead.")

        return result
