"""Export to Hugging Face Transformers: a folder for ``HubertModel.from_pretrained`` or ``HubertForCTC``.

The conversion is a :class:`~fairseq2.models.hg.HuggingFaceConverter`, which fairseq2 also uses inside training runs
(``regime.export_hugging_face``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, final

import torch
from fairseq2.models.hg import HuggingFaceConfig, HuggingFaceConverter
from fairseq2.models.hg.converter import save_hugging_face_model
from torch import Tensor
from typing_extensions import override

from hubert_plugin.models.export.parity import AnyModel, Outputs, Probe, has_logits, model_input
from hubert_plugin.models.export.targets import new_folder
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.interop.huggingface import (
    OWN_SECTION,
    export_huggingface_config,
    export_huggingface_preprocessor,
    export_huggingface_state_dict,
)
from hubert_plugin.models.interop.keys import AnyConfig


@final
class HubertHuggingFaceConverter(HuggingFaceConverter):
    """Converts HuBERT and its recogniser; registered for both families."""

    @override
    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        """:raises TypeError: ``config`` is not that of a HuBERT or of a recogniser."""
        data = export_huggingface_config(_cast(config))

        arch = data.pop("architectures")

        # fairseq2's writer sets what Transformers' class has a field for, and refuses anything else.
        del data["model_type"], data[OWN_SECTION]

        return HuggingFaceConfig(data, "HubertConfig", arch)

    @override
    def to_hg_state_dict(self, state_dict: dict[str, object], config: object) -> dict[str, object]:
        """:raises TypeError: ``config`` is not that of a HuBERT or of a recogniser."""
        tensors = export_huggingface_state_dict(cast("dict[str, Tensor]", state_dict), _cast(config))

        return {key: value.contiguous() for key, value in tensors.items()}


def save_huggingface(state_dict: Mapping[str, Tensor], config: AnyConfig, folder: Path, *, overwrite: bool) -> None:
    """Write a Hugging Face folder: configuration, preprocessor, weights, and a tokenizer where symbols are known."""
    converter = HubertHuggingFaceConverter()

    hg_config = converter.to_hg_config(config)

    hg_state_dict = converter.to_hg_state_dict(dict(state_dict), config)

    with new_folder(folder, overwrite=overwrite) as tmp:
        save_hugging_face_model(tmp, hg_state_dict, hg_config)

        content = json.loads((tmp / "config.json").read_text(encoding="utf-8"))

        content[OWN_SECTION] = export_huggingface_config(config)[OWN_SECTION]

        write_json(tmp / "config.json", content)

        write_json(tmp / "preprocessor_config.json", export_huggingface_preprocessor(config))

        if isinstance(config, HubertCtcConfig) and config.symbols:
            _save_tokenizer(config, tmp)


def _save_tokenizer(config: HubertCtcConfig, folder: Path) -> None:
    """Write what ``Wav2Vec2CTCTokenizer`` reads. Its ``pad_token`` is the blank; symbols keep their names."""
    symbols = config.symbols

    blank = symbols[config.blank]

    def special(*names: str) -> str | None:
        return next((name for name in names if name in symbols and name != blank), None)

    tokenizer: dict[str, Any] = {
        "tokenizer_class": "Wav2Vec2CTCTokenizer",
        "pad_token": blank,
        "unk_token": special("<unk>", "[UNK]") or blank,
        # fairseq's `<pad>` is free, since its `<s>` is the blank.
        "bos_token": special("<s>", "[BOS]", "<pad>"),
        "eos_token": special("</s>", "[EOS]"),
        "word_delimiter_token": "|" if "|" in symbols else " ",
        "do_lower_case": False,
    }

    write_json(folder / "vocab.json", {symbol: idx for idx, symbol in enumerate(symbols)})

    write_json(folder / "tokenizer_config.json", tokenizer)


def huggingface_outputs(folder: Path, model: AnyModel, probe: Probe) -> tuple[Outputs, str]:
    """Return what Transformers computes with an exported folder, and what to call it."""
    from transformers import HubertForCTC
    from transformers import HubertModel as PeerModel

    kls = HubertForCTC if has_logits(model) else PeerModel

    peer = kls.from_pretrained(folder, dtype=torch.float32).eval()

    with torch.inference_mode():
        result = peer(model_input(model, probe), output_hidden_states=True)

    outputs = {}

    states = result.hidden_states

    # The last state is normed in pre-norm models (FACTS 5.3), so it is the output and no layer.
    for nr, state in enumerate(states[1:-1], start=1):
        outputs[f"layer {nr}"] = state[0]

    outputs["output"] = states[-1][0]

    if has_logits(model):
        outputs["logits"] = result.logits[0]
    else:
        outputs["output"] = result.last_hidden_state[0]

    return outputs, f"loaded back with transformers {version('transformers')}"


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _cast(config: object) -> AnyConfig:
    if not isinstance(config, (HubertConfig, HubertCtcConfig)):
        raise TypeError(
            f"`config` must be of type `{HubertConfig}` or `{HubertCtcConfig}`, but is of type `{type(config)}`."
        )

    return config
