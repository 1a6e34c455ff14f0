"""The configuration of ``pretrain``. The defaults train the toy architecture on the embedded corpus in minutes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from fairseq2.recipe.config import (
    POLYNOMIAL_DECAY_LR,
    CommonSection,
    CosineAnnealingLRConfig,
    GangSection,
    MixedPrecisionConfig,
    ModelSection,
    PolynomialDecayLRConfig,
    RegimeSection,
    TrainerSection,
)
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.criteria.masked_cross_entropy import MASKED_CROSS_ENTROPY, MaskedCrossEntropyConfig
from hubert_plugin.data.dataset import HubertDatasetSection
from hubert_plugin.data.masks import MaskConfig
from hubert_plugin.data.plan import BatchConfig
from hubert_plugin.models.hubert.config import HUBERT_FAMILY
from hubert_plugin.registry import CriterionSection, TaskSection
from hubert_plugin.tasks.early_stopping import EarlyStoppingSection
from hubert_plugin.tasks.hubert_pretrain import HUBERT_PRETRAIN, HubertPretrainTaskConfig
from hubert_plugin.tasks.init_model import InitSection
from hubert_plugin.tasks.muon import MUON_OPTIMIZER, HubertOptimizerSection, MuonConfig
from hubert_plugin.tasks.nonfinite import NonFiniteSection
from hubert_plugin.tasks.report import ReportSection
from hubert_plugin.tasks.tri_stage import HubertLRSchedulerSection


@dataclass(kw_only=True)
class HubertPretrainConfig(Validatable):
    """Holds the configuration of :class:`HubertPretrainRecipe`."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=HUBERT_FAMILY, arch="tiny"))
    """The model. Its target heads follow from the label sets unless ``config_overrides.heads`` names them."""

    init: InitSection = field(default_factory=InitSection)
    """Which parameters the model starts from."""

    dataset: HubertDatasetSection = field(default_factory=HubertDatasetSection)
    """Audio and labels."""

    task: TaskSection = field(
        default_factory=lambda: TaskSection(
            name=HUBERT_PRETRAIN,
            config=HubertPretrainTaskConfig(
                batching=BatchConfig(batch_seconds=15.0, max_seconds=4.0, min_seconds=0.5),
                # 41 % of these frames. The paper masks 58 % of them, in spans twice as long: few updates learn less.
                mask=MaskConfig(prob=0.5, span_len=5),
                valid_batch_seconds=60.0,
            ),
        )
    )
    """How audio is cut, put into batches and masked."""

    criterion: CriterionSection = field(
        default_factory=lambda: CriterionSection(
            name=MASKED_CROSS_ENTROPY,
            # The paper's α = 1 needs far more updates than a demo has; 0.5 leaves the plateau in a few hundred.
            config=MaskedCrossEntropyConfig(alpha=0.5),
        )
    )
    """The loss."""

    # Where labels are made on the way, rank 0 does it while the others wait, possibly for hours.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))

    trainer: TrainerSection = field(
        default_factory=lambda: TrainerSection(
            mixed_precision=MixedPrecisionConfig(mode="auto", dtype=torch.bfloat16),
            max_grad_norm=10.0,
        )
    )

    # The papers' presets use AdamW; the demo's convolutions have little time to learn.
    optimizer: HubertOptimizerSection = field(
        default_factory=lambda: HubertOptimizerSection(name=MUON_OPTIMIZER, config=MuonConfig())
    )

    lr_scheduler: HubertLRSchedulerSection = field(
        default_factory=lambda: HubertLRSchedulerSection(
            name=POLYNOMIAL_DECAY_LR, config=PolynomialDecayLRConfig(num_warmup_steps=100)
        )
    )

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=700,
            score_metric="masked_accuracy",
            validate_every_n_steps=350,
            checkpoint_every_n_steps=350,
            keep_last_n_checkpoints=1,
            keep_best_n_checkpoints=1,
            publish_metrics_every_n_steps=50,
        )
    )

    early_stopping: EarlyStoppingSection = field(default_factory=EarlyStoppingSection)
    """When training ends before its last step."""

    nonfinite: NonFiniteSection = field(default_factory=NonFiniteSection)
    """What happens when a loss or a gradient is not finite."""

    report: ReportSection = field(default_factory=ReportSection)
    """What is told at the end."""

    # One output folder is one run, also when the number of ranks changes.
    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        num_steps, schedule = self.regime.num_steps, self.lr_scheduler.config

        # fairseq2 says so, too, but only when labels are made, and by a key that there is not.
        if (
            (
                isinstance(schedule, PolynomialDecayLRConfig)
                or (isinstance(schedule, CosineAnnealingLRConfig) and schedule.cycle_len is None)
            )
            and num_steps is not None
            and schedule.num_warmup_steps >= num_steps
        ):
            result.add_error(
                f"`lr_scheduler.config.num_warmup_steps` ({schedule.num_warmup_steps}) must be less than "
                f"`regime.num_steps` ({num_steps}): where a run is shortened, shorten both."
            )

        task, criterion = self.task.config, self.criterion.config

        if (
            isinstance(task, HubertPretrainTaskConfig)
            and isinstance(criterion, MaskedCrossEntropyConfig)
            and task.mask.masks_nothing
            and criterion.alpha > 0.0
        ):
            result.add_error(
                "`task.config.mask` masks nothing (`prob` and `min_spans` are 0), but masked frames are predicted "
                f"with the weight `criterion.config.alpha` ({criterion.alpha:g}). Raise `prob`, or predict unmasked "
                "frames alone: `criterion.config.alpha=0 regime.score_metric=unmasked_accuracy`."
            )

        return result
