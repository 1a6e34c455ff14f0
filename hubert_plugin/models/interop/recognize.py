"""Recognises a checkpoint by its contents: format, kind, configuration, and parameters under our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from hubert_plugin.errors import CheckpointError
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.checkpoint import Checkpoint as Checkpoint
from hubert_plugin.models.interop.checkpoint import Recognised as Recognised
from hubert_plugin.models.interop.fairseq import fairseq_key_table, is_fairseq_state_dict
from hubert_plugin.models.interop.huggingface import (
    OWN_SECTION,
    huggingface_key_table,
    import_huggingface_config,
    import_huggingface_state_dict,
    is_huggingface_state_dict,
)
from hubert_plugin.models.interop.keys import WRAPPER_PREFIXES, AnyConfig, KeyTable, encoder_config, take_prefix
from hubert_plugin.models.interop.minimal_hubert import (
    import_minimal_hubert_config,
    import_minimal_hubert_state_dict,
    is_minimal_hubert_state_dict,
    minimal_hubert_key_table,
)
from hubert_plugin.models.interop.own import import_own_config, is_own_state_dict
from hubert_plugin.models.interop.peers import peer_conv_norm
from hubert_plugin.models.interop.recognize_fairseq import recognize_fairseq, recognize_s3prl
from hubert_plugin.models.interop.s3prl import is_s3prl_checkpoint
from hubert_plugin.models.interop.torchaudio import (
    import_torchaudio_config,
    import_torchaudio_state_dict,
    is_torchaudio_state_dict,
    torchaudio_key_table,
)

LOOKED_FOR: Final = (
    "fairseq (pretrained or CTC-fine-tuned), s3prl, torchaudio, Hugging Face Transformers, minimal_hubert, or this "
    "package's own"
)
"""The formats, for messages."""

_KEY_TABLES: Final[Mapping[str, Callable[[HubertConfig], KeyTable]]] = {
    "fairseq": fairseq_key_table,
    "fairseq (older layout)": fairseq_key_table,
    "s3prl": fairseq_key_table,
    "torchaudio": torchaudio_key_table,
    "Hugging Face": huggingface_key_table,
    "minimal_hubert": minimal_hubert_key_table,
}

_ROOT: Final = re.compile(
    r"(.*?)(?:hubert\.|wav2vec2\.|w2v_encoder\.w2v_model\.)?"
    r"(?:feature_extractor\.conv_layers|encoder_frontend\.feature_extractor\.layers)\.0\."
)
"""What is before the name of a model's first convolution, but for what formats themselves put there."""

_ENTRIES: Final = ("model", "state_dict", "model_state_dict", "model_weight", "net", "module")


def recognize(checkpoint: Checkpoint, hint: HubertConfig | None = None) -> Recognised:
    """Return what a checkpoint is.

    :param hint: What a format without a configuration does not say: attention heads, strides, normalisation.
    :raises CheckpointError: It is of no known format, or is damaged; says what was looked for and what was found.
    """
    try:
        recognised = _recognize(checkpoint, hint)

        if (make_table := _KEY_TABLES.get(recognised.format)) is not None:
            recognised.key_table = make_table(encoder_config(recognised.config))

        # A given configuration is compared with what was found, which says more.
        if hint is None:
            _check(recognised.config)
    except CheckpointError as ex:
        where = f"'{checkpoint.path}'"

        raise CheckpointError(str(ex) if where in str(ex) else f"{where} cannot be used. {ex}") from None
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError, OverflowError) as ex:
        raise CheckpointError(
            f"'{checkpoint.path}' cannot be used: its entries are not what their names say "
            f"({type(ex).__name__}: {str(ex).splitlines()[0] if str(ex) else ''}). It is damaged or of another program."
        ) from ex

    return recognised


def _check(config: AnyConfig) -> None:
    """:raises CheckpointError: A model like this cannot be built, has other frames than HuBERT's, or a blank or symbols
    that are not those of its outputs."""
    if errors := config.validate().errors:
        raise CheckpointError(f"It is of a model that cannot be used here. {' '.join(map(str, errors))}")


def _recognize(checkpoint: Checkpoint, hint: HubertConfig | None) -> Recognised:
    content = checkpoint.content

    if is_s3prl_checkpoint(content):
        return recognize_s3prl(checkpoint)

    for state_dict, notes in _state_dicts(content):
        if (recognised := _recognize_state_dict(checkpoint, state_dict, hint)) is not None:
            recognised.notes += notes

            return recognised

    names = sorted(map(str, content))

    raise CheckpointError(
        f"'{checkpoint.path}' is not a HuBERT checkpoint that is known here. Formats looked for: {LOOKED_FOR}. "
        f"Found were {len(names)} entries: {_first(names)}."
    )


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:10])}{' …' if len(names) > 10 else ''}"


