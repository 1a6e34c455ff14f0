"""Checkpoints of other projects, loaded from their files, give those projects' numbers: every layer, final outputs,
pretraining logits and CTC logits, padded and unpadded, to 1e-5 of the largest value in float32.

The files and outputs were made by the real fairseq, torchaudio, Transformers, s3prl and minimal_hubert; each format's
own configuration is what is used, where it has one. Only the treatment of padding in group norm is set: the peers count
padded samples, which is not the default here (trap T4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import one_thread  # noqa: F401 - a fixture
from golden import FAIRSEQ, Golden, golden_scores
from torch import Tensor

from hubert_plugin import load_hubert, load_hubert_ctc
from hubert_plugin.models.hubert.config import HubertConfig
from hubert_plugin.models.hubert.model import HubertModel

pytestmark = pytest.mark.usefixtures("one_thread")

DATA = FAIRSEQ.parent


class Arrays:
    """Outputs of a peer."""

    def __init__(self, path: Path) -> None:
        self._arrays = np.load(path)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays.files

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.asarray(self._arrays[name]))

    def waveforms(self, batch: str) -> tuple[Tensor, list[int] | None]:
        """Return the input of a batch: padded ones are the unpadded with zeros from their lengths on."""
        source = self["unpadded.source"].clone()

        if batch == "unpadded":
            return source, None

        lengths: list[int] = self[f"{batch}.lengths"].tolist()

        for row, length in zip(source, lengths, strict=True):
            row[length:] = 0.0

        return source, lengths


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """The residual stream of pre-norm models and logits at temperature 0.1 reach 10: the error is measured by that."""
    scale = max(1.0, float(theirs.abs().max()))

    torch.testing.assert_close(ours, theirs, atol=tolerance * scale, rtol=0.0)


def as_peers_pad(model: HubertModel) -> HubertModel:
    model.encoder_frontend.feature_extractor.include_padding = True

    return model


def valid_frames(lengths: list[int] | None, like: Tensor) -> Tensor:
    valid = torch.ones(like.shape[:2], dtype=torch.bool)

    for row, length in zip(valid, lengths or [], strict=False):
        row[(length - 400) // 320 + 1 :] = False

    return valid


def check_layers(model: HubertModel, arrays: Arrays, batch: str, layers: Mapping[int, str], final: str | None) -> None:
    """Compare layers at valid frames; the last one also as the early exit gives it, never normed (trap T2)."""
    source, lengths = arrays.waveforms(batch)

    with torch.no_grad():
        features = as_peers_pad(model).encode(source, lengths, taps=list(layers))

    valid = valid_frames(lengths, features.output)

    for layer, name in layers.items():
        close(features.layers[layer][valid], arrays[f"{batch}.{name}"][valid])

    if final is not None:
        close(features.output[valid], arrays[f"{batch}.{final}"][valid])


FAIRSEQ_FILES = {
    "fairseq/tiny_post.pt": "tiny_post",
    "fairseq/tiny_pre.pt": "tiny_pre",
    "fairseq/tiny_tied.pt": "tiny_tied",
    "fairseq/tiny_rate100.pt": "tiny_rate100",
    "fairseq/tiny_post.args.pt": "tiny_post",
    "fairseq/tiny_post.dictconfig.pt": "tiny_post",
    "s3prl/tiny_post.converted.pt": "tiny_post",
    "s3prl/tiny_pre.converted.pt": "tiny_pre",
    "torchaudio/from_fairseq_tiny_post.pth": "tiny_post",
    "transformers/from_fairseq_tiny_pre": "tiny_pre",
}
"""Files that hold the parameters of a golden fairseq model, in whatever form."""

WITHOUT_CONFIG = {"torchaudio/from_fairseq_tiny_post.pth": HubertConfig(num_heads=4)}
"""What a file of unusual size and without a configuration does not say."""


def load_golden(file: str) -> HubertModel:
    config = None

    if (hint := WITHOUT_CONFIG.get(file)) is not None:
        from hubert_plugin.models.interop.sources import recognize_path

        config = recognize_path(DATA / file, hint=hint).config

        assert isinstance(config, HubertConfig)

    return load_hubert(DATA / file, config=config)


@pytest.mark.parametrize("batch", ["unpadded", "padded_same_rule"])
@pytest.mark.parametrize("file", list(FAIRSEQ_FILES))
def test_every_layer_is_fairseqs(file: str, batch: str) -> None:
    model = load_golden(file)

    arrays = Arrays(FAIRSEQ / f"{FAIRSEQ_FILES[file]}.npz")

    check_layers(model, arrays, batch, {i + 1: f"layer_{i + 1}" for i in range(model.config.num_layers)}, "final")


def test_half_precision_file_of_the_old_format_is_read() -> None:
    """The parameters are those of ``tiny_post``, rounded to half precision."""
    model, whole = load_hubert(FAIRSEQ / "tiny_post.fp16_nonzip.pt"), load_hubert(FAIRSEQ / "tiny_post.pt")

    state = whole.state_dict()

    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].half().float()), name

    close(
        model.extract_features([np.ones(4000, np.float32)])[0],
        whole.extract_features([np.ones(4000, np.float32)])[0],
        tolerance=2e-2,
    )


@pytest.mark.parametrize("batch", ["unpadded", "padded_same_rule"])
@pytest.mark.parametrize("file", [f for f in FAIRSEQ_FILES if f.endswith(".pt")])
def test_pretraining_logits_are_fairseqs_without_the_special_rows(file: str, batch: str) -> None:
    """Unit u is row u + 4 of fairseq's (trap T1): the four special columns, which come first, are what is left out."""
    model = as_peers_pad(load_golden(file))

    golden = Golden(FAIRSEQ_FILES[file])

    assert [h.size + 4 for h in model.config.heads] == golden.num_classes

    data = golden.batch(batch)

    with torch.no_grad():
        output = model(
            data.waveforms,
            data.num_samples,
            temporal_mask=data.temporal_mask,
            masked_indices=data.masked_indices,
            unmasked_indices=data.unmasked_indices,
        )

    for kind, logits, targets in (
        ("m", output.masked_logits, data.masked_targets),
        ("u", output.unmasked_logits, data.unmasked_targets),
    ):
        for i in range(len(golden.num_classes)):
            scores = golden_scores(golden.tensor(f"{batch}.logit_{kind}_{i}"), targets[i])

            close(logits[i], scores[:, 4:])

            assert torch.equal(logits[i].argmax(-1), scores[:, 4:].argmax(-1))


