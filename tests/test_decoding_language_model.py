"""Language models and lexicons on disk: what can be wrong with them; and the estimator."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("flashlight.lib.text.decoder")

from hubert_plugin.decoding.fit import DecoderConfig, make_decoder
from hubert_plugin.decoding.language_model import load_kenlm, open_ngram_file
from hubert_plugin.decoding.lexicon import Lexicon, make_lexicon, read_lexicon, write_lexicon
from hubert_plugin.decoding.ngram import NgramEstimate
from hubert_plugin.errors import DecodingError
from hubert_plugin.text.vocabulary import CtcVocabulary

VOCABULARY = CtcVocabulary(("<s>", "<pad>", "</s>", "<unk>", "|", "A", "B"))

DATA = Path(__file__).parent / "data" / "lm"

ARPA = (DATA / "ab.arpa").read_text()


def decoder_with(path: Path, **options: object) -> list[str]:
    """Build a decoder with a language model; return its notes."""
    return make_decoder(VOCABULARY, DecoderConfig(name="beam", lm=str(path), **options))[1]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)

    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "There is no language model"),
        (b"", "not a language model.*an empty file"),
        (b"hello\n", "not a language model.*'hello'"),
        (b"\x80\x02}q\x00.", "not a language model"),
        (ARPA[: ARPA.index("-0.62")], "damaged or cut off: it ends within its unigrams"),
        (ARPA[: ARPA.index("-0.77")], r"KenLM cannot read.*End of file in the 2-gram"),
        (ARPA[: ARPA.index("\\end")], "KenLM cannot read"),
        (ARPA.replace("ngram 1=7", "ngram 1=9"), "announces 9 unigrams, but there are 7"),
        (ARPA.replace("-0.62\tA", "x\tA"), "line 10: expected a probability and a word"),
        (ARPA.replace("ngram 2=8", "ngram 2=9"), "KenLM cannot read"),
        ((DATA / "ab.trie.bin").read_bytes()[:60], "damaged or cut off: it ends within its head"),
        ((DATA / "ab.trie.bin").read_bytes()[:300], "damaged or cut off: its head announces 7 words, but 0"),
        ((DATA / "ab.trie.bin").read_bytes()[:-9], "damaged or cut off: its head announces 7 words, but 5"),
    ],
)
def test_files_that_are_no_models_or_cut_off_are_named(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / "lm.arpa"

    if content is not None:
        write(path, content)

    with pytest.raises(DecodingError, match=message) as info:
        decoder_with(path)

    assert str(path) in str(info.value)


def test_a_cut_compressed_file_is_named(tmp_path: Path) -> None:
    import gzip

    path = write(tmp_path / "lm.arpa.gz", gzip.compress(ARPA.encode())[:60])

    with pytest.raises(DecodingError, match="damaged or cut off"):
        decoder_with(path)


def test_a_model_with_another_alphabet_is_refused_with_examples(tmp_path: Path) -> None:
    NgramEstimate([["кот", "дом"], ["дом"]], 2).save(tmp_path / "lm.arpa")

    with pytest.raises(DecodingError, match=r"another alphabet.*none of its 2.*'дом', 'кот'.*writes 'A', 'B'"):
        decoder_with(tmp_path / "lm.arpa")


def test_a_model_in_another_case_is_refused_with_advice(tmp_path: Path) -> None:
    NgramEstimate([["a", "ab"], ["b"]], 2).save(tmp_path / "lm.arpa")

    with pytest.raises(DecodingError, match="The recogniser writes upper case: give a lexicon"):
        decoder_with(tmp_path / "lm.arpa")


def test_words_that_cannot_be_spelled_are_counted_and_named(tmp_path: Path) -> None:
    NgramEstimate([["A", "AX", "B"], ["B", "Y"]], 2).save(tmp_path / "lm.arpa")

    (note,) = decoder_with(tmp_path / "lm.arpa")

    assert note.startswith("2 of the 4 words of")
    assert note.endswith("'AX', 'Y'.")


def test_a_model_of_words_is_no_model_of_symbols(tmp_path: Path) -> None:
    NgramEstimate([["HELLO", "WORLD"]], 2).save(tmp_path / "lm.arpa")

    with pytest.raises(DecodingError, match="do not belong together: it knows none of the 3"):
        decoder_with(tmp_path / "lm.arpa", lexicon_free=True)


def test_a_model_of_words_is_no_model_of_symbols_though_some_words_are_letters(tmp_path: Path) -> None:
    NgramEstimate([["A", "ABBA", "BAA"], ["BAB", "A"]], 2).save(tmp_path / "lm.arpa")

    with pytest.raises(DecodingError, match=r"seems to be a model of words: it knows 1 of the .*'ABBA'"):
        decoder_with(tmp_path / "lm.arpa", lexicon_free=True)


def test_a_model_of_words_that_are_all_letters_is_refused_with_the_letters_it_lacks(tmp_path: Path) -> None:
    NgramEstimate([["A"], ["A", "A"]], 2).save(tmp_path / "lm.arpa")

    with pytest.raises(DecodingError, match=r"it knows 1 of the 3 symbols, not '\|', 'B'\. Set `decoder"):
        decoder_with(tmp_path / "lm.arpa", lexicon_free=True)


def test_a_lexicon_of_other_words_than_the_model_is_refused(tmp_path: Path) -> None:
    lexicon = write(tmp_path / "lexicon.txt", "ABA\tA B A |\n")

    with pytest.raises(DecodingError, match=r"do not belong together.*'ABA'"):
        decoder_with(DATA / "ab.arpa", lexicon=str(lexicon))

    write(lexicon, "ABA\tA B A |\nAB\tA B |\n")

    (note,) = decoder_with(DATA / "ab.arpa", lexicon=str(lexicon))

    assert "does not know 1 of the 2 entries" in note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no lexicon"),
        (
            "AB\tA B |\n<unk>\tB |\n<s>\tA |\n",
            r":2: '<unk>' is an entry of language models(.|\n)*:3: '<s>' is an entry",
        ),
        ("", "is empty"),
        ("AB A B |\nAC\tA C |\nX\tX |\n", r"2 of the 3 lines(.|\n)*:2: 'AC' is spelled with 'C'(.|\n)*:3: 'X'"),
        ("AB\n", "'AB' without a spelling"),
        ("AB\tA B\n", r"expected the spelling of 'AB' to end with '\|', found A B"),
        ("AB\tA | B |\n", "to end with"),
        ("AB\t|\n", "to end with"),
        ("AB\tA <pad> |\n", "no text"),
    ],
)
def test_lines_of_a_lexicon_that_do_not_fit_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "lexicon.txt"

    if text is not None:
        write(path, text)

    with pytest.raises(DecodingError, match=message):
        read_lexicon(path, VOCABULARY)


@pytest.mark.parametrize("with_lm", [True, False])
def test_of_many_words_of_one_spelling_the_best_six_may_be_written(tmp_path: Path, with_lm: bool) -> None:
    """flashlight's trie holds no more, and drops the others without a word."""
    strangers = [f"Z{i}" for i in range(30)]

    words = [*strangers, "A", "AB", "BA"]

    path = tmp_path / "lexicon.txt"

    path.write_text("".join(f"{word}\tA |\n" for word in words) + "Z29\tA B |\n")

    config = DecoderConfig(name="beam", lm=str(DATA / "ab.arpa") if with_lm else "", lexicon=str(path), nbest=100)

    decoder, notes = make_decoder(VOCABULARY, config)

    # Three words are in the model.
    kept = [*strangers[:3], "A", "AB", "BA"] if with_lm else strangers[:6]

    logits = torch.full((4, len(VOCABULARY)), -5.0)
    logits[range(4), [VOCABULARY.index[s] for s in ("A", "|", "<s>", "<s>")]] = 5.0

    assert {h.text for h in decoder.decode(logits)} >= set(kept)

    # A word that can be spelled otherwise is still written so.
    assert decoder.words is not None and sorted(decoder.words) == sorted([*kept, "Z29"])

    first = ", ".join(f"'{w}'" for w in [w for w in words if w not in kept][:20])

    assert notes[-1] == (
        "27 of the 34 entries of the lexicon are left out, for the search holds 6 words of one spelling, those "
        f"{'that the language model scores best' if with_lm else 'that come first'}: {first}, …."
    )

    path.write_text("".join(f"{word}\tA |\n" for word in [*strangers[:5], "A"]))

    decoder, notes = make_decoder(VOCABULARY, DecoderConfig(name="beam", lexicon=str(path)))

    assert decoder.words == [*strangers[:5], "A"] and not notes