def _recognize_state_dict(
    checkpoint: Checkpoint, state_dict: dict[str, Tensor], hint: HubertConfig | None
) -> Recognised | None:
    if is_fairseq_state_dict(state_dict):
        return recognize_fairseq(checkpoint, state_dict, hint)

    if is_torchaudio_state_dict(state_dict):
        return _recognize_torchaudio(checkpoint, state_dict, hint)

    if is_minimal_hubert_state_dict(state_dict):
        hubert = import_minimal_hubert_config(state_dict, hint=hint)

        return Recognised(
            checkpoint.path, "minimal_hubert", hubert, import_minimal_hubert_state_dict(state_dict, hubert)
        )

    if is_huggingface_state_dict(state_dict):
        return _recognize_huggingface(checkpoint, state_dict, hint)

    if is_own_state_dict(state_dict):
        return Recognised(checkpoint.path, "fairseq2", import_own_config(state_dict, hint=hint), state_dict)

    return None


def _state_dicts(content: Mapping[str, Any]) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Yield the mappings of tensors in a file, each also without the prefixes of wrappers, and what was left out."""
    candidates = [content, *(content[name] for name in _ENTRIES if isinstance(content.get(name), Mapping))]

    for candidate in candidates:
        state_dict = {k: v for k, v in candidate.items() if isinstance(k, str) and isinstance(v, Tensor)}

        yield state_dict, []

        for _ in range(3):
            prefix = next((p for p in WRAPPER_PREFIXES if take_prefix(state_dict, p)), None)

            if prefix is None:
                break

            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items()}

            yield state_dict, []

        yield from _inside_another_module(state_dict)


def _inside_another_module(state_dict: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Yield the parameters of the only HuBERT in a larger model, such as those of ``net.model.`` in one of Lightning.

    :raises CheckpointError: There are several, such as a student and its teacher.
    """
    prefixes = sorted({match[1] for key in state_dict if (match := _ROOT.match(key))} - {""})

    if len(prefixes) > 1:
        raise CheckpointError(
            f"It holds {len(prefixes)} models, whose parameters begin with {', '.join(map(repr, prefixes))}. Save the "
            "parameters of one of them, without that beginning, in a file of their own."
        )

    for prefix in prefixes:
        others = [key for key in state_dict if not key.startswith(prefix)]

        notes = [f"The parameters {_first(others)}, which are not of '{prefix}…', were left out."] if others else []

        yield take_prefix(state_dict, prefix), notes


def _recognize_torchaudio(
    checkpoint: Checkpoint, state_dict: Mapping[str, Tensor], hint: HubertConfig | None
) -> Recognised:
    plan = checkpoint.config or {}

    config = import_torchaudio_config(state_dict, plan.get("arguments"), hint=hint)

    normalize = plan.get("normalize_each_waveform")

    if normalize is not None:
        encoder_config(config).normalize_audio = bool(normalize)

    if isinstance(config, HubertCtcConfig):
        config.symbols, config.blank = list(map(str, plan.get("symbols") or ())), int(plan.get("blank", 0))

    return Recognised(
        checkpoint.path,
        "torchaudio",
        config,
        import_torchaudio_state_dict(state_dict, config),
        states_normalization=normalize is not None,
    )


def _recognize_huggingface(
    checkpoint: Checkpoint, state_dict: Mapping[str, Tensor], hint: HubertConfig | None
) -> Recognised:
    has_output = "lm_head.weight" in state_dict

    # Of classifiers and the like only the encoder is of use.
    extra = [k for k in state_dict if k.startswith(("projector.", "classifier.", "layer_weights", "adapter"))]

    state_dict = {k: v for k, v in state_dict.items() if k not in extra}

    states_normalization = False

    if checkpoint.config is not None:
        config = import_huggingface_config(
            checkpoint.config, checkpoint.preprocessor, symbols=checkpoint.symbols, with_output_layer=has_output
        )

        states_normalization = OWN_SECTION in checkpoint.config or (
            encoder_config(config).conv_norm == "layer" and checkpoint.preprocessor is not None
        )
    else:
        config = _infer_huggingface(state_dict, hint)

    return Recognised(
        checkpoint.path,
        "Hugging Face",
        config,
        import_huggingface_state_dict(state_dict, config),
        states_normalization=states_normalization,
        notes=[f"The parameters {', '.join(extra)} were left out."] if extra else [],
    )


def _infer_huggingface(state_dict: Mapping[str, Tensor], hint: HubertConfig | None) -> AnyConfig:
    bare = {k.removeprefix("hubert."): v for k, v in state_dict.items() if not k.startswith("lm_head.")}

    conv_norm = peer_conv_norm(bare)

    if hint is not None:
        norm_order = hint.norm_order
    else:
        norm_order = "pre" if conv_norm == "layer" else "post"

    skeleton = HubertConfig(conv_norm=conv_norm, norm_order=norm_order, always_project_features=True)

    config = import_own_config(import_huggingface_state_dict(bare, skeleton), hint=hint)

    assert isinstance(config, HubertConfig)

    output = state_dict.get("lm_head.weight")

    return config if output is None else HubertCtcConfig(encoder=config, vocab_size=output.size(0))
