"""The task ``hubert_ctc``: opens and checks audio and transcripts, spells them, makes the readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, final

import numpy as np
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.progress import ProgressReporter
from numpy.typing import NDArray
from typing_extensions import override

from hubert_plugin import frames
from hubert_plugin.audio import read_waveform
from hubert_plugin.data.ctc_batch import CtcBatch
from hubert_plugin.data.ctc_dataset import HubertCtcDatasetSection
from hubert_plugin.data.ctc_loader import CtcLoader
from hubert_plugin.data.ctc_problems import Kind, judge_texts
from hubert_plugin.data.ctc_text import prepare_texts
from hubert_plugin.data.dataset import HubertDataset
from hubert_plugin.data.manifest import Manifest, read_manifest
from hubert_plugin.data.plan import usable_utterances
from hubert_plugin.data.reader import HubertDataReader
from hubert_plugin.data.subset import draw_minutes
from hubert_plugin.data.transcripts import Transcripts, read_transcripts, warn_of_unlisted
from hubert_plugin.errors import ConfigError, ManifestError, TextError
from hubert_plugin.registry import HubertTask, LabelSetSpec, register_task
from hubert_plugin.tasks.ctc_config import HubertCtcTaskConfig as HubertCtcTaskConfig
from hubert_plugin.tasks.ctc_config import batching_of_all
from hubert_plugin.tasks.ctc_left_out import LeftOut, describe_left_out, none_takes_part
from hubert_plugin.tasks.ctc_record import UsedTexts
from hubert_plugin.tasks.ctc_split import CtcSplit
from hubert_plugin.tasks.demo_corpus import make_demo_corpus
from hubert_plugin.text.counts import count
from hubert_plugin.text.normalization import normalize_text
from hubert_plugin.text.tokenizer import CtcTokenizer

HUBERT_CTC: Final = "hubert_ctc"


@dataclass
class CtcReaders:
    """The readers of a training run."""

    train: HubertDataReader[CtcBatch]
    valid: HubertDataReader[CtcBatch] | None


@final
class HubertCtcTask(HubertTask):
    """Audio by manifest, transcripts, batches of whole utterances with masks."""

    def __init__(
        self,
        config: HubertCtcTaskConfig,
        section: HubertCtcDatasetSection,
        dataset: HubertDataset,
        gangs: Gangs,
        *,
        seed: int,
        reporter: ProgressReporter,
    ) -> None:
        self._config = config
        self._section = section
        self.dataset = dataset
        self._gangs = gangs
        self._seed = seed
        self._reporter = reporter
        self._splits: dict[str, CtcSplit] | None = None

        self.manifest_dir: Path = Path()
        """The folder of the manifests, known once the data is open."""

    @override
    def label_sets(self) -> Sequence[LabelSetSpec]:
        """Recognition has no label sets."""
        return []

    def training_texts(self) -> list[str]:
        """Return the normalised transcripts that are trained on; empty ones are left out.

        :raises ManifestError: There is none.
        """
        split = self._open()[self._section.train_split]

        texts = (normalize_text(split.transcripts.texts[i], self._config.text) for i in split.candidates.tolist())

        found = [t for t in texts if t]

        if not found:
            self._refuse_none(split, {"empty": split.candidates.size})

        return found

    def spell(self, tokenizer: CtcTokenizer) -> None:
        """Spell all transcripts. Call before the readers are created.

        :raises ManifestError: No utterance of the training split is short and long enough.
        :raises TextError: Transcripts cannot be used, and the policies do not say to leave them out; names those of all
            splits.
        """
        problems = []

        for split in self._open().values():
            split.texts, found = prepare_texts(
                split.manifest, split.transcripts, tokenizer, self._config.text, candidates=split.candidates
            )

            problems += found

        judge_texts(
            problems,
            tokenizer.vocabulary,
            on_bad_text=self._section.on_bad_text,  # type: ignore[arg-type]
            on_long_text=self._section.on_long_text,  # type: ignore[arg-type]
        )

    def manifests(self) -> dict[str, Manifest]:
        """Return the manifests by split."""
        return {name: split.manifest for name, split in self._open().items()}

    def used_texts(self) -> dict[str, UsedTexts]:
        """Return the normalised transcripts of all utterances that were asked for, by split. Call after
        :meth:`spell`."""
        result = {}

        for name, split in self._open().items():
            assert split.texts is not None, "`spell()` comes first"

            positions = split.candidates.tolist()

            result[name] = UsedTexts(
                split.transcripts.path,
                [split.texts.texts[i] for i in positions],
                [split.transcripts.lines[i] for i in positions],
            )

        return result

    def describe_data(self) -> dict[str, dict[str, object]]:
        """Return the number of utterances, hours and what is left out, by split."""
        result: dict[str, dict[str, object]] = {}

        for name, split in self._open().items():
            assert split.texts is not None

            result[name] = {
                "num_utterances": int(split.texts.usable.size),
                "minutes": split.minutes,
                "left_out": dict(split.texts.num_skipped),
            }

        return result

    def _open(self) -> dict[str, CtcSplit]:
        if self._splits is not None:
            return self._splits

        section, config = self._section, self._config

        if self.dataset.demo:
            self.manifest_dir = make_demo_corpus(section.demo, self._gangs, self._reporter)
        else:
            self.manifest_dir = self.dataset.manifest_dir()

        names = [section.train_split]

        if section.valid_split is not None:
            names.append(section.valid_split)

        manifests = {name: read_manifest(self.manifest_dir, name) for name in names}

        transcripts = self._read_transcripts(manifests)

        splits = {}

        for name, manifest in manifests.items():
            if name == section.train_split:
                batching = config.batching

                candidates, left_out = self._choose(manifest)
            else:
                # Nothing is left out: that would flatter the error rate.
                batching = batching_of_all(manifest, config)

                candidates, left_out = np.arange(len(manifest)), LeftOut()

            splits[name] = CtcSplit(manifest, transcripts[name], candidates, left_out, batching)

        # Here, since nothing can be said of transcripts of which none is looked at.
        if (train := splits[section.train_split]).candidates.size == 0:
            self._refuse_none(train, {})

        self._splits = splits

        return splits

    def _read_transcripts(self, manifests: Mapping[str, Manifest]) -> dict[str, Transcripts]:
        """Return the transcripts by split; what is wrong with the files of all splits is told at once."""
        result: dict[str, Transcripts] = {}

        problems = []

        for name, manifest in manifests.items():
            try:
                result[name] = read_transcripts(manifest, self._section.transcripts)
            except TextError as ex:
                problems.append(str(ex))

        if problems:
            # Two splits may have the same malformed file.
            raise TextError("\n".join(dict.fromkeys(problems)))

        warn_of_unlisted(result)

        return result

    def _choose(self, manifest: Manifest) -> tuple[NDArray[np.int64], LeftOut]:
        """Return the utterances that are trained on, if their transcripts can be used, and how many are not."""
        section, batching = self._section, self._config.batching

        long_enough = usable_utterances(manifest.sizes, batching)

        candidates = long_enough[manifest.sizes[long_enough] <= batching.max_seconds * frames.SAMPLE_RATE]

        num_short, num_long = len(manifest) - long_enough.size, long_enough.size - candidates.size

        if candidates.size < len(manifest):
            log.info(
                "Split {}: {} of {} take part; the others are shorter than {:g} or longer than {:g} s.",
                manifest.split, candidates.size, count(len(manifest), "utterance"), batching.min_seconds,
                batching.max_seconds,
            )  # fmt: skip

        if section.train_minutes is None:
            return candidates, LeftOut(num_short, num_long)

        drawn = draw_minutes(manifest, candidates, section.train_minutes, section.subset_seed)

        log.info(
            "Split {}: {} ({:.4g} min) drawn with the seed {}.",
            manifest.split, count(drawn.size, "utterance"), frames.seconds(int(manifest.sizes[drawn].sum())) / 60,
            section.subset_seed,
        )  # fmt: skip

        return drawn, LeftOut(num_short, num_long, candidates.size - drawn.size)

    def _describe_left_out(self, split: CtcSplit, texts: Mapping[Kind, int]) -> tuple[str, str]:
        return describe_left_out(split.left_out, texts, self._config.batching, self._section.train_minutes)

    def _refuse_none(self, split: CtcSplit, texts: Mapping[Kind, int]) -> NoReturn:
        """
        :param texts: How many transcripts cannot be used, by reason.
        :raises ManifestError: Always: no utterance takes part.
        """
        where = f"the split '{split.manifest.split}' of '{self.manifest_dir}'"

        raise ManifestError(none_takes_part(len(split.manifest), where, *self._describe_left_out(split, texts)))

    @override
    def create_readers(
        self, *, normalize_audio: bool = False, num_accumulate: int = 1, model_dim: int = 768
    ) -> CtcReaders:
        """Return the readers.

        :param normalize_audio: Whether the model expects normalised waveforms.
        :param num_accumulate: The number of batches of an update.
        :param model_dim: The number of channels, of which some are masked.
        :raises ManifestError: There are too few utterances.
        """
        section = self._section

        train = self._create_reader(section.train_split, normalize_audio, num_accumulate, model_dim)

        self._check_enough(train, num_accumulate)

        if section.valid_split is None:
            return CtcReaders(train, None)

        valid = self._create_reader(section.valid_split, normalize_audio, 1, model_dim)

        if not valid.has_batches():
            split = self._open()[section.valid_split]

            assert split.texts is not None

            what, remedies = self._describe_left_out(split, split.texts.num_skipped)

            remedies += ", or train without validation (`dataset.valid_split=null regime.score_metric=null`)"

            where = f"the split '{section.valid_split}' of '{self.manifest_dir}'"

            raise ManifestError(none_takes_part(len(split.manifest), where, what, remedies))

        return CtcReaders(train, valid)

    def _create_reader(
        self, name: str, normalize_audio: bool, num_accumulate: int, model_dim: int
    ) -> HubertDataReader[CtcBatch]:
        config, section, split = self._config, self._section, self._open()[name]

        assert split.texts is not None, "`spell()` comes first"

        manifest, is_train = split.manifest, name == section.train_split

        policy = section.audio_policy(normalize=normalize_audio)

        def read(idx: int) -> NDArray[np.float32]:
            return read_waveform(manifest.root, manifest.ids[idx], policy, expected_samples=int(manifest.sizes[idx]))

        loader = CtcLoader(
            manifest.ids,
            split.texts,
            read,
            mask=config.mask if is_train else None,
            model_dim=model_dim,
            seed=self._seed,
            on_bad_audio=section.on_bad_audio,  # type: ignore[arg-type]
        )

        return HubertDataReader(
            loader,
            np.maximum((manifest.sizes - frames.RECEPTIVE_FIELD) // frames.STRIDE + 1, 0),
            split.texts.usable,
            split.batching,
            self._gangs,
            seed=self._seed,
            shuffle=is_train,
            num_accumulate=num_accumulate,
            num_workers=config.num_workers,
            num_prefetch=config.num_prefetch,
            max_num_batches=None if is_train else config.max_valid_batches,
        )

    def _check_enough(self, reader: HubertDataReader[CtcBatch], num_accumulate: int) -> None:
        num_batches = len(reader.plan())

        if num_batches >= num_accumulate:
            return

        split = self._open()[self._section.train_split]

        assert split.texts is not None

        if split.texts.usable.size == 0:
            self._refuse_none(split, split.texts.num_skipped)

        what, remedies = self._describe_left_out(split, split.texts.num_skipped)

        raise ManifestError(
            f"The split '{self._section.train_split}' of '{self.manifest_dir}' yields "
            f"{count(num_batches, 'batch', 'batches')} a rank and epoch, but an update needs {num_accumulate}: "
            f"{count(split.texts.usable.size, 'utterance')} ({split.minutes:.3g} min) "
            f"{'takes' if split.texts.usable.size == 1 else 'take'} part, in batches of "
            f"{self._config.batching.batch_seconds:g} s. Lower `task.config.batching.batch_seconds`, "
            "`task.config.global_batch_seconds` or `trainer.grad_accumulation.num_batches`, or add audio."
            + (f" Left out: {what}. To change that, {remedies}." if what else "")
        )


def register_hubert_ctc(container: DependencyContainer) -> None:
    """Register the task under ``hubert_ctc``."""

    def create(resolver: DependencyResolver, config: HubertCtcTaskConfig) -> object:
        def build(context: RecipeContext, section: HubertCtcDatasetSection, seed: int) -> HubertTask:
            if not isinstance(section, HubertCtcDatasetSection):
                raise ConfigError(
                    f"The task '{HUBERT_CTC}' needs transcripts, which this recipe has no section for. Use "
                    "`fairseq2 recipe hubert finetune`."
                )

            if section.manifest_dir is not None:
                # A folder takes the place of a card.
                section.name = None

                section.config_overrides = {"manifest_dir": str(section.manifest_dir)}

            dataset = context.get_dataset_as(HubertDataset)

            return HubertCtcTask(config, section, dataset, context.gangs, seed=seed, reporter=context.progress_reporter)

        return build

    register_task(container, HUBERT_CTC, HubertCtcTaskConfig, create)
