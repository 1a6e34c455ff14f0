"""The tokenizer families ``hubert_letters`` and ``hubert_sentencepiece`` with fairseq2."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from fairseq2.assets import AssetCard
from fairseq2.data.tokenizers import Tokenizer, TokenizerFamily
from fairseq2.data.tokenizers.family import StandardTokenizerFamily
from fairseq2.gang import Gangs
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver, wire_object
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.card_files import with_plain_path
from hubert_plugin.errors import TextError
from hubert_plugin.text.dictionary import read_dictionary
from hubert_plugin.text.symbols import NAMED_SYMBOLS
from hubert_plugin.text.tokenizer import CtcTokenizer, LetterTokenizer, PieceTokenizer
from hubert_plugin.text.vocabulary import CtcVocabulary

HUBERT_LETTERS: Final = "hubert_letters"

HUBERT_SENTENCEPIECE: Final = "hubert_sentencepiece"


@dataclass(kw_only=True)
class HubertLettersConfig(Validatable):
    """What a card of the family ``hubert_letters`` says (``tokenizer_config``). A file takes its place."""

    symbol_set: str = "fairseq_letters"
    """The name of a well-known set: ``fairseq_letters``, ``letters``, ``torchaudio_letters``,
    ``huggingface_letters``."""

    symbols: list[str] = field(default_factory=list)
    """The symbols in the order of the outputs, in place of a well-known set."""

    blank: int = 0
    """The index of the blank in ``symbols``."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.symbol_set not in NAMED_SYMBOLS:
            result.add_error(
                f"`symbol_set` must be one of {', '.join(NAMED_SYMBOLS)}, but is '{self.symbol_set}' instead."
            )

        return result


@dataclass(kw_only=True)
class HubertSentencePieceConfig:
    """The family ``hubert_sentencepiece`` has no options: the model's file says everything."""


@final
class LettersFamily(TokenizerFamily):
    """Letters need no file: a card may give just its configuration."""

    def __init__(self, standard: StandardTokenizerFamily) -> None:
        self._standard = standard

    @override
    def get_tokenizer_config(self, card: AssetCard) -> object:
        return self._standard.get_tokenizer_config(card)

    @override
    def load_tokenizer(self, card: AssetCard, gangs: Gangs, config: object | None) -> Tokenizer:
        if card.maybe_get_field("tokenizer") is not None:
            return self._standard.load_tokenizer(with_plain_path(card, "tokenizer"), gangs, config)

        if config is None:
            config = self.get_tokenizer_config(card)

        if not isinstance(config, HubertLettersConfig):
            raise TypeError(
                f"`config` must be of type `{HubertLettersConfig}`, but is of type `{type(config)}` instead."
            )

        return create_letters(config)

    @override
    def load_custom_tokenizer(self, path: Path, config: object, gangs: Gangs) -> Tokenizer:
        return self._standard.load_custom_tokenizer(path, config, gangs)

    @property
    @override
    def name(self) -> str:
        return self._standard.name

    @property
    @override
    def kls(self) -> type[object]:
        return self._standard.kls

    @property
    @override
    def config_kls(self) -> type[object]:
        return self._standard.config_kls


class PiecesFamily(StandardTokenizerFamily):  # type: ignore[misc] # final, but one step of many is to be another
    """fairseq2's, but models on this machine are found whatever is in their paths."""

    @override
    def load_tokenizer(self, card: AssetCard, gangs: Gangs, config: object | None) -> Tokenizer:
        return super().load_tokenizer(with_plain_path(card, "tokenizer"), gangs, config)


def create_letters(config: HubertLettersConfig) -> LetterTokenizer:
    """Return the tokenizer of a configuration.

    :raises TextError: The set is not known, or the symbols are no vocabulary.
    """
    if config.symbols:
        return LetterTokenizer(CtcVocabulary(tuple(config.symbols), config.blank))

    return LetterTokenizer(CtcVocabulary.named(config.symbol_set))


def load_letters(path: Path, config: HubertLettersConfig) -> LetterTokenizer:
    """Return the tokenizer of a dictionary's file (:func:`~hubert_plugin.text.dictionary.read_dictionary`)."""
    vocabulary = read_dictionary(path)

    if vocabulary.kind == "pieces":
        raise TextError(
            f"'{path}' lists SentencePiece's pieces, not letters. Words are cut into pieces by the model itself: set "
            f"`tokenizer.family={HUBERT_SENTENCEPIECE}` and `tokenizer.path` to its .model file."
        )

    return LetterTokenizer(vocabulary)


def load_pieces(path: Path, config: HubertSentencePieceConfig) -> PieceTokenizer:
    """Return the tokenizer of a SentencePiece model's file."""
    return PieceTokenizer(path)


def register_tokenizers(container: DependencyContainer) -> None:
    """Register the tokenizer families with fairseq2."""

    def create_letters_family(resolver: DependencyResolver) -> TokenizerFamily:
        standard = wire_object(
            resolver,
            StandardTokenizerFamily,
            name=HUBERT_LETTERS,
            kls=CtcTokenizer,
            config_kls=HubertLettersConfig,
            loader=load_letters,
        )

        return LettersFamily(standard)

    def create_pieces_family(resolver: DependencyResolver) -> TokenizerFamily:
        return wire_object(
            resolver,
            PiecesFamily,
            name=HUBERT_SENTENCEPIECE,
            kls=CtcTokenizer,
            config_kls=HubertSentencePieceConfig,
            loader=load_pieces,
        )

    container.register(TokenizerFamily, create_letters_family, key=HUBERT_LETTERS)
    container.register(TokenizerFamily, create_pieces_family, key=HUBERT_SENTENCEPIECE)
