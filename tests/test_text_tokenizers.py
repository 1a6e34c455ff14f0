"""Tokenizers with fairseq2's interface: letters by card or file, SentencePiece models trained or brought."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetCard, get_asset_store
from fairseq2.composition import register_package_assets  # noqa: F401 - the extension is set up by fairseq2 itself
from fairseq2.data.tokenizers import load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from hubert_plugin.errors import TextError
from hubert_plugin.text.family import (
    HubertLettersConfig,
    HubertSentencePieceConfig,
    create_letters,
    load_letters,
    load_pieces,
)
from hubert_plugin.text.normalization import TextConfig, normalize_text
from hubert_plugin.text.sentencepiece_model import SentencePieceConfig, train_sentencepiece
from hubert_plugin.text.symbols import FAIRSEQ_SPECIALS
from hubert_plugin.text.tokenizer import CtcTokenizer, PieceTokenizer

CARDS = {
    "hubert_fairseq_letters": 32,
    "hubert_paper_letters": 29,
    "hubert_torchaudio_letters": 29,
    "hubert_huggingface_letters": 32,
}


WORDS = (
    *("THE", "A", "CAT", "DOG", "SAW", "HEARD", "QUICKLY", "JUMPING", "OVER", "FOXES", "BIRD'S", "MEAL", "NEAR"),
    *("SMOOTH", "VELVET", "KING", "ZEBRA", "RUNNING", "SINGING", "UNDER", "MOUNTAIN", "RIVERS", "THUNDER", "HEATHER"),
)


def make_texts(count: int = 200, seed: int = 0) -> list[str]:
    rng = random.Random(seed)

    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def fairseq2_is_set_up() -> None:
    from fairseq2 import init_fairseq2

    try:
        init_fairseq2()
    except Exception as ex:
        # Another test was first.
        assert "init" in str(ex).lower(), ex


@pytest.fixture(scope="module", params=["unigram", "bpe", "char"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sp") / f"{request.param}.model"

    size = 32 if request.param == "char" else 50

    train_sentencepiece(make_texts(), path, SentencePieceConfig(vocab_size=size, model_type=request.param))

    return path


class TestLetters:
    @pytest.mark.usefixtures("fairseq2_is_set_up")
    @pytest.mark.parametrize("name", CARDS)
    def test_cards_load_with_fairseq2(self, name: str) -> None:
        tokenizer = load_tokenizer(name)

        assert isinstance(tokenizer, CtcTokenizer)
        assert tokenizer.vocab_info.size == CARDS[name]

        ids = tokenizer.create_encoder()("HELLO WORLD")

        assert ids.dtype == torch.int64
        assert tokenizer.create_decoder()(ids) == "HELLO WORLD"
        assert tokenizer.create_encoder().encode_as_tokens("IT'S") == [*"IT'S", "|"]
        assert tokenizer.create_decoder().decode_from_tokens([*"ITS", "|", "A"]) == "ITS A"

        assert get_asset_store().retrieve_card(name).field("tokenizer_family").as_(str) == "hubert_letters"

    def test_every_word_ends_with_the_separator_as_in_fairseqs_ltr(self) -> None:
        tokenizer = create_letters(HubertLettersConfig())

        symbols = [tokenizer.vocabulary.symbols[i] for i in tokenizer.encode("THE  CAT ")]

        # `libri_labels.py` writes "T H E | C A T |".
        assert " ".join(symbols) == "T H E | C A T |"

    def test_vocabulary_info_names_the_special_symbols(self) -> None:
        info = create_letters(HubertLettersConfig()).vocab_info

        assert (info.bos_idx, info.pad_idx, info.eos_idx, info.unk_idx) == (0, 1, 2, 3)

    def test_own_symbols(self) -> None:
        tokenizer = create_letters(HubertLettersConfig(symbols=["a", "|", "b", "_"], blank=3))

        assert tokenizer.encode("ab a") == [0, 2, 1, 0, 1]

        with pytest.raises(TextError, match="'x'"):
            tokenizer.encode("ax")

    def test_languages_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`lang` must be `None`"):
            create_letters(HubertLettersConfig()).create_encoder(lang="en")

    def test_dictionary_of_pieces_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "dict.txt"

        path.write_text("\u2581THE 3\n")

        with pytest.raises(TextError, match=r"lists SentencePiece's pieces.*tokenizer\.family=hubert_sentencepiece"):
            load_letters(path, HubertLettersConfig())


class TestSentencePiece:
    def test_spelling_is_sentencepieces_own(self, trained: Path) -> None:
        tokenizer, model = PieceTokenizer(trained), SentencePieceProcessor(model_file=str(trained))

        for text in make_texts(20, seed=1):
            assert tokenizer.encode(text) == model.EncodeAsIds(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text

        assert tokenizer.vocabulary.symbols[:4] == FAIRSEQ_SPECIALS
        assert tokenizer.vocabulary.blank == 0
        assert tokenizer.vocabulary.kind == "pieces"
        assert (tokenizer.vocab_info.bos_idx, tokenizer.vocab_info.pad_idx) == (0, 1)

    def test_same_text_gives_the_same_model(self, trained: Path, tmp_path: Path) -> None:
        kind = trained.stem

        config = SentencePieceConfig(vocab_size=32 if kind == "char" else 50, model_type=kind)

        train_sentencepiece(make_texts(), tmp_path / "again.model", config)

        assert (tmp_path / "again.model").read_bytes() == trained.read_bytes()

    def test_words_of_unigram_models_are_spelled_alike_without_the_model(self, tmp_path: Path) -> None:
        path = tmp_path / "u.model"

        train_sentencepiece(make_texts(), path, SentencePieceConfig(vocab_size=50))

        tokenizer = PieceTokenizer(path)

        for word in (*WORDS, "CATS", "OVERKING", "ZZ"):
            assert tokenizer.vocabulary.encode_word(word) == tokenizer.encode(word), word

    def test_brought_models_keep_their_numbers(self, tmp_path: Path) -> None:
        """SentencePiece's defaults: ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2. The blank is ``<s>``, which no text gives."""
        buffer = io.BytesIO()

        SentencePieceTrainer.Train(
            sentence_iterator=iter(make_texts()), model_writer=buffer, vocab_size=50, minloglevel=2
        )

        (tmp_path / "m.model").write_bytes(buffer.getvalue())

        tokenizer = load_pieces(tmp_path / "m.model", HubertSentencePieceConfig())

        model = SentencePieceProcessor(model_proto=buffer.getvalue())

        assert tokenizer.vocabulary.blank == 1
        assert tokenizer.encode("THE CAT") == model.EncodeAsIds("THE CAT")

    def test_models_without_control_symbols_get_a_blank(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()

        SentencePieceTrainer.Train(
            sentence_iterator=iter(make_texts()),
            model_writer=buffer,
            vocab_size=50,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )

        (tmp_path / "m.model").write_bytes(buffer.getvalue())

        tokenizer = PieceTokenizer(tmp_path / "m.model")

        assert (tokenizer.vocabulary.symbols[0], tokenizer.vocabulary.blank) == ("<blank>", 0)
        assert len(tokenizer.vocabulary) == 51
        assert tokenizer.decode(tokenizer.encode("THE ZEBRA")) == "THE ZEBRA"

        word = "JUMPING"

        assert tokenizer.vocabulary.encode_word(word) == tokenizer.encode(word)

    def test_unknown_characters_are_named(self, trained: Path) -> None:
        with pytest.raises(TextError, match="'5', 'é'"):
            PieceTokenizer(trained).encode("THE é 5")

    @pytest.mark.parametrize(
        ("kind", "size", "text"),
        [
            ("unigram", 5000, r"they give at most \d+. Lower `vocab_size`"),
            ("bpe", 5000, r"they give at most \d+. Lower `vocab_size`"),
            ("unigram", 10, "their characters alone need more. Raise `vocab_size`"),
            ("bpe", 10, "their characters alone need more. Raise `vocab_size`"),
            ("char", 10, "has no place for .* characters of the transcripts"),
        ],
    )
    def test_impossible_sizes_are_refused(self, kind: str, size: int, text: str, tmp_path: Path) -> None:
        with pytest.raises(TextError, match=text):
            train_sentencepiece(
                make_texts(), tmp_path / "m.model", SentencePieceConfig(vocab_size=size, model_type=kind)
            )

        assert not list(tmp_path.iterdir())

    def test_files_that_are_no_models_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TextError, match="There is no SentencePiece model at"):
            PieceTokenizer(tmp_path / "m.model")

        (tmp_path / "m.model").write_bytes(b"\x00not a model")

        with pytest.raises(TextError, match="is no SentencePiece model, or damaged"):
            PieceTokenizer(tmp_path / "m.model")


