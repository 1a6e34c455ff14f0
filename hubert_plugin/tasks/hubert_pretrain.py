"""The task ``hubert_pretrain``: opens and checks audio and labels, says the label sets, makes the readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, final

import numpy as np
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.progress import ProgressReporter, ProgressTask
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.audio import read_waveform
from hubert_plugin.data.dataset import HubertDataset, HubertDatasetSection
from hubert_plugin.data.labels import LabelSet, open_labels
from hubert_plugin.data.loader import BatchLoader, LabelReader
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig, max_frames, usable_utterances
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.demo import ensure_demo_corpus
from hubert_plugin.errors import LabelError, ManifestError
from hubert_plugin.registry import FeatureSource, HubertTask, LabelSetSpec, create_component, register_task

HUBERT_PRETRAIN: Final = "hubert_pretrain"


@dataclass(kw_only=True)
class HubertPretrainTaskConfig(Validatable):
    """How audio is cut, put into batches and masked."""

    batching: BatchConfig = field(default_factory=BatchConfig)
    """Batches of the training split."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    """Which frames are masked."""

    global_batch_seconds: float | None = None
    """The seconds of audio of an update over all ranks and accumulated batches. Ranks share it out in equal batches of
    at most ``batching.batch_seconds``; ``trainer.grad_accumulation.num_batches`` follows from it. ``None``: ranks times
    ``trainer.grad_accumulation.num_batches`` times ``batching.batch_seconds``."""

    valid_batch_seconds: float | None = None
    """The seconds of audio of a validation batch. ``None``: as in training."""

    max_valid_batches: int | None = None
    """If set, validation stops after this many batches (over all ranks)."""

    num_workers: int = 2
    """The number of batches that are read in parallel."""

    num_prefetch: int = 4
    """The number of batches that are kept ready."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.num_workers < 1:
            result.add_error(f"`num_workers` must be greater than or equal to 1, but is {self.num_workers} instead.")

        if self.global_batch_seconds is not None and self.global_batch_seconds <= 0.0:
            result.add_error(
                f"`global_batch_seconds` must be greater than 0, but is {self.global_batch_seconds} instead."
            )

        if self.num_prefetch < 0:
            result.add_error(f"`num_prefetch` must not be negative, but is {self.num_prefetch} instead.")

        return result


@dataclass
class PretrainReaders:
    """The readers of a training run."""

    train: HubertDataReader
    valid: HubertDataReader | None


