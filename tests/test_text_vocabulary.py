"""What the outputs of a recogniser mean: letters of fairseq, torchaudio and Hugging Face, SentencePiece, phones."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torchaudio.pipelines._wav2vec2.utils as torchaudio_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_plugin import HubertCtcConfig
from hubert_plugin.errors import TextError
from hubert_plugin.text.dictionary import read_dictionary
from hubert_plugin.text.symbols import NAMED_SYMBOLS
from hubert_plugin.text.vocabulary import CtcVocabulary

LETTERS = CtcVocabulary.named("fairseq_letters")

PIECES = CtcVocabulary(
    ("<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581THE", "T", "H", "E", "CA", "\u2581CAT", "<0xC3>", "<0x89>")
)

PHONES = CtcVocabulary(("<blank>", "AH", "B", "K", "IY"))

WORDS = st.lists(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ'", min_size=1, max_size=6), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("name", "size", "separator", "specials"),
    [
        ("fairseq_letters", 32, 4, {0, 1, 2, 3}),
        ("letters", 29, 1, {0}),
        ("torchaudio_letters", 29, 1, {0}),
        ("huggingface_letters", 32, 4, {0, 1, 2, 3}),
    ],
)
def test_named_sets(name: str, size: int, separator: int, specials: set[int]) -> None:
    vocabulary = CtcVocabulary.named(name)

    assert (len(vocabulary), vocabulary.blank, vocabulary.kind, vocabulary.case) == (size, 0, "letters", "upper")
    assert (vocabulary.separator, vocabulary.specials) == (separator, specials)


def test_torchaudios_letters_are_those_of_torchaudio() -> None:
    # Their bundles put the blank before these (`get_labels(blank="-")`).
    assert NAMED_SYMBOLS["torchaudio_letters"] == ("-", *torchaudio_utils._get_en_labels())


def test_hugging_faces_letters_are_those_of_transformers_tokenizer(tmp_path: Path) -> None:
    """Its own tokenizer reads the ids of our spelling as the same words."""
    from transformers import Wav2Vec2CTCTokenizer

    vocabulary = CtcVocabulary.named("huggingface_letters")

    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary.index))

    theirs = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))

    text = "IT'S A QUIZ"

    ids = [i for word in text.split() for i in vocabulary.encode_word(word)]

    assert vocabulary.text(ids) == text

    # Their decoder merges repetitions; there are none here.
    assert all(a != b for a, b in pairwise(ids))
    assert theirs.decode(ids) == text
    assert theirs(text).input_ids == ids[:-1]


@settings(max_examples=50, deadline=None)
@given(WORDS)
def test_letters_are_read_back(words: list[str]) -> None:
    ids = [i for word in words for i in LETTERS.encode_word(word)]

    assert LETTERS.text(ids) == " ".join(words)

    found = LETTERS.words(ids)

    for word, (spelling, first, end) in zip(words, found, strict=True):
        assert spelling == word
        assert [LETTERS.symbols[i] for i in ids[first:end]] == list(word)


def test_specials_and_superfluous_separators_are_no_text() -> None:
    index = LETTERS.index

    ids = [index[s] for s in ("|", "<s>", "A", "<unk>", "B", "|", "|", "</s>", "C", "<pad>", "|")]

    assert LETTERS.text(ids) == "AB C"
    assert LETTERS.words(ids) == [("AB", 2, 5), ("C", 8, 9)]
    assert LETTERS.text([]) == ""


def test_names_of_specials_are_known_whatever_the_convention() -> None:
    vocabulary = CtcVocabulary(("[PAD]", "[UNK]", "|", "a", "-", "<s>", "[CLS]", "<0x41>"))

    # The hyphen is text here, since it is not the blank; so are SentencePiece's bytes.
    assert vocabulary.specials == {0, 1, 5, 6}
    assert vocabulary.case == "lower"
    assert vocabulary.fold("Ab") == "ab"

    assert CtcVocabulary(("a", "-"), blank=1).specials == {1}


def test_pieces_are_joined_at_word_marks() -> None:
    ids = [PIECES.index[s] for s in ("\u2581THE", "<pad>", "\u2581CAT", "E", "\u2581", "CA", "T")]

    assert (PIECES.kind, PIECES.separator) == ("pieces", None)
    assert PIECES.text(ids) == "THE CATE CAT"
    assert PIECES.words(ids) == [("THE", 0, 1), ("CATE", 2, 4), ("CAT", 5, 7)]


def test_bytes_are_joined_to_characters() -> None:
    ids = [PIECES.index[s] for s in ("\u2581", "<0xC3>", "<0x89>", "T")]

    assert PIECES.text(ids) == "ÉT"

    # Half a character is shown as such rather than raised.
    assert PIECES.text(ids[:2]) == "\ufffd"


def test_words_are_spelled_with_fewest_pieces_or_highest_scores() -> None:
    def spell(vocabulary: CtcVocabulary, word: str) -> list[str]:
        return [vocabulary.symbols[i] for i in vocabulary.encode_word(word)]

    assert spell(PIECES, "CAT") == ["\u2581CAT"]
    assert spell(PIECES, "THET") == ["\u2581THE", "T"]

    scores = dict.fromkeys(range(len(PIECES)), -1.0) | {PIECES.index["\u2581CAT"]: -10.0}

    scored = CtcVocabulary(PIECES.symbols, 0, tuple(scores[i] for i in range(len(PIECES))))

    assert spell(scored, "CAT") == ["\u2581", "CA", "T"]


def test_phones_are_words_of_their_own() -> None:
    assert PHONES.text([3, 1, 0, 2]) == "K AH B"
    assert PHONES.encode_word("IY") == [4]

    with pytest.raises(TextError, match="The word 'ZZ' cannot be spelled: the vocabulary lacks 'ZZ'"):
        PHONES.encode_word("ZZ")


@pytest.mark.parametrize(
    ("word", "what"),
    [("NAÏVE", "'Ï'"), ("don't", "'d', 'n', 'o', 't'"), ("A|B", r"'\|'"), ("", "no symbols of it fit")],
)
def test_words_outside_of_the_vocabulary_are_refused(word: str, what: str) -> None:
    with pytest.raises(TextError, match=f"The word '.*' cannot be spelled: .*{what}"):
        LETTERS.encode_word(word)


def test_configurations_say_their_symbols() -> None:
    config = HubertCtcConfig(vocab_size=3, symbols=["a", "|", "-"], blank=2)

    assert CtcVocabulary.of_config(config) == CtcVocabulary(("a", "|", "-"), 2)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (HubertCtcConfig(vocab_size=29), "does not say which symbols its 29 outputs .* letters, torchaudio_letters"),
        (HubertCtcConfig(vocab_size=32), "fairseq_letters, huggingface_letters"),
        (HubertCtcConfig(vocab_size=7), "No well-known set has 7 symbols"),
        (HubertCtcConfig(vocab_size=3, symbols=["a", "b"]), "has 3 outputs but names 2 symbols"),
    ],
)
def test_configurations_without_usable_symbols_are_refused(config: HubertCtcConfig, text: str) -> None:
    with pytest.raises(TextError, match=text):
        CtcVocabulary.of_config(config)


def test_named_sets_must_fit() -> None:
    with pytest.raises(TextError, match="'letters' has 29, but the checkpoint has 32 outputs"):
        CtcVocabulary.named("letters", 32)

    with pytest.raises(TextError, match="'x' is not a known set of symbols"):
        CtcVocabulary.named("x")


@pytest.mark.parametrize(
    ("symbols", "blank", "text"),
    [
        (("a",), 0, "at least 2 symbols"),
        (("a", "b"), 2, "blank must be an index into 2 symbols, but is 2"),
        (("a", "b", "a"), 0, "each symbol once.*: a"),
        (("a", ""), 0, "no empty symbol, but symbol 1 is"),
    ],
)
def test_vocabularies_that_are_none_are_refused(symbols: tuple[str, ...], blank: int, text: str) -> None:
    with pytest.raises(TextError, match=text):
        CtcVocabulary(symbols, blank)


class TestFiles:
    def test_fairseqs_dictionary_gets_its_specials(self, tmp_path: Path) -> None:
        path = tmp_path / "dict.ltr.txt"

        path.write_text("| 94802\nE 51860\nT 38431\n")

        assert read_dictionary(path).symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "E", "T")

    def test_fairseqs_own_dictionary_of_a_fine_tuned_model(self, tmp_path: Path, data_dir: Path) -> None:
        """The symbols are those that fairseq had when it trained the golden model."""
        symbols = json.loads((data_dir / "fairseq/tiny_ctc.json").read_text())["symbols"]

        path = tmp_path / "dict.ltr.txt"

        path.write_text("".join(f"{s} 1\n" for s in symbols[4:]))

        vocabulary = read_dictionary(path)

        assert list(vocabulary.symbols) == symbols
        assert vocabulary.case == "lower"

    def test_hugging_faces_blank_is_the_pad_token(self, tmp_path: Path) -> None:
        path = tmp_path / "vocab.json"

        path.write_text(json.dumps({"|": 0, "A": 1, "<pad>": 2, "[PAD]": 3}))

        assert read_dictionary(path).blank == 2

        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))

        assert read_dictionary(path).blank == 3

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("d.txt", b"", "found the end of the file"),
            ("d.txt", b"A 1\nB\nA 2\n", "(?s)d.txt:2: expected `symbol count`.*d.txt:3: expected new symbols"),
            ("d.txt", b"\xff\xfe", "is not UTF-8"),
            ("d.json", b"{", "is no JSON"),
            ("d.json", b"[1]", "must be a JSON object"),
            ("d.json", b'{"<pad>": 0, "A": 2}', "must number its 2 symbols from 0 to 1"),
            ("d.json", b'{"A": 0, "B": 1}', "no symbol that could be the blank"),
        ],
    )
    def test_malformed_files_are_refused(self, name: str, content: bytes, text: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(TextError, match=text):
            read_dictionary(tmp_path / name)

    def test_missing_files_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TextError, match="cannot be read: No such file"):
            read_dictionary(tmp_path / "dict.ltr.txt")
