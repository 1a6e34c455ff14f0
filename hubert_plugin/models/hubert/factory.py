"""Builds a HuBERT model from its configuration."""

from __future__ import annotations

from dataclasses import replace

from fairseq2.models.transformer import (
    StandardFeedForwardNetwork,
    StandardMultiheadAttention,
    StandardTransformerEncoderLayer,
    TransformerEncoderLayer,
    TransformerNormOrder,
)
from fairseq2.models.wav2vec2.position_encoder import Wav2Vec2PositionEncoder
from fairseq2.nn import Linear, StandardLayerNorm, init_bert_projection
from fairseq2.recipe.component import ComponentManager, ComponentNotKnownError
from fairseq2.runtime.dependency import DependencyNotFoundError, DependencyResolver
from torch.nn import GELU

from hubert_plugin.errors import ConfigError
from hubert_plugin.models.hubert.attention import HubertSDPA
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig, resolve_head_layers
from hubert_plugin.models.hubert.dropout import replace_dropout
from hubert_plugin.models.hubert.encoder import HubertEncoder
from hubert_plugin.models.hubert.frontend import ConvFeatureExtractor, HubertFrontend, MaskEmbedding
from hubert_plugin.models.hubert.heads import CosineHead, LinearHead, TargetHeadBuilder, TargetHeads
from hubert_plugin.models.hubert.model import HubertModel
from hubert_plugin.registry import TargetHead, known_names, unknown_name_error


def create_hubert_model(config: HubertConfig, resolver: DependencyResolver | None = None) -> HubertModel:
    """Create a HuBERT model with fresh parameters (FACTS 1.2).

    :param resolver: Where kinds of target heads are looked up; without it, only our own are known.
    :raises ConfigError: A head's kind is not known, or its number of units is not set.
    """
    return HubertFactory(config, resolver).create_model()


class HubertFactory:
    """Builds the parts of a HuBERT model."""

    def __init__(self, config: HubertConfig, resolver: DependencyResolver | None = None) -> None:
        self._config = config
        self._resolver = resolver

    def create_model(self) -> HubertModel:
        config = self._config

        return HubertModel(
            config,
            self.create_frontend(),
            MaskEmbedding(config.model_dim),
            self.create_encoder(),
            self.create_target_heads(),
        )

    def create_frontend(self) -> HubertFrontend:
        config = self._config

        feature_extractor = ConvFeatureExtractor(
            config.conv_layers,
            bias=config.conv_bias,
            norm=config.conv_norm,
            grad_scale=config.feature_grad_scale,
            include_padding=config.group_norm_includes_padding,
        )

        # The convolution's N(0, sqrt(4 / (kernel * dim))) start is set before weight normalisation (trap T16).
        pos_encoder = Wav2Vec2PositionEncoder(config.model_dim, config.pos_conv_kernel, config.pos_conv_groups)

        return HubertFrontend(
            config.model_dim,
            feature_extractor,
            pos_encoder,
            input_dropout_p=config.input_dropout_p,
            dropout_p=config.dropout_p,
            layer_norm=config.norm_order == "post",
            always_project=config.always_project_features,
        )

    def create_encoder(self) -> HubertEncoder:
        config = self._config

        layers = [self.create_encoder_layer() for _ in range(config.num_layers)]

        layer_norm = self._create_layer_norm() if config.norm_order == "pre" else None

        return HubertEncoder(layers, layer_norm, layer_drop_p=config.layer_drop_p)

    def create_encoder_layer(self) -> TransformerEncoderLayer:
        config = self._config

        sdpa = HubertSDPA(dropout_p=config.attn_dropout_p)

        self_attn = StandardMultiheadAttention(
            config.model_dim,
            config.num_heads,
            sdpa,
            qkv_proj_init_fn=init_bert_projection,
            output_proj_init_fn=init_bert_projection,
        )

        ffn = StandardFeedForwardNetwork(
            config.model_dim,
            config.ffn_dim,
            bias=True,
            inner_activation=GELU(),
            inner_dropout_p=config.ffn_inner_dropout_p,
            proj_init_fn=init_bert_projection,
        )

        norm_order = TransformerNormOrder.POST if config.norm_order == "post" else TransformerNormOrder.PRE

        layer = StandardTransformerEncoderLayer(
            self_attn,
            self._create_layer_norm(),
            ffn,
            self._create_layer_norm(),
            norm_order=norm_order,
            dropout_p=config.dropout_p,
        )

        replace_dropout(layer)

        return layer

    def create_target_heads(self) -> TargetHeads:
        config = self._config

        shared_proj = None

        if config.tie_final_proj and config.heads:
            shared_proj = Linear(config.model_dim, config.final_dim or config.model_dim, bias=True)

        heads = [
            self._create_head(replace(head_config, layer=layer), shared_proj)
            for head_config, layer in zip(config.heads, resolve_head_layers(config), strict=True)
        ]

        return TargetHeads(heads, shared_proj)

    def _create_head(self, head_config: HubertHeadConfig, shared_proj: Linear | None) -> TargetHead:
        if head_config.size < 1:
            raise ConfigError(
                f"The target head of the label set '{head_config.label_set}' has no size. Set `heads[…].size` to the "
                "number of units, or train with labels, from which it is taken."
            )

        builder = self._get_builder(head_config)

        return builder(self._config, head_config, shared_proj)

    def _get_builder(self, head_config: HubertHeadConfig) -> TargetHeadBuilder:
        kind = head_config.kind

        if self._resolver is None:
            own: dict[str, TargetHeadBuilder] = {"cosine": CosineHead, "linear": LinearHead}

            try:
                return own[kind]
            except KeyError:
                raise unknown_name_error("kind of target head", kind, sorted(own)) from None

        try:
            manager = self._resolver.resolve(ComponentManager)
        except DependencyNotFoundError:
            from fairseq2.recipe.component import _StandardComponentManager
            from fairseq2.utils.structured import ValueConverter

            # Outside of recipes (``load_hubert``) fairseq2 registers no component manager.
            manager = _StandardComponentManager(self._resolver, self._resolver.resolve(ValueConverter))

        try:
            options = manager.structure_component_config(TargetHead, kind, head_config.options)

            return manager.create_component(TargetHead, kind, options)  # type: ignore[type-abstract,return-value]
        except ComponentNotKnownError:
            known = known_names(self._resolver, TargetHead)

            raise unknown_name_error("kind of target head", kind, known) from None

    def _create_layer_norm(self) -> StandardLayerNorm:
        return StandardLayerNorm(self._config.model_dim, bias=True)
