"""The parts between a waveform and its text: scores of the recogniser, its symbols, what is transcribed."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from builders import make_corpus, one_thread, speech_like, tiny_config  # noqa: F401
from golden import FAIRSEQ

from hubert_plugin import frames
from hubert_plugin.audio import AudioPolicy
from hubert_plugin.decoding.decoder import GreedyDecoder
from hubert_plugin.decoding.emissions import emit
from hubert_plugin.decoding.inputs import open_input
from hubert_plugin.decoding.recogniser import fingerprint_of, vocabulary_of
from hubert_plugin.decoding.transcriber import ComputeConfig, Times, Transcriber, blocks_of
from hubert_plugin.errors import AudioError, ConfigError, DecodingError, ManifestError, TextError
from hubert_plugin.models.hubert_ctc.config import HubertCtcConfig
from hubert_plugin.models.hubert_ctc.factory import create_hubert_ctc_model
from hubert_plugin.models.hubert_ctc.hub import load_hubert_ctc
from hubert_plugin.models.hubert_ctc.model import HubertCtcModel

pytestmark = pytest.mark.usefixtures("one_thread")

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "|", "A", "B"]


def make_model(**options: Any) -> HubertCtcModel:
    torch.manual_seed(0)

    config = HubertCtcConfig(encoder=tiny_config(heads=[]), vocab_size=len(SYMBOLS), symbols=SYMBOLS, **options)

    model = create_hubert_ctc_model(config).eval()

    with torch.no_grad():
        model.final_proj.weight.mul_(5.0)

    return model


def waveforms(*seconds: float) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)

    return [speech_like(s, i, rng) for i, s in enumerate(seconds)]


def test_scores_equal_those_of_fairseq() -> None:
    golden = np.load(FAIRSEQ / "tiny_ctc.npz")

    model = load_hubert_ctc(FAIRSEQ / "tiny_ctc.pt")

    # fairseq takes the statistics of the group norm over the padding, too (trap T4), so only the full row is the same.
    (full,) = (i for i, n in enumerate(golden["padded.lengths"]) if n == golden["padded.source"].shape[1])

    (logits,) = emit(model, [golden["padded.source"][full]])

    np.testing.assert_allclose(logits.numpy(), golden["padded.logits"][full], atol=2e-4)

    assert vocabulary_of(model).symbols[4] == "|"


@pytest.mark.parametrize("pooling", ["last", "weighted"])
def test_scores_depend_neither_on_the_batch_nor_on_chunks(pooling: Any) -> None:
    model = make_model(layer_pooling=pooling)

    inputs = waveforms(1.3, 2.9, 1.4, 0.5, 3.0)

    alone = [emit(model, [w])[0] for w in inputs]

    for logits, waveform in zip(alone, inputs, strict=True):
        assert logits.shape == (frames.num_frames(len(waveform)), 7)
        assert logits.dtype == torch.float32

    together = emit(model, inputs, max_batch_seconds=6.0)
    in_chunks = emit(model, inputs, max_chunk_seconds=1.0)

    for a, b, c in zip(alone, together, in_chunks, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-4)


def test_a_bound_on_attention_is_taken() -> None:
    model = make_model()

    (waveform,) = waveforms(6.0)

    exact, bounded = (
        emit(model, [waveform], max_chunk_seconds=1.0, attention_seconds=seconds)[0] for seconds in (None, 0.2)
    )

    assert exact.shape == bounded.shape
    assert not torch.allclose(exact, bounded)


def test_symbols_of_a_recogniser(tmp_path: Path) -> None:
    model = make_model()

    assert vocabulary_of(model).symbols == tuple(SYMBOLS)

    path = tmp_path / "dict.ltr.txt"

    path.write_text("| 94802\nA 51860\nB 38431\n")

    assert vocabulary_of(model, str(path)).symbols == tuple(SYMBOLS)

    path.write_text("| 1\nA 1\n")

    with pytest.raises(DecodingError, match="names 2 symbols, but the checkpoint has 7 outputs"):
        vocabulary_of(model, str(path))

    with pytest.raises(TextError, match="'fairseq_letters' has 32, but the checkpoint has 7 outputs"):
        vocabulary_of(model, "fairseq_letters")

    with pytest.raises(TextError, match="'nosuch' is not a known set"):
        vocabulary_of(model, "nosuch")

    model.config.symbols = []

    with pytest.raises(TextError, match="does not say which symbols its 7 outputs"):
        vocabulary_of(model)


@pytest.mark.parametrize(
    ("symbols", "blank"),
    [
        ("| A B C D E <blank>", 6),
        ("A B C | [UNK] [PAD] <s>", 5),
        ("<s> <pad> </s> <unk> | A B", 0),  # fairseq
        ("<pad> <s> </s> <unk> | A B", 0),  # Hugging Face
        ("- | A B C D E", 0),  # torchaudio
        ("<eps> | A B C D E", 0),
    ],
)
def test_a_file_of_symbols_says_the_blank(symbols: str, blank: int, tmp_path: Path) -> None:
    model = make_model()

    model.config.symbols = []

    (tmp_path / "symbols.txt").write_text("".join(f"{s}\n" for s in symbols.split()))

    assert vocabulary_of(model, str(tmp_path / "symbols.txt")).blank == blank


@pytest.mark.parametrize("symbols", ["| A B C D E F", "AH0 B C D E F G", "\u2581 A B C D E F", "\u2581A B C D E F G"])
def test_a_file_of_symbols_without_a_blank_is_refused(symbols: str, tmp_path: Path) -> None:
    model = make_model()

    model.config.symbols = []

    (tmp_path / "symbols.txt").write_text("".join(f"{s}\n" for s in symbols.split()))

    with pytest.raises(DecodingError, match=rf"which .* is the blank: output 0.* is '{re.escape(symbols.split()[0])}'"):
        vocabulary_of(model, str(tmp_path / "symbols.txt"))

    # Hugging Face's configurations say which output it is.
    model.config.blank = 3

    with pytest.raises(DecodingError, match=r"is the blank: output 3"):
        vocabulary_of(model, str(tmp_path / "symbols.txt"))


@pytest.mark.parametrize("part", ["final_proj.bias", "hubert.encoder.layers.1.ffn.inner_proj.weight", "layer_weights"])
def test_fingerprints_tell_recognisers_apart(part: str) -> None:
    one, other = make_model(layer_pooling="weighted"), make_model(layer_pooling="weighted")

    assert fingerprint_of(one) == fingerprint_of(other)

    ((_, param),) = [(n, p) for n, p in other.named_parameters() if n.startswith(part)]

    with torch.no_grad():
        param.flatten()[0] += 1e-6

    assert fingerprint_of(one) != fingerprint_of(other)

    # Half precision scores otherwise.
    assert len({fingerprint_of(one.to(t)) for t in (torch.float32, torch.bfloat16, torch.float16)}) == 3


def test_inputs_of_all_kinds_give_the_same_waveforms(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", num_train=2, num_valid=3)

    policy = AudioPolicy(normalize=True)

    split = open_input([str(corpus / "valid.tsv")], policy)

    assert split.manifest is not None
    assert list(split.ids) == ["s0/valid00.wav", "s1/valid01.wav", "s2/valid02.wav"]

    files = open_input([str(corpus / "wav" / i) for i in split.ids], policy)
    folder = open_input([str(corpus / "wav")], policy)

    data = (corpus / "wav" / split.ids[1]).read_bytes()

    stdin = open_input(["-"], policy, stdin=lambda: data)

    for position, id_ in enumerate(split.ids):
        waveform = split.read(position)

        assert abs(float(waveform.std()) - 1.0) > 0.1  # the model normalises, where it wants that
        assert len(waveform) == split.sizes[position] == files.sizes[position]

        np.testing.assert_array_equal(files.read(position), waveform)
        np.testing.assert_array_equal(folder.read(list(folder.ids).index(id_)), waveform)

    np.testing.assert_array_equal(stdin.read(0), split.read(1))

    assert stdin.ids == ["stdin"]
    assert split.seconds == pytest.approx(sum(split.sizes) / 16000)


def wav_bytes(num_samples: int) -> bytes:
    buffer = io.BytesIO()

    sf.write(buffer, np.zeros(num_samples, np.float32), 16000, format="WAV")

    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Nothing came on standard input"),
        (b"hello, this is no audio\n" * 50, "What came on standard input .*cannot be transcribed: expected a wav"),
        (wav_bytes(16000)[:2000], "truncated"),
        (wav_bytes(100), "too short"),
    ],
)
def test_what_is_no_wav_on_standard_input_is_named(data: bytes, message: str) -> None:
    with pytest.raises(AudioError, match=message) as info:
        open_input(["-"], AudioPolicy(), stdin=lambda: data)

    assert "/stdin.wav" not in str(info.value)


def test_inputs_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no audio")
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match=r"not there(.|\n)*x\.wav(.|\n)*y\.wav"):
        open_input([str(tmp_path / "x.wav"), str(tmp_path / "y.wav")], AudioPolicy())

    with pytest.raises(ConfigError, match="one folder, or files"):
        open_input([str(tmp_path / "a.txt"), str(tmp_path / "empty")], AudioPolicy())

    with pytest.raises(ConfigError, match="'-' alone"):
        open_input(["-", str(tmp_path / "a.txt")], AudioPolicy())

    with pytest.raises(ConfigError, match="one process alone, but there are 2"):
        open_input(["-"], AudioPolicy(), num_processes=2, stdin=lambda: b"")

    with pytest.raises(AudioError, match="1 of 1 audio files cannot be used"):
        open_input([str(tmp_path / "a.txt")], AudioPolicy())

    with pytest.raises(ManifestError, match="No audio was found"):
        open_input([str(tmp_path / "empty")], AudioPolicy())


def test_recordings_are_transcribed_in_order_whatever_their_lengths(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, num_train=1, num_valid=5)

    model = make_model()

    source = open_input([str(corpus / "valid.tsv")], AudioPolicy())

    decoder = GreedyDecoder(vocabulary_of(model))

    transcriber = Transcriber(model, decoder, ComputeConfig(max_batch_seconds=3.0))

    times = Times()

    transcripts = transcriber.transcribe(source, [3, 0, 4], times)

    assert [t.id for t in transcripts] == [source.ids[3], source.ids[0], source.ids[4]]
    assert min(times.reading, times.model, times.decoding) > 0.0

    for transcript, idx in zip(transcripts, (3, 0, 4), strict=True):
        expected = decoder.decode(emit(model, [source.read(idx)])[0])[0].text

        assert transcript.hypotheses[0].text == expected
        assert expected


def test_recordings_that_break_are_named_or_skipped(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, num_train=1, num_valid=3)

    source = open_input([str(corpus / "valid.tsv")], AudioPolicy())

    (corpus / "wav" / source.ids[1]).write_bytes(b"gone")

    model = make_model()

    decoder = GreedyDecoder(vocabulary_of(model))

    with pytest.raises(AudioError, match=r"1 of 3 recordings cannot be read(.|\n)*valid01\.wav"):
        Transcriber(model, decoder, ComputeConfig()).transcribe(source, [0, 1, 2], Times())

    skipping = Transcriber(model, decoder, ComputeConfig(), skip_bad_audio=True)

    transcripts = skipping.transcribe(source, [0, 1, 2], Times())

    assert [t.error is None for t in transcripts] == [True, False, True]
    assert transcripts[1].hypotheses[0].text == ""


def test_blocks_hold_every_recording_once() -> None:
    sizes = [s * 16000 for s in (5, 5, 5, 40, 1, 1, 1)]

    blocks = blocks_of(sizes, 10.0)

    assert [list(b) for b in blocks] == [[0, 1], [2], [3], [4, 5, 6]]
    assert blocks_of([], 10.0) == []