class TestNormalization:
    @pytest.mark.parametrize(
        ("text", "config", "expected"),
        [
            (" The\tcat \n sat ", TextConfig(), "THE CAT SAT"),
            ("The CAT", TextConfig(case="lower"), "the cat"),
            ("The CAT", TextConfig(case="none"), "The CAT"),
            ("Well-known, isn't it?", TextConfig(drop_punctuation=True), "WELL KNOWN ISN'T IT"),
            ("isn't", TextConfig(drop_punctuation=True, keep=""), "ISNT"),
            ("a+b=c", TextConfig(drop_punctuation=True), "ABC"),
            ("isn\u2019t", TextConfig(replace={"\u2019": "'"}), "ISN'T"),
            ("a*b", TextConfig(drop="*"), "AB"),
            ("e\u0301", TextConfig(), "É"),
            ("\ufb01x", TextConfig(unicode_form="NFKC"), "FIX"),
            ("e\u0301", TextConfig(unicode_form="none", case="none"), "e\u0301"),
            ("", TextConfig(), ""),
        ],
    )
    def test_only_what_is_asked_for_happens(self, text: str, config: TextConfig, expected: str) -> None:
        assert normalize_text(text, config) == expected

    @settings(max_examples=50, deadline=None)
    @given(st.text(max_size=40), st.sampled_from(["upper", "lower", "none"]), st.booleans())
    def test_normalised_text_stays_as_it_is(self, text: str, case: str, drop: bool) -> None:
        config = TextConfig(unicode_form="NFKC", case=case, drop_punctuation=drop)

        once = normalize_text(text, config)

        # Upper case of some ligatures and accents composes or decomposes anew; a second pass settles that.
        twice = normalize_text(once, config)

        assert normalize_text(twice, config) == twice
        assert "  " not in once and once == once.strip()

    def test_unusable_options_are_named(self) -> None:
        result = TextConfig(case="title", unicode_form="NFX", replace={"": "a"}).validate()

        assert "`case` must be one of upper, lower, none" in str(result)
        assert "`unicode_form` must be one of" in str(result)
        assert "must not replace the empty text" in str(result)


def test_files_are_found_whatever_is_in_their_paths(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "jürgen's #1"

    folder.mkdir()

    (folder / "dict.ltr.txt").write_text("| 9\nE 8\nT 7\n")

    (folder / "pieces.model").write_bytes(trained.read_bytes())

    for family, file in (("hubert_letters", "dict.ltr.txt"), ("hubert_sentencepiece", "pieces.model")):
        card = AssetCard("mine", {"tokenizer_family": family, "tokenizer": file, "__base_path__": folder.resolve()})

        assert isinstance(load_tokenizer(card), CtcTokenizer)
