"""Features that are in files already, as a feature source: kaldi's ``feats.scp`` and fairseq's dumps.

Such a source computes nothing from audio: it finds the features of a manifest's utterances by their ids (kaldi) or by
their order (fairseq). :func:`open_feature_stream` opens either kind of source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, final

import numpy as np
from fairseq2.assets import AssetCardError, AssetNotFoundError
from fairseq2.datasets import DatasetFamily
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.data.dataset import HUBERT_DATASET
from hubert_plugin.data.feature_files import FeatureFormat
from hubert_plugin.data.stored_features import check_feature_rate, open_stored_features
from hubert_plugin.errors import MAX_SHOWN_PROBLEMS, ConfigError, UnitModelError, format_problems
from hubert_plugin.frames import SUPPORTED_LABEL_RATES
from hubert_plugin.models.interop.cards import open_card_store
from hubert_plugin.registry import Features, FeatureSource, Waveform
from hubert_plugin.units.stream import AudioFeatureStream, FeatureStream, describe_manifest

if TYPE_CHECKING:
    from hubert_plugin.audio.policy import AudioPolicy
    from hubert_plugin.data.manifest import Manifest

KALDI_SOURCE: Final = "kaldi"

FAIRSEQ_SOURCE: Final = "fairseq"


@dataclass(kw_only=True)
class StoredFeatureConfig(Validatable):
    """Where features are."""

    path: Path | None = None
    """A folder of features (kaldi: ``PATH/SPLIT/feats.scp`` or ``PATH/feats.scp``; fairseq: ``PATH/SPLIT_<i>_<n>.npy``
    and ``.len``), or, for kaldi, a script file or archive."""

    dataset: str | None = None
    """In place of ``path``: the name of a dataset card of the family ``hubert`` whose ``feature_files`` say it."""

    rate: int | None = None
    """Frames per second, 50 or 100; ``None``: as recorded beside the features, or as their lengths tell."""

    allow_pipes: bool = False
    """Whether a kaldi script file may hold commands (``copy-feats … |``), **which are run**: for files you trust."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.rate is not None and self.rate not in SUPPORTED_LABEL_RATES:
            result.add_error(f"`rate` must be 50 or 100 frames per second, but is {self.rate} instead.")

        return result


@final
class StoredFeatureSource(FeatureSource):
    """The features in files of one format."""

    parallel: ClassVar[bool] = False

    def __init__(self, kind: FeatureFormat, config: StoredFeatureConfig) -> None:
        if config.path is None:
            raise ConfigError(f"`features.config.path` must say where the features are that the source '{kind}' reads.")

        self.kind, self.path, self.config = kind, config.path, config

    @property
    @override
    def dim(self) -> int:
        raise self._needs_stream()

    @property
    @override
    def rate(self) -> int:
        raise self._needs_stream()

    @override
    def extract(self, waveforms: Sequence[Waveform]) -> list[Features]:
        raise self._needs_stream()

    @override
    def describe(self) -> dict[str, object]:
        return {"kind": self.kind}

    def _needs_stream(self) -> UnitModelError:
        return UnitModelError(
            f"The feature source '{self.kind}' reads features from files and computes none from audio, so it cannot be "
            "used here. It can in `cluster` and `label`."
        )