def test_a_lexicon_is_read_as_it_was_written(tmp_path: Path) -> None:
    lexicon, outside = make_lexicon(["AB", "B", "<s>", "AB", "X"], VOCABULARY)

    assert (lexicon, outside) == (Lexicon((("AB", (5, 6, 4)), ("B", (6, 4)))), ["X"])

    write_lexicon(tmp_path / "l.txt", lexicon, VOCABULARY)

    assert (tmp_path / "l.txt").read_text() == "AB\tA B |\nB\tB |\n"
    assert read_lexicon(tmp_path / "l.txt", VOCABULARY) == lexicon


SENTENCES = [
    ["A", "B", "C"],
    ["A", "B"],
    ["C"],
    [],
    ["B", "B", "A", "C"],
    ["A", "B", "D"],
    ["D", "D"],
    ["A", "B", "C", "D", "A"],
]


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_of_an_estimate_sum_to_one_after_every_context(tmp_path: Path, order: int) -> None:
    """Read by KenLM: also the words that were never seen after the context take part."""
    NgramEstimate(SENTENCES, order).save(tmp_path / "lm.arpa")

    words = ["A", "B", "C", "D", "<unk>"]

    lm = load_kenlm(open_ngram_file(tmp_path / "lm.arpa"), words)

    for length in range(order):
        for context in itertools.product(range(5), repeat=length):
            state = lm.start(False)

            for word in context:
                state, _ = lm.score(state, word)

            total = sum(10 ** lm.score(state, w)[1] for w in range(5)) + 10 ** lm.finish(state)[1]

            assert total == pytest.approx(1.0, abs=1e-5), (context, order)


