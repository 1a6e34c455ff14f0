"""Ours and the peers that pip installs, with equal weights, masks and loss.

Weights and gradients pass through fairseq's names (FACTS 5.1): ours by the package's own export table, the peers' by
the table below. The peers' code is called as it is; what it lacks for HuBERT pretraining is put around it: the mask of
the batch (torchaudio draws its own), and for transformers gradient scaling, feature penalty and target head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from fairseq2.nn.utils.grad import scale_grad
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import cross_entropy

from hubert_plugin.criteria.masked_cross_entropy import MaskedCrossEntropy, MaskedCrossEntropyConfig
from hubert_plugin.data.batch import HubertBatch
from hubert_plugin.models.hubert.compile import compile_hubert
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert.heads import CosineHead
from hubert_plugin.models.interop.fairseq import NUM_SPECIAL_SYMBOLS, export_fairseq_state_dict

PENALTY_WEIGHT = 10.0
"""fairseq ``loss_weights=[10]`` (FACTS 2)."""

_TABLE = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"^encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"^encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"^encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"^encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
)
"""fairseq's names and those of ``transformers.HubertModel``; what is missing has the same name."""

_HEAD_KEYS = ("final_proj.weight", "final_proj.bias", "label_embs_concat")

Weights = dict[str, Tensor]
"""Tensors by fairseq's names; the special rows of ``label_embs_concat`` are left out."""


def to_transformers_key(key: str) -> str:
    """Return the name in ``transformers.HubertModel``. The head's names stay."""
    for pattern, replacement in _TABLE:
        new_key, count = re.subn(pattern, replacement, key)

        if count:
            return new_key

    return key


def to_torchaudio_key(key: str) -> str:
    """Return the name in ``torchaudio.models.HuBERTPretrainModel``."""
    if key == "mask_emb":
        return "mask_generator.mask_embedding"

    if key == "label_embs_concat":
        return "logit_generator.label_embeddings"

    if key in _HEAD_KEYS:
        return f"logit_generator.{key}"

    key = to_transformers_key(key)

    if key.startswith("feature_projection."):
        return f"wav2vec2.encoder.{key}"

    if key.startswith("encoder."):
        return f"wav2vec2.encoder.transformer.{key.removeprefix('encoder.')}"

    return f"wav2vec2.{key}"


class Contender(Protocol):
    """A model that turns a batch into HuBERT's pretraining loss."""

    name: str

    @property
    def module(self) -> Module:
        """Holds all parameters."""

    def loss(self, batch: HubertBatch) -> Tensor:
        """Return Σ CE over masked frames + 10 · mean(conv_out²) · #masked, in nats (FACTS 2). *Shape:* ()."""

    def gradients(self) -> Weights:
        """Return the gradients."""

    def compile(self) -> None: ...


def _masked_loss(masked_logits: Tensor, targets: Tensor, penalty: Tensor) -> Tensor:
    loss = cross_entropy(masked_logits.float(), targets, reduction="sum")

    return loss + PENALTY_WEIGHT * penalty * len(targets)


def _pick_gradients(module: Module, keys: Mapping[str, str]) -> Weights:
    params = dict(module.named_parameters())

    grads = {}

    for key, name in keys.items():
        grad = params[name].grad

        assert grad is not None, name

        grads[key] = grad

    return grads


class Ours:
    name = "ours"

    def __init__(self, config: HubertConfig) -> None:
        self._config = config

        self.module = create_hubert_model(config)

        self._criterion = MaskedCrossEntropy(self.module, self.module, MaskedCrossEntropyConfig())

    def loss(self, batch: HubertBatch) -> Tensor:
        return self._criterion.compute_loss(self._criterion.forward(batch), batch).total

    def weights(self) -> Weights:
        return self._export({name: param.detach() for name, param in self.module.state_dict().items()})

    def gradients(self) -> Weights:
        return self._export({name: p.grad for name, p in self.module.named_parameters() if p.grad is not None})

    def _export(self, tensors: Mapping[str, Tensor]) -> Weights:
        result = export_fairseq_state_dict(tensors, self._config)

        result["label_embs_concat"] = result["label_embs_concat"][NUM_SPECIAL_SYMBOLS:]

        return result

    def compile(self) -> None:
        compile_hubert(self.module)


