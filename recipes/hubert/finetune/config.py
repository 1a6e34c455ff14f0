"""The configuration of ``finetune``. The defaults fine-tune on 10 minutes of the embedded corpus in minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fairseq2.recipe.config import (
    ADAMW_OPTIMIZER,
    TRI_STAGE_LR,
    AdamWConfig,
    CommonSection,
    GangSection,
    MixedPrecisionConfig,
    ModelSection,
    RegimeSection,
    TrainerSection,
    TriStageLRConfig,
)

from hubert_plugin.criteria.ctc import CTC, CtcConfig
from hubert_plugin.data.ctc_dataset import HubertCtcDatasetSection
from hubert_plugin.data.ctc_loader import CtcMaskConfig
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.models.hubert_ctc.config import HUBERT_CTC_FAMILY
from hubert_plugin.registry import CriterionSection, TaskSection
from hubert_plugin.tasks.early_stopping import EarlyStoppingSection
from hubert_plugin.tasks.freezing import FreezingSection
from hubert_plugin.tasks.hubert_ctc import HUBERT_CTC, HubertCtcTaskConfig
from hubert_plugin.tasks.muon import HubertOptimizerSection
from hubert_plugin.tasks.nonfinite import NonFiniteSection
from hubert_plugin.tasks.pretrained import PretrainedSection
from hubert_plugin.tasks.tokenizer import HubertTokenizerSection
from hubert_plugin.tasks.tri_stage import HubertLRSchedulerSection


@dataclass(kw_only=True)
class HubertFinetuneConfig:
    """Holds the configuration of :class:`HubertFinetuneRecipe`."""

    pretrained: str | None = None
    """The HuBERT to start from: a run folder, a checkpoint file of any known format, the name of an asset card, or a
    hub id. Its architecture is taken over. ``None``: random parameters, of ``model.arch``."""

    pretraining: PretrainedSection = field(default_factory=PretrainedSection)
    """How the pretrained model is taken over."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=HUBERT_CTC_FAMILY, arch="tiny"))
    """The recogniser: dropout, layer drop and, where nothing is pretrained, the architecture."""

    freezing: FreezingSection = field(default_factory=FreezingSection)
    """Which parts of the model are not trained."""

    dataset: HubertCtcDatasetSection = field(default_factory=lambda: HubertCtcDatasetSection(train_minutes=10.0))
    """Audio and transcripts."""

    tokenizer: HubertTokenizerSection = field(default_factory=HubertTokenizerSection)
    """How transcripts are spelled."""

    task: TaskSection = field(
        default_factory=lambda: TaskSection(
            name=HUBERT_CTC,
            config=HubertCtcTaskConfig(
                batching=BatchConfig(batch_seconds=16.0, max_seconds=16.0, min_seconds=0.025, length="pad_bucket"),
                # With the paper's masks the tiny model says nothing but blanks for longer than the demo lasts.
                mask=CtcMaskConfig(time=MaskConfig(prob=0.1), channel=MaskConfig(prob=0.0, span_len=16, min_spans=0)),
                valid_batch_seconds=60.0,
            ),
        )
    )
    """How audio is put into batches and masked, and how transcripts are normalised."""

    criterion: CriterionSection = field(default_factory=lambda: CriterionSection(name=CTC, config=CtcConfig()))
    """The loss."""

    # Where the corpus is made on the way, rank 0 does it while the others wait.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(mixed_precision=MixedPrecisionConfig(mode="auto", dtype=torch.bfloat16))
    )

    optimizer: HubertOptimizerSection = field(
        default_factory=lambda: HubertOptimizerSection(
            name=ADAMW_OPTIMIZER,
            config=AdamWConfig(lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0, impl="fused"),
        )
    )

    lr_scheduler: HubertLRSchedulerSection = field(
        default_factory=lambda: HubertLRSchedulerSection(
            name=TRI_STAGE_LR,
            config=TriStageLRConfig(stage_ratio=(0.1, 0.4, 0.5), start_lr_scale=0.01, final_lr_scale=0.05),
        )
    )

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=1500,
            # After so little training hardly a word is right: a model that says nothing has the best word error rate.
            score_metric="cer",
            validate_every_n_steps=500,
            checkpoint_every_n_steps=500,
            keep_last_n_checkpoints=1,
            keep_best_n_checkpoints=1,
            publish_metrics_every_n_steps=100,
        )
    )

    early_stopping: EarlyStoppingSection = field(default_factory=EarlyStoppingSection)
    """When training ends before its last step."""

    nonfinite: NonFiniteSection = field(default_factory=NonFiniteSection)
    """What happens when a loss or a gradient is not finite."""

    # One output folder is one run, also when the number of ranks changes.
    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
