"""The configuration of ``features``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.audio import AudioPolicy
from hubert_plugin.registry import FeatureSourceSection
from hubert_plugin.units.mfcc import MFCC_SOURCE

FORMATS = ("kaldi", "fairseq")


@dataclass(kw_only=True)
class HubertFeaturesConfig(Validatable):
    """Configures ``fairseq2 recipe hubert features``."""

    manifest_dir: Path | None = None
    """The folder that holds the manifests."""

    splits: list[str] | None = None
    """The splits; ``null`` takes every manifest (``*.tsv``) in the folder."""

    features: FeatureSourceSection = field(default_factory=lambda: FeatureSourceSection(name=MFCC_SOURCE))
    """The features: ``mfcc``, ``hubert_layer``, or another registered source."""

    audio: AudioPolicy = field(default_factory=AudioPolicy)
    """What to do with other sample rates, and whether waveforms are normalised."""

    format: str = "kaldi"
    """``kaldi``: ``OUT/SPLIT/feats.scp`` with arks; ``fairseq``: ``OUT/SPLIT_<shard>_<shards>.npy`` and ``.len``."""

    overwrite: bool = False
    """Whether features of another making in the output folder are replaced: of another source, manifest or model, or
    without a record of it. Otherwise they are refused."""

    num_shards: int | None = None
    """In how many shards each split is cut; ``null``: one for each process, or for each utterance of a split that has
    fewer. A shard is what a run that was killed goes on from."""

    shard: int | None = None
    """Write this shard only, from 0 (for job arrays); ``null``: the processes share all of them."""

    num_workers: int | None = None
    """Threads that read audio and compute MFCC; ``null`` is one for each core. The features do not depend on it."""

    # A process that is done waits for the others, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))
    """The processes."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """fairseq2's common settings."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.format not in FORMATS:
            result.add_error(f"`format` must be {' or '.join(FORMATS)}, but is '{self.format}' instead.")

        if self.num_shards is not None and self.num_shards < 1:
            result.add_error(f"`num_shards` must be 1 or greater, but is {self.num_shards} instead.")

        if self.shard is not None and not (self.num_shards is not None and 0 <= self.shard < self.num_shards):
            result.add_error(
                f"`shard` must be at least 0 and below `num_shards`, which must be given, but is {self.shard} instead."
            )

        if self.num_workers is not None and self.num_workers < 1:
            result.add_error(f"`num_workers` must be 1 or greater, but is {self.num_workers} instead.")

        return result