class _GivenMask(Module):
    """Stands in for torchaudio's mask generator, which draws; does with the mask what that one does."""

    def __init__(self, dim: int) -> None:
        super().__init__()

        self.mask_embedding = Parameter(torch.empty(dim))

        self.mask: Tensor | None = None

    def forward(self, seqs: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.mask is not None

        seqs[self.mask] = self.mask_embedding.to(seqs.dtype)

        return seqs, self.mask


class TorchaudioPeer:
    name = "torchaudio"

    def __init__(self, config: HubertConfig, weights: Weights) -> None:
        from torchaudio.models import hubert_pretrain_model

        # With the defaults of `HubertConfig` this is `hubert_pretrain_base(num_classes=...)`. Logits of unmasked frames
        # are not computed, which is in its favour.
        self.module = hubert_pretrain_model(
            extractor_mode="group_norm" if config.conv_norm == "group" else "layer_norm",
            extractor_conv_layer_config=[tuple(d) for d in config.conv_layers],
            extractor_conv_bias=config.conv_bias,
            encoder_embed_dim=config.model_dim,
            encoder_projection_dropout=config.input_dropout_p,
            encoder_pos_conv_kernel=config.pos_conv_kernel,
            encoder_pos_conv_groups=config.pos_conv_groups,
            encoder_num_layers=config.num_layers,
            encoder_num_heads=config.num_heads,
            encoder_attention_dropout=config.attn_dropout_p,
            encoder_ff_interm_features=config.ffn_dim,
            encoder_ff_interm_dropout=config.ffn_inner_dropout_p,
            encoder_dropout=config.dropout_p,
            encoder_layer_norm_first=config.norm_order == "pre",
            encoder_layer_drop=-1.0,  # it skips where rand <= p: 0 would not be never
            mask_prob=0.8,
            mask_selection="static",
            mask_other=0.0,
            mask_length=10,
            no_mask_overlap=False,
            mask_min_space=1,
            mask_channel_prob=0.0,
            mask_channel_selection="static",
            mask_channel_other=0.0,
            mask_channel_length=10,
            no_mask_channel_overlap=False,
            mask_channel_min_space=1,
            skip_masked=False,
            skip_nomask=True,
            num_classes=config.heads[0].size,
            final_dim=config.final_dim,
            feature_grad_mult=config.feature_grad_scale if config.feature_grad_scale != 1.0 else None,
        )

        self._masker = self.module.mask_generator = _GivenMask(config.model_dim)

        self._keys = {key: to_torchaudio_key(key) for key in weights}

        self.module.load_state_dict({self._keys[key]: value for key, value in weights.items()})

        self._labels: tuple[HubertBatch, Tensor] | None = None

    def _dense_labels(self, batch: HubertBatch) -> Tensor:
        # It wants a label for every frame. Made once: this is not its work.
        if self._labels is None or self._labels[0] is not batch:
            labels = torch.zeros_like(batch.temporal_mask, dtype=torch.int64)

            labels.view(-1)[batch.masked_indices] = batch.masked_targets[0]

            self._labels = (batch, labels)

        return self._labels[1]

    def loss(self, batch: HubertBatch) -> Tensor:
        labels = self._dense_labels(batch)

        self._masker.mask = batch.temporal_mask

        logits, _, penalty = self.module(batch.waveforms, labels)

        # Column 0 is the positive.
        return _masked_loss(logits, torch.zeros_like(batch.masked_targets[0]), penalty)

    def gradients(self) -> Weights:
        return _pick_gradients(self.module, self._keys)

    def compile(self) -> None:
        self.module.compile()


class TransformersPeer:
    name = "transformers"

    def __init__(self, config: HubertConfig, weights: Weights) -> None:
        from transformers import HubertConfig as PeerConfig
        from transformers import HubertModel as PeerModel

        dims, kernels, strides = zip(*config.conv_layers, strict=True)

        peer_config = PeerConfig(
            hidden_size=config.model_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.ffn_dim,
            hidden_dropout=config.dropout_p,
            activation_dropout=config.ffn_inner_dropout_p,
            attention_dropout=config.attn_dropout_p,
            feat_proj_dropout=config.input_dropout_p,
            layerdrop=0.0,
            feat_extract_norm=config.conv_norm,
            conv_dim=list(dims),
            conv_kernel=list(kernels),
            conv_stride=list(strides),
            conv_bias=config.conv_bias,
            num_feat_extract_layers=len(dims),
            num_conv_pos_embeddings=config.pos_conv_kernel,
            num_conv_pos_embedding_groups=config.pos_conv_groups,
            do_stable_layer_norm=config.norm_order == "pre",
            mask_time_prob=0.8,  # not used, but without it there is no mask embedding
            attn_implementation="sdpa",
        )

        self._model = PeerModel(peer_config)

        self._head = CosineHead(config, config.heads[0], None)

        self.module = torch.nn.ModuleDict({"model": self._model, "head": self._head})

        self._scale = config.feature_grad_scale

        self._penalty: Tensor | None = None

        self._model.feature_extractor.register_forward_hook(self._after_convolutions)

        own = {"final_proj.weight": "proj.weight", "final_proj.bias": "proj.bias", "label_embs_concat": "codewords"}

        self._keys = {k: f"head.{own[k]}" if k in own else f"model.{to_transformers_key(k)}" for k in weights}

        self.module.load_state_dict({self._keys[key]: value for key, value in weights.items()})

        self.module.train()

    def _after_convolutions(self, module: Module, inputs: Any, output: Tensor) -> Tensor:
        features = scale_grad(output, self._scale) if self._scale != 1.0 else output

        self._penalty = features.float().square().mean()

        return features

    def loss(self, batch: HubertBatch) -> Tensor:
        output = self._model(batch.waveforms, mask_time_indices=batch.temporal_mask).last_hidden_state

        logits = self._head(output.flatten(0, 1).index_select(0, batch.masked_indices))

        assert self._penalty is not None

        return _masked_loss(logits, batch.masked_targets[0], self._penalty)

    def gradients(self) -> Weights:
        return _pick_gradients(self.module, self._keys)

    def compile(self) -> None:
        self._model.compile()


PEERS: dict[str, type[TorchaudioPeer] | type[TransformersPeer]] = {
    TorchaudioPeer.name: TorchaudioPeer,
    TransformersPeer.name: TransformersPeer,
}


def create_contenders(config: HubertConfig, device: torch.device, names: Iterable[str]) -> dict[str, Contender]:
    """Create the named contenders with equal weights; a peer that is not installed is left out with a line of text."""
    ours = Ours(config)

    weights = ours.weights()

    contenders: dict[str, Contender] = {}

    for name in names:
        if name == Ours.name:
            contenders[name] = ours
        else:
            try:
                contenders[name] = PEERS[name](config, weights)
            except ImportError as ex:
                print(f"{name} is left out: {ex}")

                continue

        contenders[name].module.to(device).train()

    return contenders
