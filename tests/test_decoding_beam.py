"""Beam search, against every path there is and against flashlight called directly."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("flashlight.lib.text.decoder")

from hubert_plugin.decoding.beam import BeamDecoder
from hubert_plugin.decoding.decoder import BeamConfig, GreedyDecoder
from hubert_plugin.decoding.fit import DecoderConfig, make_decoder
from hubert_plugin.decoding.language_model import load_kenlm, open_ngram_file
from hubert_plugin.decoding.lexicon import make_lexicon
from hubert_plugin.errors import DecodingError, MissingDependencyError
from hubert_plugin.text.vocabulary import CtcVocabulary

VOCABULARY = CtcVocabulary(("<s>", "|", "A", "B"))

WORDS = ["A", "B", "AB", "BA"]

DATA = Path(__file__).parent / "data" / "lm"

ARPA = DATA / "ab.arpa"

EXACT = BeamConfig(beam=100_000, beam_threshold=1e6, lm_weight=1.3, word_score=-0.7, nbest=1000)
"""Nothing is dropped."""


def random_logits(num_frames: int, seed: int, vocabulary: CtcVocabulary = VOCABULARY) -> Tensor:
    return 2.0 * torch.randn(num_frames, len(vocabulary), generator=torch.Generator().manual_seed(seed))


class ArpaOracle:
    """Back-off by the book: the longest n-gram that is listed, with the back-off weights of the contexts above it."""

    def __init__(self, path: Path) -> None:
        self.table: dict[tuple[str, ...], tuple[float, float]] = {}

        for line in path.read_text().splitlines():
            fields = line.split("\t")

            if len(fields) > 1:
                self.table[tuple(fields[1].split())] = (float(fields[0]), float(fields[2]) if fields[2:] else 0.0)

    def word(self, context: tuple[str, ...], word: str) -> float:
        if (*context, word) in self.table:
            return self.table[(*context, word)][0]

        return self.table.get(context, (0.0, 0.0))[1] + self.word(context[1:], word)

    def sentence(self, words: list[str]) -> float:
        padded = ("<s>", *words, "</s>")

        return sum(self.word(padded[max(0, i - 2) : i], padded[i]) for i in range(1, len(padded)))


def all_paths(logits: Tensor, *, with_first: bool = True) -> Iterator[tuple[str, float]]:
    """Yield the collapsed symbols and the log-probability of every path.

    :param with_first: Whether a separator in the first frame counts. flashlight starts as if there had been one before.
    """
    log_probs = logits.log_softmax(-1).double().numpy()

    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        symbols = [s for s, _ in itertools.groupby(path) if s != VOCABULARY.blank]

        if path[0] == VOCABULARY.separator and not with_first:
            symbols = symbols[1:]

        yield (
            "".join(VOCABULARY.symbols[s] for s in symbols),
            float(sum(log_probs[t, s] for t, s in enumerate(path))),
        )


@pytest.mark.parametrize("seed", range(4))
def test_lexicon_search_finds_the_best_of_all_paths(seed: int) -> None:
    logits = random_logits(6, seed)

    oracle = ArpaOracle(ARPA)

    best: dict[str, float] = {}

    for symbols, ctc in all_paths(logits):
        words = [w for w in symbols.split("|") if w]

        # Every word ends with the separator, and is in the lexicon.
        if (symbols and not symbols.endswith("|")) or any(w not in WORDS for w in words):
            continue

        score = ctc + EXACT.lm_weight * oracle.sentence(words) + EXACT.word_score * len(words)

        best[" ".join(words)] = max(score, best.get(" ".join(words), -math.inf))

    lexicon, _ = make_lexicon(WORDS, VOCABULARY)

    found = BeamDecoder(VOCABULARY, EXACT, lexicon=lexicon, lm=open_ngram_file(ARPA)).decode(logits)

    assert {h.text for h in found} == best.keys()

    for hypothesis in found:
        words = hypothesis.text.split()

        assert hypothesis.score == pytest.approx(best[hypothesis.text], abs=1e-4)
        assert hypothesis.lm_score == pytest.approx(oracle.sentence(words), abs=1e-4)
        assert hypothesis.ctc_score == pytest.approx(
            hypothesis.score - 1.3 * oracle.sentence(words) + 0.7 * len(words), abs=1e-3
        )

    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


@pytest.mark.parametrize("log_add", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_free_search_finds_the_best_of_all_paths(seed: int, log_add: bool) -> None:
    logits = random_logits(6, seed)

    sums: defaultdict[str, float] = defaultdict(lambda: -math.inf)

    for symbols, ctc in all_paths(logits, with_first=False):
        sums[symbols] = float(np.logaddexp(sums[symbols], ctc)) if log_add else max(sums[symbols], ctc)

    best: dict[str, float] = {}

    for symbols, ctc in sums.items():
        words = [w for w in symbols.split("|") if w]

        score = ctc + EXACT.word_score * len(words)

        best[" ".join(words)] = max(score, best.get(" ".join(words), -math.inf))

    found = BeamDecoder(VOCABULARY, replace(EXACT, log_add=log_add)).decode(logits)

    assert {h.text: h.score for h in found} == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_results_are_those_of_flashlight_on_the_same_scores(seed: int) -> None:
    """What fairseq does: raw logits go into flashlight's decoder."""
    from flashlight.lib.text import decoder as fl

    logits = random_logits(40, seed)

    config = BeamConfig(beam=30, nbest=5, emissions="logits")

    lexicon, _ = make_lexicon(WORDS, VOCABULARY)

    lm = load_kenlm(open_ngram_file(ARPA), [*WORDS, "<unk>"])

    trie = fl.Trie(4, 1)

    start = lm.start(False)

    for number, (_, spelling) in enumerate(lexicon.entries):
        trie.insert(list(spelling), number, lm.score(start, number)[1])

    trie.smear(fl.SmearingMode.MAX)

    options = fl.LexiconDecoderOptions(30, 4, 100.0, 2.0, -1.0, -math.inf, 0.0, False, fl.CriterionType.CTC)

    emissions = np.ascontiguousarray(logits.numpy())

    results = fl.LexiconDecoder(options, trie, lm, 1, 0, 4, [], False).decode(emissions.ctypes.data, 40, 4)

    expected: dict[str, float] = {}

    for result in sorted(results, key=lambda r: -r.score):
        expected.setdefault(" ".join(WORDS[w] for w in result.words if w >= 0), result.score)

    found = BeamDecoder(VOCABULARY, config, lexicon=lexicon, lm=open_ngram_file(ARPA)).decode(logits)

    assert {h.text: h.score for h in found} == pytest.approx(dict(list(expected.items())[:5]))

    # Log-probabilities shift every score by the same amount.
    shifted = BeamDecoder(
        VOCABULARY, replace(config, emissions="log_probs"), lexicon=lexicon, lm=open_ngram_file(ARPA)
    ).decode(logits)

    total = float(logits.logsumexp(-1).sum())

    assert [h.text for h in shifted] == [h.text for h in found]
    assert [h.score + total for h in shifted] == pytest.approx([h.score for h in found], abs=1e-2)