@final
class StoredFeatureStream(FeatureStream):
    """The features of a manifest that are in files."""

    exact: ClassVar[bool] = False
    """Other tools round differently at the ends of utterances: 20 ms may be missing."""

    def __init__(self, manifest: Manifest, source: StoredFeatureSource) -> None:
        """
        :raises UnitModelError: The features are missing, of other utterances, or of another rate.
        """
        self.manifest, self.source = manifest, source

        config = source.config

        self._features = open_stored_features(source.kind, source.path, manifest, allow_pipes=config.allow_pipes)

        self._rate = check_feature_rate(self._features, manifest, config.rate)

    @property
    @override
    def dim(self) -> int:
        return self._features.dim

    @property
    @override
    def rate(self) -> int:
        return self._rate

    @override
    def num_frames(self) -> NDArray[np.int64]:
        return self._features.counts

    @override
    def read(self, order: Sequence[int] | None = None) -> Iterator[tuple[int, Features]]:
        """
        :raises UnitModelError: Features cannot be read: all of those in ``order``, or the first 20.
        """
        problems: list[str] = []

        for idx in range(len(self.manifest.ids)) if order is None else order:
            try:
                features = self._features.read(idx)
            except UnitModelError as ex:
                problems.append(str(ex))

                if len(problems) == MAX_SHOWN_PROBLEMS:
                    break
            else:
                # After the first problem the others are looked for, and nothing is made of the rest.
                if not problems:
                    yield idx, features

        if problems:
            raise UnitModelError(format_problems("Features cannot be used.", problems))

    @override
    def describe(self) -> dict[str, object]:
        record = self._features.record or {}

        # What was computed by us is the same whether it was kept or not.
        if isinstance(described := record.get("features"), dict):
            return dict(described)

        return {**self.source.describe(), "dim": self.dim, "rate": self.rate}

    @override
    def describe_data(self) -> dict[str, object]:
        stamp = self._features.stamp

        # Units and labels of files that were replaced since are made anew.
        return {**describe_manifest(self.manifest), **({} if stamp is None else {"files": stamp})}


def open_feature_stream(
    manifest: Manifest,
    source: FeatureSource,
    policy: AudioPolicy | None = None,
    *,
    num_workers: int | None = None,
) -> AudioFeatureStream | StoredFeatureStream:
    """Return the features of a manifest: read from files if that is what ``source`` does, else computed from audio.

    The parameters are those of :class:`AudioFeatureStream`.

    :raises UnitModelError: Features in files do not fit the manifest.
    """
    if isinstance(source, StoredFeatureSource):
        return StoredFeatureStream(manifest, source)

    return AudioFeatureStream(manifest, source, policy, num_workers=num_workers)


def create_kaldi_source(resolver: DependencyResolver, config: StoredFeatureConfig) -> StoredFeatureSource:
    return StoredFeatureSource("kaldi", _with_path(resolver, config))


def create_fairseq_source(resolver: DependencyResolver, config: StoredFeatureConfig) -> StoredFeatureSource:
    return StoredFeatureSource("fairseq", _with_path(resolver, config))


def _with_path(resolver: DependencyResolver, config: StoredFeatureConfig) -> StoredFeatureConfig:
    """Fill in the path that the dataset card says.

    :raises CheckpointError: The folders of cards cannot be read.
    :raises ConfigError: There is no such card, it names no features, or a path is given as well.
    """
    if config.dataset is None:
        return config

    if config.path is not None:
        raise ConfigError("`features.config.path` and `features.config.dataset` must not both be given.")

    try:
        card = open_card_store(resolver).retrieve_card(config.dataset)

        family = card.field("dataset_family").as_(str)
    except AssetNotFoundError:
        raise ConfigError(
            f"There is no dataset card '{config.dataset}' (`features.config.dataset`). `fairseq2 assets list` shows "
            "those that there are; `common.assets.extra_paths` adds folders."
        ) from None
    except AssetCardError as ex:
        raise ConfigError(f"The card '{config.dataset}' is not of a dataset: {ex}.") from ex

    if family != HUBERT_DATASET:
        raise ConfigError(
            f"The dataset card '{config.dataset}' must be of the family '{HUBERT_DATASET}', but is of '{family}'."
        )

    dataset_config = resolver.resolve(DatasetFamily, key=HUBERT_DATASET).get_dataset_config(card)

    path = getattr(dataset_config, "feature_files", None)

    if path is None:
        raise ConfigError(f"The dataset card '{config.dataset}' must say `feature_files`, to be read as features.")

    return replace(config, path=path)
