"""Random small models of Transformers and torchaudio, imported and exported: equal outputs, equal tensors, equal
configurations. For formats of projects that are not installed here, round trips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import CONV_LAYERS, one_thread, tiny_config  # noqa: F401 - a fixture
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Module

import hubert_plugin  # noqa: F401 - preloads libsndfile
from hubert_plugin import frames
from hubert_plugin.models.hubert.config import HubertConfig, HubertHeadConfig
from hubert_plugin.models.hubert.factory import create_hubert_model
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.interop import fairseq, huggingface, minimal_hubert, s3prl
from hubert_plugin.models.interop import torchaudio as ta
from hubert_plugin.models.interop.keys import AnyConfig
from hubert_plugin.models.interop.shapes import compare_architectures

pytestmark = pytest.mark.usefixtures("one_thread")

# Without shrinking: models are slow to build, and the first failure says enough.
SETTINGS = settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))


@st.composite
def configs(draw: st.DrawFn, max_heads: int = 0) -> HubertConfig:
    channels = draw(st.sampled_from([8, 16]))

    sizes = draw(st.lists(st.integers(2, 9), max_size=max_heads))

    return tiny_config(
        model_dim=draw(st.sampled_from([8, 16, 24])),  # also the number of channels: no projection in fairseq (T18)
        num_heads=draw(st.sampled_from([1, 2, 4])),
        num_layers=draw(st.integers(1, 3)),
        ffn_dim=draw(st.sampled_from([24, 40])),
        conv_layers=[(channels, k, s) for _, k, s in CONV_LAYERS],
        conv_norm=draw(st.sampled_from(["group", "layer"])),
        norm_order=draw(st.sampled_from(["post", "pre"])),
        conv_bias=draw(st.booleans()),
        pos_conv_kernel=draw(st.sampled_from([5, 8, 16])),
        pos_conv_groups=draw(st.sampled_from([1, 2, 4])),
        normalize_audio=draw(st.booleans()),
        group_norm_includes_padding=True,
        always_project_features=draw(st.booleans()),
        heads=[HubertHeadConfig(label_set=f"set{i}", size=size) for i, size in enumerate(sizes)],
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    lengths = draw(st.lists(st.integers(400, 6_000), min_size=1, max_size=3))

    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    source = torch.randn(len(lengths), max(lengths), generator=generator)

    for row, length in zip(source, lengths, strict=True):
        row[length:] = 0.0

    return source, lengths


def disturb(model: Module, seed: int) -> dict[str, Tensor]:
    """Add noise to every parameter, so that none is 0 or 1, and return the state."""
    generator = torch.Generator().manual_seed(seed)

    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.05 * torch.randn(param.shape, generator=generator))

    return {k: v.clone() for k, v in model.state_dict().items()}


def load(config: AnyConfig, state_dict: dict[str, Tensor]) -> Any:
    model: Module = (
        create_hubert_ctc_model(config) if isinstance(config, HubertCtcConfig) else create_hubert_model(config)
    )

    model.load_state_dict(state_dict)  # strict: nothing missing, nothing left over

    return model.eval()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()

    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def check_valid(ours: Tensor, theirs: Tensor, lengths: list[int]) -> None:
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        num_frames = frames.num_frames(lengths[row])

        scale = max(1.0, float(b[:num_frames].abs().max()))

        torch.testing.assert_close(a[:num_frames], b[:num_frames], atol=1e-5 * scale, rtol=0.0)


def transformers_config(config: AnyConfig) -> Any:
    from transformers import HubertConfig as TheirConfig

    return TheirConfig(**huggingface.export_huggingface_config(config), attn_implementation="eager")


@SETTINGS
@given(configs(), batches(), st.integers(0, 99))
def test_any_transformers_model_gives_its_hidden_states(
    config: HubertConfig, batch: tuple[Tensor, list[int]], seed: int
) -> None:
    from transformers import HubertModel as TheirModel

    config.always_project_features = True  # Transformers does

    their_config = transformers_config(config)

    theirs = TheirModel(their_config).eval()

    state = disturb(theirs, seed)

    imported = huggingface.import_huggingface_config(their_config.to_dict())

    # Every field survives; a projection is only said to be forced where it would else be missing.
    forced = config.conv_layers[-1][0] == config.model_dim

    assert imported == replace(config, always_project_features=True, **training_fields(imported)), forced

    ours = load(imported, huggingface.import_huggingface_state_dict(state, imported))

    source, lengths = batch

    mask = torch.arange(source.size(1)) < torch.tensor(lengths).unsqueeze(1)

    with torch.no_grad():
        expected = theirs(source, attention_mask=mask.long(), output_hidden_states=True)

        features = ours.encode(source, lengths, taps=range(config.num_layers + 1))

    # The last hidden state of their pre-norm model is normed (FACTS 5.3).
    for layer in range(config.num_layers + (config.norm_order == "post")):
        check_valid(features.layers[layer], expected.hidden_states[layer], lengths)

    check_valid(features.output, expected.last_hidden_state, lengths)

    equal(huggingface.export_huggingface_state_dict(ours.state_dict(), imported), state)


def training_fields(imported: HubertConfig) -> dict[str, Any]:
    """What Transformers has no place for: it is about heads and training."""
    names = ("final_dim", "logit_temp", "tie_final_proj", "codeword_init", "heads")

    return {name: getattr(imported, name) for name in names}


@SETTINGS
@given(configs(), batches(), st.integers(0, 99), st.integers(2, 9))
def test_any_transformers_recogniser_gives_its_logits(
    config: HubertConfig, batch: tuple[Tensor, list[int]], seed: int, vocab_size: int
) -> None:
    from transformers import HubertForCTC

    config.always_project_features = True

    ctc = HubertCtcConfig(encoder=config, vocab_size=vocab_size, blank=vocab_size - 1)

    their_config = transformers_config(ctc)

    theirs = HubertForCTC(their_config).eval()

    state = disturb(theirs, seed)

    imported = huggingface.import_huggingface_config(their_config.to_dict())

    assert isinstance(imported, HubertCtcConfig)
    assert (imported.vocab_size, imported.blank) == (vocab_size, vocab_size - 1)

    ours = load(imported, huggingface.import_huggingface_state_dict(state, imported))

    source, lengths = batch

    mask = torch.arange(source.size(1)) < torch.tensor(lengths).unsqueeze(1)

    with torch.no_grad():
        expected = theirs(source, attention_mask=mask.long()).logits

        check_valid(ours(source, lengths)[0], expected, lengths)

    equal(huggingface.export_huggingface_state_dict(ours.state_dict(), imported), state)


@SETTINGS
@given(configs(), batches(), st.integers(0, 99), st.one_of(st.none(), st.integers(2, 9)))
def test_any_torchaudio_encoder_or_recogniser_gives_its_outputs(
    config: HubertConfig, batch: tuple[Tensor, list[int]], seed: int, vocab_size: int | None
) -> None:
    import torchaudio

    config.always_project_features = True

    whole = config if vocab_size is None else HubertCtcConfig(encoder=config, vocab_size=vocab_size)

    kwargs = ta.export_torchaudio_kwargs(whole)

    theirs = torchaudio.models.wav2vec2_model(**kwargs).eval()

    state = disturb(theirs, seed)

    imported = ta.import_torchaudio_config(state, kwargs)

    encoder = imported.encoder if isinstance(imported, HubertCtcConfig) else imported

    assert isinstance(imported, type(whole)) and not compare_architectures(encoder, config)

    encoder.group_norm_includes_padding = True

    ours = load(imported, ta.import_torchaudio_state_dict(state, imported))

    source, lengths = batch

    with torch.no_grad():
        layers, _ = theirs.extract_features(source, torch.tensor(lengths))

        output, _ = theirs(source, torch.tensor(lengths))

        hubert = ours if vocab_size is None else ours.hubert

        features = hubert.encode(source, lengths, taps=range(1, config.num_layers + 1))

        for layer, expected in enumerate(layers, 1):
            check_valid(features.layers[layer], expected, lengths)

        check_valid(features.output if vocab_size is None else ours(source, lengths)[0], output, lengths)

    equal(ta.export_torchaudio_state_dict(ours.state_dict(), imported), state)


@SETTINGS
@given(configs(), batches(), st.integers(0, 99), st.integers(2, 9))
def test_any_torchaudio_pretraining_model_gives_its_logits(
    config: HubertConfig, batch: tuple[Tensor, list[int]], seed: int, num_units: int
) -> None:
    import torchaudio

    config = replace(config, always_project_features=True, heads=[HubertHeadConfig(size=num_units)])

    kwargs = ta.export_torchaudio_kwargs(config)

    theirs = torchaudio.models.hubert_pretrain_model(**kwargs).eval()

    state = disturb(theirs, seed)

    imported = ta.import_torchaudio_config(state, kwargs)

    assert isinstance(imported, HubertConfig)
    assert [h.size for h in imported.heads] == [num_units]

    ours = load(imported, ta.import_torchaudio_state_dict(state, imported))

    source, _ = batch

    with torch.no_grad():
        # Their logits of given frames: the generator by itself, on the encoder's output.
        encoded, _ = theirs.wav2vec2(source)

        frames_ = encoded.flatten(0, 1)

        labels = torch.arange(len(frames_)) % num_units

        everywhere = torch.ones(1, len(frames_), dtype=torch.bool)

        logits, _ = theirs.logit_generator(frames_.unsqueeze(0), labels.unsqueeze(0), everywhere, ~everywhere)

        scores = logits[:, 1:].clone()

        scores[torch.arange(len(scores)), labels] = logits[:, 0]

        mask = torch.zeros(encoded.shape[:2], dtype=torch.bool)

        output = ours(
            source,
            None,
            temporal_mask=mask,
            masked_indices=torch.arange(len(frames_)),
            unmasked_indices=torch.empty(0, dtype=torch.long),
        )

    torch.testing.assert_close(output.masked_logits[0], scores, atol=1e-4, rtol=0.0)  # of +-10

    equal(ta.export_torchaudio_state_dict(ours.state_dict(), imported), state)


Converter = Callable[..., dict[str, Tensor]]


@SETTINGS
@given(configs(max_heads=3), st.integers(0, 99), st.booleans())
def test_round_trips_through_fairseq_and_s3prl_restore_every_tensor(
    config: HubertConfig, seed: int, tied: bool
) -> None:
    """The special rows of each label set travel by themselves: an import drops them, an export puts them first."""
    config = replace(config, always_project_features=False, tie_final_proj=tied)

    state = disturb(create_hubert_model(config), seed)

    rows = torch.randn(4 * len(config.heads), config.final_dim) if config.heads else None

    theirs = fairseq.export_fairseq_state_dict(state, config, rows)

    equal(fairseq.import_fairseq_state_dict(theirs, config), state)

    if rows is not None:
        assert torch.equal(fairseq.get_special_rows(theirs, config), rows)

        # Unit u of each set is row u + 4 of its block (trap T1).
        block = theirs["label_embs_concat"][: config.heads[0].size + 4]

        assert torch.equal(block[:4], rows[:4])
        assert torch.equal(block[4:], state["target_heads.heads.0.codewords"])

    content = s3prl.export_s3prl_checkpoint(state, config, rows)

    assert s3prl.is_s3prl_checkpoint(content)

    imported = s3prl.import_s3prl_config(content)

    assert [(h.label_set, h.size) for h in imported.heads] == [(h.label_set, h.size) for h in config.heads]
    assert not compare_architectures(imported, config)

    equal(s3prl.import_s3prl_state_dict(content["model_weight"], imported), state)


@SETTINGS
@given(configs(max_heads=1), st.integers(0, 99))
def test_round_trip_through_minimal_hubert_restores_every_tensor(config: HubertConfig, seed: int) -> None:
    state = disturb(create_hubert_model(config), seed)

    theirs = minimal_hubert.export_minimal_hubert_state_dict(state, config)

    assert minimal_hubert.is_minimal_hubert_state_dict(theirs)
    assert not any(".q." in k for k in theirs)

    equal(minimal_hubert.import_minimal_hubert_state_dict(theirs, config), state)


@SETTINGS
@given(configs(), st.integers(0, 99))
def test_projection_that_fairseq_leaves_out_becomes_the_identity_and_back(config: HubertConfig, seed: int) -> None:
    """Trap T18: the other libraries always project."""
    config = replace(config, conv_layers=[(16, k, s) for _, k, s in CONV_LAYERS], model_dim=16)

    config.always_project_features = False

    state = disturb(create_hubert_model(config), seed)

    for export, import_ in (
        (huggingface.export_huggingface_state_dict, huggingface.import_huggingface_state_dict),
        (ta.export_torchaudio_state_dict, ta.import_torchaudio_state_dict),
        (minimal_hubert.export_minimal_hubert_state_dict, minimal_hubert.import_minimal_hubert_state_dict),
    ):
        theirs = export(state, config)

        (weight,) = (v for k, v in theirs.items() if k.endswith("projection.weight"))

        assert torch.equal(weight, torch.eye(16))

        back = import_(theirs, config)

        mask = back.pop("masker.temporal_mask_embed")  # torchaudio's encoder has none: a fresh one is made

        assert mask.shape == (16,)

        equal(back, {k: v for k, v in state.items() if k != "masker.temporal_mask_embed"})