@pytest.mark.parametrize("name", ["ab.probing.bin", "ab.trie.bin"])
def test_binaries_of_kenlm_give_what_their_arpa_file_gives(name: str) -> None:
    logits = random_logits(30, 1)

    results = [
        make_decoder(VOCABULARY, DecoderConfig(name="beam", beam=50, lm=str(path), nbest=3))[0].decode(logits)
        for path in (ARPA, DATA / name)
    ]

    assert [(h.text, h.score) for h in results[0]] == [(h.text, h.score) for h in results[1]]


def test_compressed_arpa_files_are_read(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "ab.arpa.gz"

    path.write_bytes(gzip.compress(ARPA.read_bytes()))

    file = open_ngram_file(path)

    assert file.words == open_ngram_file(ARPA).words
    assert load_kenlm(file, WORDS).score(load_kenlm(file, WORDS).start(False), 0)[1] == pytest.approx(-0.33)


def test_words_of_a_search_have_times_and_confidences() -> None:
    probabilities = torch.full((9, 4), 0.02)

    for t, symbol in enumerate([0, 2, 2, 3, 1, 0, 3, 2, 1]):  # - A A B | - B A |
        probabilities[t, symbol] = 0.94

    decoder, _ = make_decoder(VOCABULARY, DecoderConfig(name="beam", lm=str(ARPA)))

    (hypothesis,) = decoder.decode(probabilities.log())

    (greedy,) = GreedyDecoder(VOCABULARY).decode(probabilities.log())

    assert hypothesis.text == "AB BA"
    assert hypothesis.words == greedy.words
    assert [(w.start, w.end) for w in hypothesis.words] == [(0.02, 0.08), (0.12, 0.16)]
    assert hypothesis.words[0].confidence == pytest.approx(0.94, abs=1e-5)


def test_a_lexicon_may_write_words_otherwise_than_they_are_spelled(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"

    path.write_text("doctor\tA B |\ndoctor\tB A |\nb\tB |\n")

    probabilities = torch.full((5, 4), 0.02)

    for t, symbol in enumerate([3, 2, 1, 3, 1]):
        probabilities[t, symbol] = 0.94

    decoder, notes = make_decoder(VOCABULARY, DecoderConfig(name="beam", lexicon=str(path)))

    assert decoder.decode(probabilities.log())[0].text == "doctor b"
    assert notes == []


def test_pieces_need_no_separator() -> None:
    vocabulary = CtcVocabulary(("<blank>", "\u2581A", "B", "\u2581B"))

    probabilities = torch.full((6, 4), 0.02)

    for t, symbol in enumerate([1, 1, 2, 0, 3, 0]):
        probabilities[t, symbol] = 0.94

    lexicon, outside = make_lexicon(["AB", "B", "C"], vocabulary)

    assert outside == ["C"]

    for given in (lexicon, None):
        (best,) = BeamDecoder(vocabulary, BeamConfig(), lexicon=given).decode(probabilities.log())

        assert best.text == "AB B"
        assert [(w.start, w.end) for w in best.words] == [(0.0, 0.06), (0.08, 0.1)]


def test_free_search_with_a_model_of_symbols(tmp_path: Path) -> None:
    path = tmp_path / "letters.arpa"

    path.write_text(
        "\\data\\\nngram 1=6\nngram 2=2\n\n\\1-grams:\n-2\t<unk>\n-99\t<s>\t0\n-1\t</s>\n-0.5\t|\t0\n-0.5\tA\t0\n"
        "-3\tB\t0\n\n\\2-grams:\n-0.1\tA |\n-0.2\t| A\n\n\\end\\\n"
    )

    # `B` is a little likelier to the recogniser, but not to the language model.
    logits = torch.tensor([[0.1, 0.1, 0.38, 0.42], [0.05, 0.9, 0.02, 0.03]]).log()

    options = DecoderConfig(name="beam", lexicon_free=True, word_score=0.0)

    plain, _ = make_decoder(VOCABULARY, options)
    fused, notes = make_decoder(VOCABULARY, replace(options, lm=str(path)))

    assert (plain.decode(logits)[0].text, fused.decode(logits)[0].text) == ("B", "A")
    assert notes == []


def test_free_search_writes_no_specials() -> None:
    vocabulary = CtcVocabulary(("<s>", "<pad>", "</s>", "<unk>", "|", "A"))

    logits = torch.zeros(3, 6)
    logits[:, 1:4] = 5.0
    logits[1, 5] = 1.0

    (best,) = BeamDecoder(vocabulary, BeamConfig(word_score=0.0)).decode(logits)

    assert best.text == "A"


@pytest.mark.parametrize("num_frames", [0, 1, 4])
def test_nothing_recognised_is_an_empty_hypothesis(num_frames: int) -> None:
    logits = torch.zeros(num_frames, 4)

    logits[:, 0] = 20.0

    for config in (DecoderConfig(name="beam", lm=str(ARPA)), DecoderConfig(name="beam", lexicon_free=True)):
        (best,) = make_decoder(VOCABULARY, config)[0].decode(logits)

        assert (best.text, best.words) == ("", ())


def test_texts_of_an_n_best_list_are_different_and_as_many_as_asked_for() -> None:
    decoder, _ = make_decoder(VOCABULARY, DecoderConfig(name="beam", lm=str(ARPA), nbest=7))

    found = decoder.decode(random_logits(50, 3))

    assert len({h.text for h in found}) == len(found) == 7


def test_weights_change_what_is_found() -> None:
    lexicon, _ = make_lexicon(WORDS, VOCABULARY)

    decoder = BeamDecoder(VOCABULARY, BeamConfig(word_score=-50.0), lexicon=lexicon)

    assert decoder.decode(random_logits(30, 0))[0].text == ""

    decoder.config = BeamConfig(word_score=50.0)

    assert len(decoder.decode(random_logits(30, 0))[0].words) > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "`beam` must be 1 or greater"),
        ({"nbest": 0, "beam_threshold": 0.0}, r"`nbest` must be 1(.|\n)*`beam_threshold` must be greater"),
        ({"lm_weight": math.inf, "sil_score": math.nan}, "`lm_weight` must be finite(.|\n)*`sil_score` must be finite"),
        ({"word_score": -math.inf}, "`word_score` must be finite, but is -inf"),
        ({"emissions": "raw"}, "`emissions` must be log_probs or logits"),
        ({"name": "viterbi"}, "`name` must be greedy or beam"),
        ({"name": "greedy", "lm": "x.arpa"}, "decoder.name=beam"),
        ({"name": "greedy", "nbest": 3}, "one hypothesis"),
        ({"lexicon": "x", "lexicon_free": True}, "exclude each other"),
    ],
)
def test_options_that_cannot_be_used_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        make_decoder(VOCABULARY, DecoderConfig(**{"name": "beam", **options}))


def test_scores_that_are_not_finite_are_refused() -> None:
    logits = random_logits(5, 0)

    logits[2, 1] = math.nan

    with pytest.raises(DecodingError, match="not finite"):
        BeamDecoder(VOCABULARY, BeamConfig()).decode(logits)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "flashlight.lib.text", None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'fairseq2-hubert\[lm\]'.*decoder.name=greedy"):
        make_decoder(VOCABULARY, DecoderConfig(name="beam"))