def test_layers_are_those_of_s3prls_upstream() -> None:
    """Its hidden state k is layer k; 0 is the input of the first layer. Row 0 has no padding."""
    model = as_peers_pad(load_hubert(DATA / "s3prl/tiny_post.converted.pt"))

    source, lengths = Arrays(FAIRSEQ / "tiny_post.npz").waveforms("padded")

    assert lengths is not None and lengths[0] == source.size(1)

    with torch.no_grad():
        layers = model.encode(source[:1], taps=range(4)).layers

    expected = np.load(DATA / "s3prl/tiny_post.upstream.npz")

    for layer in range(4):
        close(layers[layer][0], torch.from_numpy(expected[f"hidden_state_{layer}"])[0])


@pytest.mark.parametrize("batch", ["unpadded", "padded"])
@pytest.mark.parametrize("case", ["ta_post", "ta_pre"])
def test_torchaudio_pretraining_file_gives_its_layers_and_logits(case: str, batch: str, tmp_path: Path) -> None:
    """The file has no configuration; the arguments of its model lie beside it, as our own export writes them."""
    kwargs = json.loads((DATA / "torchaudio/kwargs.json").read_text())[case]

    (tmp_path / "model.pth").write_bytes((DATA / f"torchaudio/{case}.pth").read_bytes())
    (tmp_path / "model.json").write_text(json.dumps({"arguments": kwargs}))

    model = load_hubert(tmp_path / "model.pth", require_heads=True)

    arrays = Arrays(DATA / f"torchaudio/{case}.npz")

    check_layers(model, arrays, batch, {i: f"layer_{i}" for i in (1, 2, 3)}, "final")

    source, lengths = arrays.waveforms(batch)

    mask = arrays[f"{batch}.mask"]

    valid = valid_frames(lengths, mask.unsqueeze(-1))

    indices = [(m & valid).flatten().nonzero().squeeze(1) for m in (mask, ~mask)]

    with torch.no_grad():
        output = as_peers_pad(model)(
            source, lengths, temporal_mask=mask & valid, masked_indices=indices[0], unmasked_indices=indices[1]
        )

    labels = arrays[f"{batch}.labels"].flatten().long()

    for name, logits, index in zip("mu", (output.masked_logits, output.unmasked_logits), indices, strict=True):
        close(logits[0], golden_scores(arrays[f"{batch}.logit_{name}"], labels[index]))


