"""The task ``hubert_pretrain``: opens and checks audio and labels, says the label sets, makes the readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, final

import numpy as np
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.progress import ProgressReporter
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin.audio import read_waveform
from hubert_plugin.data.dataset import HubertDataset, HubertDatasetSection
from hubert_plugin.data.labels import LabelSet
from hubert_plugin.data.loader import BatchLoader, LabelReader
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import max_frames, usable_utterances
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.errors import ManifestError
from hubert_plugin.registry import FeatureSource, HubertTask, LabelSetSpec, create_component, register_task
from hubert_plugin.tasks.batching import BatchingTaskConfig
from hubert_plugin.tasks.pretrain_data import LabelledSplit, open_pretrain_data

HUBERT_PRETRAIN: Final = "hubert_pretrain"


@dataclass(kw_only=True)
class HubertPretrainTaskConfig(BatchingTaskConfig):
    """How audio is cut, put into batches and masked."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which frames are masked."""


@dataclass
class PretrainReaders:
    """The readers of a training run."""

    train: HubertDataReader
    valid: HubertDataReader | None


@final
class HubertPretrainTask(HubertTask):
    """Audio by manifest, one or more label sets, batches of crops with masks."""

    def __init__(
        self,
        config: HubertPretrainTaskConfig,
        section: HubertDatasetSection,
        dataset: HubertDataset,
        gangs: Gangs,
        create_feature_source: Callable[[], FeatureSource],
        *,
        seed: int,
        reporter: ProgressReporter,
    ) -> None:
        """
        :param create_feature_source: Makes the feature source of labels that are made on the way.
        """
        self._config = config
        self._section = section
        self.dataset = dataset
        self._gangs = gangs
        self._create_feature_source = create_feature_source
        self._seed = seed
        self._reporter = reporter
        self._splits: dict[str, LabelledSplit] | None = None

        self.manifest_dir: Path = Path()
        """The folder of the manifests, known once the label sets are."""

    @override
    def label_sets(self) -> list[LabelSetSpec]:
        train = self._open()[self._section.train_split]

        return [labels.spec for labels in train.labels]

    def split(self, name: str) -> LabelledSplit:
        """Return manifest and labels of a split."""
        return self._open()[name]

    def _open(self) -> dict[str, LabelledSplit]:
        if self._splits is None:
            self.manifest_dir, self._splits = open_pretrain_data(
                self._section, self.dataset, self._gangs, self._create_feature_source, reporter=self._reporter
            )

        return self._splits

    def create_readers(self, *, normalize_audio: bool = False, num_accumulate: int = 1) -> PretrainReaders:  # type: ignore[override]
        """Return the readers.

        :param normalize_audio: Whether the model expects normalised waveforms.
        :param num_accumulate: The number of batches of an update.
        """
        train = self._create_reader(
            self._section.train_split, normalize_audio=normalize_audio, shuffle=True, num_accumulate=num_accumulate
        )

        self._check_enough(train, num_accumulate)

        valid = None

        if self._section.valid_split is not None:
            valid = self._create_reader(
                self._section.valid_split, normalize_audio=normalize_audio, shuffle=False, num_accumulate=1
            )

            if not valid.has_batches():
                raise ManifestError(
                    f"The split '{self._section.valid_split}' of '{self.manifest_dir}' has no utterance of at least "
                    f"`task.config.batching.min_seconds` ({self._config.batching.min_seconds:g} s). Lower it, or train "
                    "without validation: `dataset.valid_split=null regime.score_metric=null`."
                )

        return PretrainReaders(train, valid)

    def _create_reader(
        self, name: str, *, normalize_audio: bool, shuffle: bool, num_accumulate: int
    ) -> HubertDataReader:
        config, split = self._config, self.split(name)

        manifest = split.manifest

        policy = self._section.audio_policy(normalize=normalize_audio)

        def read(idx: int) -> NDArray[np.float32]:
            return read_waveform(manifest.root, manifest.ids[idx], policy, expected_samples=int(manifest.sizes[idx]))

        batching = config.batching

        if not shuffle and config.valid_batch_seconds is not None:
            batching = replace(batching, batch_seconds=config.valid_batch_seconds)

        usable = usable_utterances(manifest.sizes, batching)

        if usable.size < len(manifest):
            log.info(
                "Split {}: {} of {} utterances take part; the others are shorter than {:g} s.",
                name, usable.size, len(manifest), batching.min_seconds,
            )  # fmt: skip

        loader = BatchLoader(
            manifest.ids,
            split.num_frames,
            read,
            [LabelReader(partial(_units_of, labels), labels.spec.rate) for labels in split.labels],
            mask=config.mask,
            max_frames=max_frames(batching),
            seed=self._seed,
            on_bad_audio=self._section.on_bad_audio,  # type: ignore[arg-type]
        )

        return HubertDataReader(
            loader,
            split.num_frames,
            usable,
            batching,
            self._gangs,
            seed=self._seed,
            shuffle=shuffle,
            num_accumulate=num_accumulate,
            num_workers=config.num_workers,
            num_prefetch=config.num_prefetch,
            max_num_batches=None if shuffle else config.max_valid_batches,
        )

    def _check_enough(self, reader: HubertDataReader, num_accumulate: int) -> None:
        num_batches = len(reader.plan())

        if num_batches < num_accumulate:
            split = self.split(self._section.train_split)

            size, batching = self._gangs.dp.size, self._config.batching

            ranks = f"Run on fewer than {size} ranks, lower" if size > 1 else "Lower"

            raise ManifestError(
                f"The split '{self._section.train_split}' of '{self.manifest_dir}' yields {num_batches} batches for "
                f"each of {size} ranks in an epoch, but an update needs {num_accumulate}: it has {len(split.manifest)} "
                f"utterances, and batches are of {batching.batch_seconds:g} s from utterances of at least "
                f"{batching.min_seconds:g} s. {ranks} `task.config.batching.batch_seconds` or `min_seconds`, "
                "`task.config.global_batch_seconds` or `trainer.grad_accumulation.num_batches`, or add audio."
            )


def _units_of(labels: LabelSet, idx: int) -> NDArray[np.int32]:
    return labels[idx]


def register_hubert_pretrain(container: DependencyContainer) -> None:
    """Register the task under ``hubert_pretrain``."""

    def create(resolver: DependencyResolver, config: HubertPretrainTaskConfig) -> object:
        def build(
            context: RecipeContext,
            section: HubertDatasetSection,
            seed: int,
        ) -> HubertTask:
            if section.manifest_dir is not None:
                # A folder takes the place of a card.
                section.name = None

                section.config_overrides = {"manifest_dir": str(section.manifest_dir)}

            dataset = context.get_dataset_as(HubertDataset)

            features = section.label_making.features

            def create_feature_source() -> FeatureSource:
                return create_component(context.resolver, FeatureSource, features.name, features.config)  # type: ignore[type-abstract]

            return HubertPretrainTask(
                config,
                section,
                dataset,
                context.gangs,
                create_feature_source,
                seed=seed,
                reporter=context.progress_reporter,
            )

        return build

    register_task(container, HUBERT_PRETRAIN, HubertPretrainTaskConfig, create)
