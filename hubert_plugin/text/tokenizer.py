"""Tokenizers for CTC: fairseq2's interface over a vocabulary. Letters need nothing but the vocabulary; pieces are cut
by a SentencePiece model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from fairseq2.data.tokenizers import TokenDecoder, TokenEncoder, Tokenizer, VocabularyInfo
from fairseq2.device import Device
from torch import Tensor
from typing_extensions import override

from hubert_plugin.errors import TextError
from hubert_plugin.text.vocabulary import CtcVocabulary


class CtcTokenizer(Tokenizer):
    """Spells words in the symbols of a recogniser, and reads them."""

    def __init__(self, vocabulary: CtcVocabulary) -> None:
        self.vocabulary = vocabulary

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the symbols of normalised text. No blank is among them.

        :raises TextError: A character is in no symbol; names it.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of symbols; specials are left out."""
        return self.vocabulary.text(ids)

    @override
    def create_encoder(
        self,
        *,
        task: str | None = None,
        lang: str | None = None,
        mode: str | None = None,
        device: Device | None = None,
        pin_memory: bool = False,
    ) -> TokenEncoder:
        """Return an encoder; there is only one kind.

        :raises ValueError: A task, language or mode is named.
        """
        for name, value in (("task", task), ("lang", lang), ("mode", mode)):
            if value is not None:
                raise ValueError(f"`{name}` must be `None`, but is '{value}' instead.")

        return self.create_raw_encoder(device=device, pin_memory=pin_memory)

    @override
    def create_raw_encoder(self, *, device: Device | None = None, pin_memory: bool = False) -> TokenEncoder:
        return _Encoder(self, device, pin_memory)

    @override
    def create_decoder(self, *, skip_special_tokens: bool = False) -> TokenDecoder:
        return _Decoder(self)

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        index = self.vocabulary.index

        return VocabularyInfo(
            size=len(self.vocabulary),
            unk_idx=index.get("<unk>"),
            bos_idx=index.get("<s>"),
            eos_idx=index.get("</s>"),
            pad_idx=index.get("<pad>"),
        )


@final
class LetterTokenizer(CtcTokenizer):
    """One symbol a letter, a separator after each word, also the last (fairseq ``.ltr``)."""

    def __init__(self, vocabulary: CtcVocabulary) -> None:
        super().__init__(vocabulary)

        self._spellings: dict[str, list[int]] = {}

    @override
    def encode(self, text: str) -> list[int]:
        ids: list[int] = []

        for word in text.split():
            if (spelling := self._spellings.get(word)) is None:
                spelling = self._spellings[word] = self.vocabulary.encode_word(word)

            ids += spelling

        return ids


@final
class PieceTokenizer(CtcTokenizer):
    """The pieces of a SentencePiece model. The numbers of pieces are the model's own, unless it has no control symbol
    to serve as the blank: then they are one more, and the blank is 0."""

    def __init__(self, path: Path) -> None:
        """
        :param path: The model's file.
        :raises TextError: It is missing, or no SentencePiece model.
        """
        self._model = _load_model(path)

        model, size = self._model, self._model.GetPieceSize()

        symbols = [model.IdToPiece(i) for i in range(size)]

        controls = [s for i, s in enumerate(symbols) if model.IsControl(i)]

        scores = [float(model.GetScore(i)) for i in range(size)]

        # A unigram model's are log-probabilities; those of others are whole numbers, by which no word is spelled.
        if all(s.is_integer() for s in scores):
            scores = []

        blank = next((s for s in ("<s>", "<pad>", "<blank>") if s in controls), None)

        self._offset = 0 if blank is not None else 1

        if blank is None:
            blank = "<blank>"

            symbols, scores = [blank, *symbols], scores and [0.0, *scores]

        super().__init__(CtcVocabulary(tuple(symbols), symbols.index(blank), tuple(scores)))

    @override
    def encode(self, text: str) -> list[int]:
        if outside := self.vocabulary.find_outside(text):
            raise TextError(f"'{text}' cannot be spelled: the vocabulary lacks {', '.join(map(repr, outside))}.")

        return [i + self._offset for i in self._model.EncodeAsIds(text)]


@final
class _Encoder(TokenEncoder):
    def __init__(self, tokenizer: CtcTokenizer, device: Device | None, pin_memory: bool) -> None:
        self._tokenizer = tokenizer
        self._device = device
        self._pin_memory = pin_memory

    @override
    def __call__(self, text: str) -> Tensor:
        ids = torch.tensor(self._tokenizer.encode(text), dtype=torch.int64, device=self._device)

        return ids.pin_memory() if self._pin_memory else ids

    @override
    def encode_as_tokens(self, text: str) -> list[str]:
        return [self._tokenizer.vocabulary.symbols[i] for i in self._tokenizer.encode(text)]

    @property
    @override
    def prefix_indices(self) -> Tensor | None:
        return None

    @property
    @override
    def suffix_indices(self) -> Tensor | None:
        return None


@final
class _Decoder(TokenDecoder):
    def __init__(self, tokenizer: CtcTokenizer) -> None:
        self._tokenizer = tokenizer

    @override
    def __call__(self, token_indices: Tensor) -> str:
        return self._tokenizer.decode(token_indices.tolist())

    @override
    def decode_from_tokens(self, tokens: Sequence[str]) -> str:
        return self._tokenizer.decode([self._tokenizer.vocabulary.index[t] for t in tokens])


def _load_model(path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    if not path.is_file():
        raise TextError(f"There is no SentencePiece model at '{path}'.")

    model = SentencePieceProcessor()

    try:
        model.LoadFromSerializedProto(path.read_bytes())
    except (RuntimeError, OSError) as ex:
        raise TextError(f"'{path}' is no SentencePiece model, or damaged: {ex}.") from ex

    return model