@pytest.mark.parametrize("batch", ["unpadded", "padded"])
@pytest.mark.parametrize("case", ["hf_group", "hf_layer"])
def test_hugging_face_folder_gives_its_hidden_states(case: str, batch: str) -> None:
    """The last hidden state of pre-norm models is after the final norm in this version of Transformers (FACTS 5.3)."""
    model = load_hubert(DATA / "transformers" / case)

    layers = {i: f"hidden_state_{i}" for i in range(3 if case == "hf_layer" else 4)}

    arrays = Arrays(DATA / "transformers" / case / "expected.npz")

    check_layers(model, arrays, batch, layers, "last_hidden_state")

    source, lengths = arrays.waveforms(batch)

    with torch.no_grad():
        masked = model.encode(source, lengths, temporal_mask=arrays[f"{batch}.mask_time_indices"]).output

    valid = valid_frames(lengths, masked)

    close(masked[valid], arrays[f"{batch}.masked_last_hidden_state"][valid])


@pytest.mark.parametrize("batch", ["unpadded", "padded"])
def test_minimal_hubert_file_gives_its_layers_and_losses(batch: str) -> None:
    from hubert_plugin.models.interop.sources import recognize_path

    file = DATA / "minimal_hubert/mh_base12.pt"

    config = recognize_path(file, hint=HubertConfig(num_heads=2)).config

    assert isinstance(config, HubertConfig) and config.always_project_features  # 16 channels to 16 dimensions

    model = load_hubert(file, config=config)

    arrays = Arrays(DATA / "minimal_hubert/mh_base12.npz")

    check_layers(model, arrays, batch, {i: f"layer_{i}" for i in (1, 6, 12)}, "final")

    source, lengths = arrays.waveforms(batch)

    mask = arrays[f"{batch}.mask"] & valid_frames(lengths, arrays[f"{batch}.final"])

    indices = mask.flatten().nonzero().squeeze(1)

    with torch.no_grad():
        output = model(
            source,
            lengths,
            temporal_mask=mask,
            masked_indices=indices,
            unmasked_indices=torch.empty(0, dtype=torch.long),
        )

    labels = arrays[f"{batch}.labels"].flatten().long()[indices]

    losses = torch.nn.functional.cross_entropy(output.masked_logits[0], labels, reduction="none")

    close(losses, arrays[f"{batch}.logits_loss_per_masked_frame"])


def test_ctc_logits_are_fairseqs() -> None:
    model = load_hubert_ctc(FAIRSEQ / "tiny_ctc.pt")

    assert model.config.symbols == json.loads((FAIRSEQ / "tiny_ctc.json").read_text())["symbols"]
    assert (model.config.blank, model.config.symbols[0]) == (0, "<s>")

    as_peers_pad(model.hubert)

    arrays = Arrays(FAIRSEQ / "tiny_ctc.npz")

    source, lengths = arrays["padded.source"], arrays["padded.lengths"].tolist()

    with torch.no_grad():
        padded, layout = model(source, lengths)

        single, _ = model(source[:1])

    valid = valid_frames(lengths, padded) & ~arrays["padded.frame_padding_mask"]

    # fairseq keeps a frame more of the padded row than the convolutions give, and attends to it: row 0 has no padding.
    assert lengths[0] == source.size(1)

    close(padded[0], arrays["padded.logits"][0])
    close(single, arrays["single.logits"])
    close(single.log_softmax(-1), arrays["single.log_probs"])

    assert torch.equal(single.argmax(-1), arrays["single.argmax"])
    assert list(layout.seq_lens) == [int(v.sum()) for v in valid]


@pytest.mark.parametrize("batch", ["unpadded", "padded"])
def test_ctc_logits_are_those_of_transformers(batch: str) -> None:
    folder = DATA / "transformers/hf_group_ctc"

    model = load_hubert_ctc(folder)

    as_peers_pad(model.hubert)

    arrays = Arrays(folder / "expected.npz")

    source, lengths = arrays.waveforms(batch)

    with torch.no_grad():
        logits, _ = model(source, lengths)

    valid = valid_frames(lengths, logits)

    close(logits[valid], arrays[f"{batch}.logits"][valid])


def test_encoder_of_a_recogniser_is_loaded_where_an_encoder_is_enough() -> None:
    model, whole = load_hubert(FAIRSEQ / "tiny_ctc.pt"), load_hubert_ctc(FAIRSEQ / "tiny_ctc.pt")

    state = whole.hubert.state_dict()

    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.config.heads
