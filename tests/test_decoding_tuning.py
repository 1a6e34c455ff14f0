"""What weights are searched with: the transcripts of a validation set, and the decoder's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import make_corpus, one_thread  # noqa: F401 - a fixture
from fairseq2.utils.progress import NOOP_PROGRESS_REPORTER
from transcribing import MODEL

from hubert_plugin import load_hubert_ctc
from hubert_plugin.audio import AudioPolicy
from hubert_plugin.decoding import run
from hubert_plugin.decoding.distance import EditCounts
from hubert_plugin.decoding.fit import DecoderConfig, make_decoder
from hubert_plugin.decoding.inputs import open_input
from hubert_plugin.decoding.ngram import NgramEstimate
from hubert_plugin.decoding.recogniser import vocabulary_of
from hubert_plugin.decoding.transcriber import ComputeConfig, Times, Transcriber
from hubert_plugin.decoding.tuning import TuningConfig, TuningResult
from hubert_plugin.errors import DecodingError

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("flashlight.lib.text.decoder")


class World:
    """A recogniser of lower-case letters, its decoder, and a split with transcripts."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_corpus(folder, num_train=1, num_valid=4, seconds=(0.5, 1.2))

        NgramEstimate([["fa", "bag"], ["f", "a"], ["face"], ["fade", "fa"]], 2).save(folder / "lm.arpa")

        self.config = DecoderConfig(name="beam", lm=str(folder / "lm.arpa"), lm_weight=0.5, word_score=1.0, beam=20)

        model = load_hubert_ctc(MODEL)

        self.vocabulary = vocabulary_of(model)

        decoder, _ = make_decoder(self.vocabulary, self.config)

        self.transcriber = Transcriber(model, decoder, ComputeConfig())

        self.source = open_input([str(self.folder / "valid.tsv")], AudioPolicy())

    def write_references(self, change: Callable[[str], str]) -> None:
        """Write what the decoder itself writes as transcripts, changed."""
        transcripts = self.transcriber.transcribe(self.source, range(4), Times())

        lines = [change(t.hypotheses[0].text) for t in transcripts]

        assert all(lines)

        (self.folder / "valid.wrd").write_text("".join(f"{line}\n" for line in lines))

    def tune(self, out: Path) -> float:
        """Return the word error rate that ``tuning.json`` says."""
        out.mkdir(exist_ok=True)

        run.tune(
            out,
            self.transcriber,
            self.vocabulary,
            self.config,
            self.source,
            TuningConfig(trials=1),
            "fingerprint",
            NOOP_PROGRESS_REPORTER,
        )

        return float(json.loads((out / "tuning.json").read_text())["wer"])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    def first_pair(
        measure: Callable[[float, float], EditCounts], config: TuningConfig, *, start: tuple[float, float], **_: object
    ) -> TuningResult:
        counts = measure(*start)

        return TuningResult(*start, counts, [(*start, counts.rate)])

    # The search itself needs optuna; here only what it measures is of interest.
    monkeypatch.setattr(run, "tune_weights", first_pair)

    return World(tmp_path / "corpus")


def test_words_are_compared_in_the_case_of_the_symbols(world: World, tmp_path: Path) -> None:
    world.write_references(str.upper)

    assert world.tune(tmp_path / "out") == 0.0


def test_other_transcripts_are_measured_with_anew(world: World, tmp_path: Path) -> None:
    world.write_references(str)

    assert world.tune(tmp_path / "out") == 0.0

    # A word too many in each line, which the decoder may write.
    world.write_references(lambda text: f"{text} face face face")

    assert world.tune(tmp_path / "out") > 0.0


def test_words_that_the_decoder_cannot_write_are_told(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        world.write_references(lambda text: f"{text} bäh")

        world.tune(tmp_path / "out")

    assert "words of the transcripts cannot be written by this decoder" in caplog.text and "'bäh'" in caplog.text

    world.write_references(lambda text: "BÄH muh")

    with pytest.raises(DecodingError, match=r"None of the 2 words .* can be written .*'bäh', 'muh'.*`tune.references`"):
        world.tune(tmp_path / "none")

    assert not (tmp_path / "none" / "tuning.json").exists()