class KneserNeyOracle:
    """The formula as it stands, recomputed from the sentences for every word."""

    def __init__(self, order: int) -> None:
        self.order = order

        padded = [("<s>", *s, "</s>") for s in SENTENCES]

        self.grams = [Counter(p[i : i + n] for p in padded for i in range(len(p) - n + 1)) for n in range(1, order + 2)]

        self.words = {w for p in padded for w in p} - {"<s>"} | {"<unk>"}

    def count(self, gram: tuple[str, ...]) -> int:
        if len(gram) == self.order or gram[0] == "<s>":
            return self.grams[len(gram) - 1][gram]

        return sum(1 for g in self.grams[len(gram)] if g[1:] == gram)

    def discount(self, n: int) -> float:
        counts = [self.count(g) for g in self.grams[n - 1] if g != ("<s>",)]

        n1, n2 = counts.count(1), counts.count(2)

        return n1 / (n1 + 2 * n2) if n1 and n2 else 0.5

    def probability(self, context: tuple[str, ...], word: str) -> float:
        n = len(context) + 1

        lower = self.probability(context[1:], word) if context else 1.0 / len(self.words)

        followers = {w: c for w in self.words if (c := self.count((*context, w))) > 0}

        if not followers:
            return lower

        discount, total = self.discount(n), sum(followers.values())

        return max(followers.get(word, 0) - discount, 0.0) / total + discount * len(followers) / total * lower


@pytest.mark.parametrize("order", [2, 3])
def test_an_estimate_is_that_of_the_formula(tmp_path: Path, order: int) -> None:
    NgramEstimate(SENTENCES, order).save(tmp_path / "lm.arpa")

    words = ["A", "B", "C", "D"]

    lm = load_kenlm(open_ngram_file(tmp_path / "lm.arpa"), words)

    oracle = KneserNeyOracle(order)

    rng = random.Random(0)

    for _ in range(60):
        sentence = [rng.choice(words) for _ in range(rng.randint(0, 5))]

        padded = ["<s>", *sentence]

        state = lm.start(False)

        for position, word in enumerate(sentence):
            state, score = lm.score(state, words.index(word))

            context = tuple(padded[max(0, position + 2 - order) : position + 1])

            assert score == pytest.approx(math.log10(oracle.probability(context, word)), abs=1e-4)

        context = tuple(padded[max(0, len(padded) + 1 - order) :])

        assert lm.finish(state)[1] == pytest.approx(math.log10(oracle.probability(context, "</s>")), abs=1e-4)


@pytest.mark.parametrize(
    ("sentences", "order", "message"),
    [
        ([], 3, "at least one sentence"),
        ([["A"]], 1, "must be at least 2"),
        ([["A B"]], 3, "'A B' cannot be a word"),
        ([["<s>"]], 3, "'<s>' cannot be a word"),
        ([[""]], 3, "'' cannot be a word"),
    ],
)
def test_what_cannot_be_estimated_is_named(sentences: list[list[str]], order: int, message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        NgramEstimate(sentences, order)
