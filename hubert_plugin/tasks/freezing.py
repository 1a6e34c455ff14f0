"""Parts of a model that are not trained: the convolutions for ever, a recogniser's encoder for some updates or for
ever.

fairseq runs what is frozen without gradient (``hubert_asr.py:385-389``, ``hubert.py:401-408``). Here, too; and so that
*frozen* means equal to the last bit, also with weight decay, in data-parallel training and after resuming, the
optimizer never sees a gradient of a frozen parameter: what is frozen for ever does not ask for any, and what is frozen
for some updates has its gradients (zeros, for which data-parallel reduction waits) taken away before the optimizer
comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from hubert_plugin.criteria.ctc import CtcCriterion
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel
from hubert_plugin.tasks.facade import DelegatingFacade


@dataclass(kw_only=True)
class FreezingSection(Validatable):
    """Which parts of the model are not trained."""

    encoder_updates: int | None = 0
    """For how many updates, from the first, the whole encoder is frozen and only the output layer learns (fairseq
    ``freeze_finetune_updates``). ``None``: for ever."""

    convolutions: bool | None = None
    """If true, the convolutions are frozen for ever, as in all of the paper's fine-tuning (section IV-D). ``None``: if
    they are pretrained, for at random they are good for nothing."""

    def freezes_convolutions(self, *, pretrained: bool) -> bool:
        """Return whether the convolutions are frozen."""
        return pretrained if self.convolutions is None else self.convolutions

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.encoder_updates is not None and self.encoder_updates < 0:
            result.add_error(f"`encoder_updates` must not be negative, but is {self.encoder_updates} instead.")

        return result


def freeze_for_ever(model: HubertCtcModel, section: FreezingSection, *, pretrained: bool) -> None:
    """Let parameters that are never trained ask for no gradient. Call before the model is wrapped.

    :param pretrained: Whether the encoder is.
    """
    if section.encoder_updates is None:
        model.hubert.requires_grad_(False)

    if section.freezes_convolutions(pretrained=pretrained):
        model.hubert.encoder_frontend.feature_extractor.requires_grad_(False)


def freeze_convolutions_without_gradient(model: HubertModel) -> None:
    """Let convolutions that get no gradient (``feature_grad_scale`` 0) ask for none. Call before the model is wrapped.

    Data-parallel reduction would wait for them. When the model is made is too early: fairseq2 then lets all parameters
    ask (``recipe/internal/train_model.py``).
    """
    if model.config.feature_grad_scale == 0.0:
        model.encoder_frontend.feature_extractor.requires_grad_(False)


def freeze_encoder_for_some_updates(
    section: FreezingSection, module: Module, model: HubertCtcModel, criterion: CtcCriterion
) -> None:
    """Freeze the encoder of ``model`` for the updates that ``section`` says. Call before the trainer is created.

    :param module: What is trained: ``model``, or its data-parallel wrapper.
    """
    criterion.frozen_updates = section.encoder_updates

    if section.encoder_updates == 0:
        return

    facade = get_data_parallel_facade(module)

    set_data_parallel_facade(module, _FreezingFacade(facade, list(model.hubert.parameters()), criterion))


@final
class _FreezingFacade(DelegatingFacade):
    """Takes the gradients of frozen parameters away when all ranks' are in place, before they are clipped."""

    def __init__(self, inner: DataParallelFacade, params: list[Tensor], criterion: CtcCriterion) -> None:
        super().__init__(inner)

        self._params = params
        self._criterion = criterion

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        if self._criterion.is_encoder_frozen:
            for param in self._params:
                param.grad = None

        return self._inner.clip_grad_norm(max_norm)
