"""The tokenizer of a run: a card, a file, or a SentencePiece model that is trained on the run's own transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from fairseq2.assets import AssetCardError
from fairseq2.data.tokenizers import TokenizerNotKnownError
from fairseq2.data.tokenizers.family import TokenizerFamilyNotKnownError
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import TokenizerSection
from fairseq2.recipe.error import TokenizerTypeNotValidError
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from hubert_plugin.errors import ConfigError
from hubert_plugin.ranks import run_on_first
from hubert_plugin.registry import unknown_name_error
from hubert_plugin.text.counts import count
from hubert_plugin.text.family import HUBERT_LETTERS, HUBERT_SENTENCEPIECE
from hubert_plugin.text.sentencepiece_model import SentencePieceConfig, train_sentencepiece
from hubert_plugin.text.tokenizer import CtcTokenizer

DEFAULT_TOKENIZER: Final = "hubert_fairseq_letters"

MODEL_NAME: Final = "tokenizer.model"
"""The SentencePiece model that a run has trained, in its output folder."""

_ENDINGS: Final = {".model": HUBERT_SENTENCEPIECE, ".txt": HUBERT_LETTERS, ".json": HUBERT_LETTERS}


@dataclass(kw_only=True)
class HubertTokenizerSection(TokenizerSection):
    """How transcripts are spelled."""

    name: str | None = DEFAULT_TOKENIZER
    """The name of a tokenizer card: ``hubert_fairseq_letters`` (32 symbols), ``hubert_paper_letters`` (29),
    ``hubert_torchaudio_letters``, ``hubert_huggingface_letters``, or one of your own."""

    path: Path | None = None
    """A dictionary of fairseq (``dict.ltr.txt``), a ``vocab.json`` of Hugging Face, or a SentencePiece model. Takes the
    place of ``name``."""

    family: str | None = None
    """What ``path`` is: ``hubert_letters`` or ``hubert_sentencepiece``. ``None``: its ending tells."""

    sentencepiece: SentencePieceConfig | None = None
    """If set, a SentencePiece model is trained on the transcripts of the run and kept in its folder. Takes the place of
    ``name``."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.sentencepiece is not None and self.path is not None:
            result.add_error("`sentencepiece` trains a model, `path` names one: only one of them can be specified.")

        if self.path is not None and self.family is None and self.path.suffix not in _ENDINGS:
            result.add_error(
                f"`path` ('{self.path}') must end with {', '.join(_ENDINGS)}, or `family` must say what it is: "
                f"{HUBERT_LETTERS} or {HUBERT_SENTENCEPIECE}."
            )

        if self.name is None and self.path is None and self.sentencepiece is None:
            result.add_error("`name`, `path` or `sentencepiece` must be specified.")

        return result


def open_tokenizer(
    context: RecipeContext,
    section: HubertTokenizerSection,
    training_texts: Callable[[], Sequence[str]],
    *,
    resumed: bool,
) -> CtcTokenizer:
    """Return the tokenizer of a run. Call on all ranks.

    :param training_texts: Returns the normalised transcripts that are trained on.
    :param resumed: Whether the run goes on from a checkpoint, and so with the model that it has trained.
    :raises ConfigError: There is no tokenizer of this name, or it is none for CTC.
    :raises TextError: A file cannot be used, or no model can be trained.
    """
    if section.sentencepiece is not None:
        path = context.output_dir / MODEL_NAME

        # On all ranks: they wait for each other where the corpus is made on the way.
        texts = training_texts()

        def train(config: SentencePieceConfig) -> None:
            if resumed and path.is_file():
                return

            train_sentencepiece(texts, path, config)

            log.info("A SentencePiece model was trained on {}: {}", count(len(texts), "transcript"), path)

        run_on_first(context.gangs.root, partial(train, section.sentencepiece))

        section.path, section.family = path, HUBERT_SENTENCEPIECE

    if section.path is not None:
        section.name = None

        section.path = section.path.expanduser()

        section.family = section.family or _ENDINGS[section.path.suffix]

    try:
        return context.get_tokenizer_as(CtcTokenizer)
    except TokenizerNotKnownError as ex:
        families = (HUBERT_LETTERS, HUBERT_SENTENCEPIECE)

        names = context.asset_store.asset_names

        # What follows the @ is the environment that a card is for; most are for any.
        known = sorted(n.removesuffix("@") for n in names if _family_of(context, n) in families)

        raise unknown_name_error("tokenizer", ex.name, known) from None
    except TokenizerFamilyNotKnownError as ex:
        raise unknown_name_error("tokenizer family", ex.name, [HUBERT_LETTERS, HUBERT_SENTENCEPIECE]) from None
    except TokenizerTypeNotValidError:
        raise ConfigError(
            f"The tokenizer '{section.name or section.path}' is none for CTC. Take one of the families "
            f"{HUBERT_LETTERS} and {HUBERT_SENTENCEPIECE}: a SentencePiece model of your own is used with "
            f"`tokenizer.path=FILE.model tokenizer.family={HUBERT_SENTENCEPIECE}`."
        ) from None


def _family_of(context: RecipeContext, name: str) -> str | None:
    """Return the tokenizer family of a card; ``None``: it has none, or is unusable."""
    with suppress(AssetCardError):
        field = context.asset_store.retrieve_card(name).maybe_get_field("tokenizer_family")

        return None if field is None else field.as_(str)

    return None
