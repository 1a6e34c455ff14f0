"""Training of SentencePiece models (Kudo and Richardson, 2018) from transcripts: the same model from the same text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from hubert_plugin.errors import TextError
from hubert_plugin.files import atomic_path
from hubert_plugin.text.counts import count

MODEL_TYPES: Final = ("unigram", "bpe", "char")


@dataclass(kw_only=True)
class SentencePieceConfig(Validatable):
    """How a SentencePiece model is trained."""

    vocab_size: int = 500
    """The number of symbols, the four special ones included."""

    model_type: str = "unigram"
    """``unigram``, ``bpe`` or ``char``."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.model_type not in MODEL_TYPES:
            result.add_error(
                f"`model_type` must be one of {', '.join(MODEL_TYPES)}, but is '{self.model_type}' instead."
            )

        if self.vocab_size < 5:
            result.add_error(f"`vocab_size` must be greater than or equal to 5, but is {self.vocab_size} instead.")

        return result


def train_sentencepiece(texts: Sequence[str], path: Path, config: SentencePieceConfig) -> None:
    """Train a model on normalised transcripts and write it to ``path`` atomically.

    Its symbols begin as fairseq's dictionaries do, with ``<s> <pad> </s> <unk>``; the blank is ``<s>``. Every character
    of the transcripts is a piece.

    :raises TextError: There are more pieces asked for than the transcripts can give, or fewer than characters.
    :raises StorageError: The file cannot be written.
    """
    from sentencepiece import SentencePieceTrainer

    buffer = io.BytesIO()

    try:
        SentencePieceTrainer.Train(
            sentence_iterator=iter(texts),
            model_writer=buffer,
            vocab_size=config.vocab_size,
            model_type=config.model_type,
            # Nothing is normalised but what the configuration says, and nothing is left out.
            normalization_rule_name="identity",
            character_coverage=1.0,
            input_sentence_size=0,
            max_sentence_length=1 << 20,
            # Threads add up floating-point numbers in another order.
            num_threads=1,
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as ex:
        raise TextError(_explain(str(ex), config, len(texts))) from None

    _check_characters(buffer.getvalue(), texts, config)

    with atomic_path(path) as tmp:
        tmp.write_bytes(buffer.getvalue())


def _check_characters(model: bytes, texts: Sequence[str], config: SentencePieceConfig) -> None:
    """Character models silently leave out the rarest where there are too few pieces."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)

    known = {c for i in range(processor.GetPieceSize()) for c in processor.IdToPiece(i)}

    if missing := sorted(set("".join("".join(texts).split())) - known):
        raise TextError(
            f"A SentencePiece model of {config.vocab_size} symbols has no place for "
            f"{count(len(missing), 'character')} of the transcripts: {' '.join(missing[:20])}. Raise `vocab_size`, or "
            "normalise the text more."
        )


def _explain(message: str, config: SentencePieceConfig, num_texts: int) -> str:
    head = f"No SentencePiece model of {config.vocab_size} symbols can be trained on {count(num_texts, 'transcript')}"

    if match := re.search(r"<= ?(\d+)", message):
        return f"{head}: they give at most {match[1]}. Lower `vocab_size`, or add transcripts."

    if match := re.search(r"(\d+) vs \d+|required_chars.*?(\d+)", message):
        return f"{head}: their characters alone need more. Raise `vocab_size`, or normalise the text more."

    return f"{head}: {' '.join(message.split())}."