@dataclass
class _Split:
    manifest: Manifest
    labels: list[LabelSet]
    num_frames: NDArray[np.int64]


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
        self._splits: dict[str, _Split] | None = None

        self.manifest_dir: Path = Path()
        """The folder of the manifests, known once the label sets are."""

    @override
    def label_sets(self) -> list[LabelSetSpec]:
        train = self._open()[self._section.train_split]

        return [labels.spec for labels in train.labels]

    def split(self, name: str) -> _Split:
        """Return manifest and labels of a split."""
        return self._open()[name]

    def _open(self) -> dict[str, _Split]:
        if self._splits is not None:
            return self._splits

        section = self._section

        names = [section.train_split]

        if section.valid_split is not None:
            names.append(section.valid_split)

        self.manifest_dir, label_dir, label_names = self._prepare(names)

        splits = {}

        for name in names:
            manifest = read_manifest(self.manifest_dir, name)

            labels = [
                open_labels(label_dir, name, label_name, manifest, rate=section.label_rates.get(label_name))
                for label_name in label_names
            ]

            splits[name] = _Split(manifest, labels, _labelled_frames(manifest, labels))

        self._check_splits_agree(splits)

        self._splits = splits

        return splits

    def _prepare(self, splits: Sequence[str]) -> tuple[Path, Path, list[str]]:
        """Make corpus and labels where they are asked for and missing: rank 0 works, the others wait."""
        section = self._section

        is_first = self._gangs.root.rank == 0

        if self.dataset.demo:
            if is_first:
                with self._reporter:
                    ensure_demo_corpus(section.demo, progress=_ProgressBar(self._reporter, "corpus"))

            self._gangs.root.barrier()

            # In the cache by now.
            manifest_dir = ensure_demo_corpus(section.demo)
        else:
            manifest_dir = self.dataset.manifest_dir()

        names = list(section.labels or self.dataset.config.labels)

        if names:
            label_dir = section.label_dir or self.dataset.config.label_dir or manifest_dir

            return manifest_dir, Path(label_dir).expanduser(), names

        from hubert_plugin.units.prepare import ensure_labels

        making = section.label_making

        name = "km"

        label_dir = manifest_dir / "labels" / f"{making.features.name}_k{making.num_clusters}_seed{making.seed}"

        if is_first:
            with self._reporter:
                ensure_labels(
                    manifest_dir,
                    splits,
                    label_dir=label_dir,
                    name=name,
                    feature_source=self._create_feature_source(),
                    num_clusters=making.num_clusters,
                    max_frames=making.max_frames,
                    seed=making.seed,
                    audio_policy=section.audio_policy(normalize=False),
                    progress=self._reporter,
                )

        self._gangs.root.barrier()

        return manifest_dir, label_dir, [name]

    def _check_splits_agree(self, splits: dict[str, _Split]) -> None:
        train = splits[self._section.train_split]

        for name, split in splits.items():
            for ours, theirs in zip(train.labels, split.labels, strict=True):
                if ours.spec != theirs.spec:
                    raise LabelError(
                        f"The label set '{ours.spec.name}' has {ours.spec.size} units at {ours.spec.rate} Hz in "
                        f"the split "
                        f"'{self._section.train_split}', but {theirs.spec.size} at {theirs.spec.rate} Hz in '{name}'. "
                        "Label both splits with one unit model."
                    )

                made_by = [(labels.provenance or {}).get("unit_model_fingerprint") for labels in (ours, theirs)]

                if None not in made_by and made_by[0] != made_by[1]:
                    # Unit 7 of one k-means has nothing to do with unit 7 of another (FACTS, trap T32).
                    raise LabelError(
                        f"The labels '{ours.spec.name}' come from the unit model {made_by[0]} in the split "
                        f"'{self._section.train_split}', but from {made_by[1]} in '{name}'. Label both splits with one "
                        "unit model."
                    )

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
            from dataclasses import replace

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

            raise ManifestError(
                f"The split '{self._section.train_split}' of '{self.manifest_dir}' yields {num_batches} batches a rank "
                f"and epoch, but an update needs {num_accumulate}: it has {len(split.manifest)} utterances, and "
                f"`task.config.batching` asks for batches of {self._config.batching.batch_seconds:g} s from utterances "
                f"of at least {self._config.batching.min_seconds:g} s. Lower them, or `global_batch_seconds` or "
                f"`trainer.grad_accumulation.num_batches`, or add audio."
            )


class _ProgressBar:
    """A progress callback ``(done, total)`` that draws fairseq2's progress bar."""

    def __init__(self, reporter: ProgressReporter, name: str) -> None:
        self._reporter = reporter
        self._name = name
        self._task: ProgressTask | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._done >= total:
            return

        if self._task is None:
            self._task = self._reporter.create_task(self._name, total)

        self._task.step(done - self._done)

        self._done = done

        if done >= total:
            self._task.close()


def _units_of(labels: LabelSet, idx: int) -> NDArray[np.int32]:
    return labels[idx]


def _labelled_frames(manifest: Manifest, labels: Sequence[LabelSet]) -> NDArray[np.int64]:
    """Return how many frames of each utterance have audio and a label in every set. *Shape:* (utterances,)."""
    num_frames = np.maximum((manifest.sizes - frames.RECEPTIVE_FIELD) // frames.STRIDE + 1, 0)

    for label_set in labels:
        num_frames = np.minimum(num_frames, label_set.num_frames())

    return num_frames


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
